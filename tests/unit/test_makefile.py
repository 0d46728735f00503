"""How `make` installs: by uv, and by pip where uv is not meant or can't."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.database import ROOT

if TYPE_CHECKING:
    from pathlib import Path

BY_UV = [
    "pip install -qq --only-binary :all: --require-hashes -r requirements-uv.lock",
    "uv pip install --require-hashes -r requirements-demo.lock",
    "uv pip install --no-deps --no-build-isolation -e .",
]
BY_PIP = [
    "pip install -qq --require-hashes -r requirements-demo.lock",
    "pip install -qq --no-deps --no-build-isolation -e .",
]
PYTHON = """#!/bin/sh
case "$*" in
    *"config list"*) echo "{settings}"; exit ;;
esac
echo "$*" | sed 's/-m pip --disable-pip-version-check/pip/' >> log
{pip}
"""
UV = """#!/bin/sh
echo "uv $*" | sed 's/--quiet --python [^ ]* //' >> log
{uv}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "requirements-demo.lock", "requirements-uv.lock"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    return tmp_path


def installed(folder: Path, *, settings: str = "", pip: str = "", uv: str = "") -> tuple[int, list[str]]:
    """The exit code of `make`, and what it ran of two programs that do as they are told."""
    for name, text in (("python", PYTHON), ("uv", UV)):
        program = folder / ".venv/bin" / name
        program.write_text(text.format(settings=settings, pip=pip, uv=uv), encoding="utf-8")
        program.chmod(0o755)
    outside = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", ".venv/demo.stamp"], cwd=folder, env=outside, capture_output=True, text=True, check=False
    )
    assert (done.returncode == 0) == (folder / ".venv/demo.stamp").exists(), done.stderr
    return done.returncode, (folder / "log").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("settings", ["", "global.extra-index-url='https://example.org'", "global.cert='/etc/ours'"])
def test_make_installs_by_uv(folder: Path, settings: str) -> None:
    assert (0, BY_UV) == installed(folder, settings=settings)


@pytest.mark.parametrize("setting", ["global.index-url", ":env:.index-url", "install.no-index", "site.proxy"])
def test_make_installs_by_pip_where_pip_was_told_how(folder: Path, setting: str) -> None:
    """What names an index of his own must not be asked of another."""
    assert (0, BY_PIP) == installed(folder, settings=f"{setting}='ours'")


def test_make_goes_on_by_pip_where_uv_can_t_install(folder: Path) -> None:
    assert (0, [*BY_UV[:2], *BY_PIP]) == installed(folder, uv="exit 2")


def test_make_goes_on_by_pip_where_there_is_no_uv_for_this_machine(folder: Path) -> None:
    no_wheel = 'case "$*" in *requirements-uv.lock) exit 1 ;; esac'
    assert (0, [BY_UV[0], *BY_PIP]) == installed(folder, pip=no_wheel)


def test_what_can_t_be_installed_leaves_no_stamp(folder: Path) -> None:
    assert (2, [BY_UV[0], BY_PIP[0]]) == installed(folder, pip="exit 1")
