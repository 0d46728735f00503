"""A wheel as it would be published, and environments in which it is installed; all who ask are one xdist group."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from leadprotect import phases
from tests.migrations.test_next_release import CONTRACT_AGAIN, EXPAND, PLANTED
from tests.support.database import ROOT
from tests.support.revisions import HEAD

LENT = ("alembic", "pytest")
"""What a user would have on his PATH beside ours."""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as it would be published: made from the source distribution, nothing fetched."""
    return built(ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="session")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment with the wheel; what it depends on is lent by this one.

    `make release-check` brings one that nothing is lent to.
    """
    if given := os.environ.get("RELEASED_PYTHON"):
        return Path(given)
    return installed(wheel, tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="session")
def python_of_tomorrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same of a later release, which has two revisions more."""
    copy = tmp_path_factory.mktemp("tomorrow") / "leadprotect"
    shutil.copytree(
        ROOT, copy, ignore=shutil.ignore_patterns(".*", "_build", "build", "dist", "*.egg-info", "__pycache__")
    )
    for revision, below in ((EXPAND, HEAD), (CONTRACT_AGAIN, EXPAND)):
        text = PLANTED.format(revision=revision, down_revision=below, phase=phases.phase(revision))
        (copy / "migrations/versions" / f"{revision}.py").write_text(text, encoding="utf-8")
    return installed(built(copy, copy.parent, "--wheel"), tmp_path_factory.mktemp("installed_tomorrow"))


def built(source: Path, folder: Path, *only: str) -> Path:
    """By way of the source distribution, unless `only` the wheel is asked for."""
    command: list[str | Path] = [sys.executable, "-m", "build", "--no-isolation", *only, "--outdir", folder, source]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def installed(wheel: Path, folder: Path) -> Path:
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    pip: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--python",
        python,
        "install",
        "-qq",
    ]
    subprocess.run([*pip, "--no-index", "--no-deps", wheel], check=True)
    site = subprocess.check_output([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True)
    # a folder that a .pth file names lends its packages, but not the .pth of the editable install
    Path(site.strip(), "lent.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    for name in LENT:
        command = python.with_name(name)
        command.write_text(f'#!/bin/sh\nexec {python} -m {name} "$@"\n', encoding="utf-8")
        command.chmod(0o755)
    return python
