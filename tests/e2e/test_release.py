"""A mistake in what would be published is found, and said; what is published now is whole."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from leadprotect.authoring.chain import read_chain
from leadprotect.authoring.rules.released import write_manifest
from tests.support import release
from tests.support.database import ROOT
from tests.support.revisions import HEAD

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.xdist_group("packaging")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files of the checkout, which somebody is about to release as 1.0.0."""
    root = tmp_path / "leadprotect"
    for name in release.files(ROOT):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, root / name)
    change(root / "pyproject.toml", f'version = "{release.version(ROOT)}"', 'version = "1.0.0"')
    change(root / "CHANGELOG.md", "## [Unreleased]", "## [1.0.0] - 2026-12-01")
    write_manifest(read_chain(ini=root / "alembic.ini"))
    return root


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_what_would_be_released_is_whole(wheel: Path, copy: Path) -> None:
    assert [] == release.of_the_files(ROOT)
    # a log that whoever tests it has there is told, and is no fault of the project
    theirs = tuple(f": {name} is no file of the project" for name in release.lying_about(ROOT))
    told = release.of_the_archives(ROOT, wheel.parent)
    assert [] == [one for one in told if not one.endswith(theirs)]
    assert [] == release.of_the_files(copy)


def test_a_version_without_its_changes_is_no_release(copy: Path) -> None:
    change(copy / "CHANGELOG.md", "## [1.0.0] - 2026-12-01", "## [1.0.0]")
    assert ["CHANGELOG.md: [1.0.0] has no day: `## [1.0.0] - YYYY-MM-DD`"] == release.of_the_files(copy)
    change(copy / "CHANGELOG.md", "## [1.0.0]", "## [0.9.0]")
    assert ["CHANGELOG.md: no section for 1.0.0: write `## [1.0.0] - YYYY-MM-DD` above its changes"] == (
        release.of_the_files(copy)
    )
    change(copy / "pyproject.toml", 'version = "1.0.0"', 'version = "1.0.0.dev0"')
    assert ["CHANGELOG.md: [Unreleased] names no change: write what a user notices"] == release.of_the_files(copy)


def test_a_frozen_revision_that_is_edited_is_no_release(copy: Path) -> None:
    """One command freezes them; an edit, or one that goes away, is told with its file."""
    file = copy / f"migrations/versions/{HEAD}.py"
    change(file, "\n", "\n# better now\n")
    (told,) = release.of_the_files(copy)
    assert told.startswith(f"migrations/versions/{HEAD}.py: {HEAD} was released and is edited: take back the released")
    file.unlink()
    (told,) = release.of_the_files(copy)
    assert told.startswith(f"migrations/released.json: {HEAD} was released and is gone")


def test_a_revision_that_nobody_froze_is_no_release(copy: Path) -> None:
    (copy / "migrations/released.json").unlink()
    (told,) = release.of_the_files(copy)
    assert f"{HEAD}: not frozen: leadprotect validate --release" in told
    write_manifest(read_chain(ini=copy / "alembic.ini"))
    assert [] == release.of_the_files(copy)


def test_one_command_makes_a_checkout_the_next_version(copy: Path) -> None:
    """What was not released yet has a version and a day; an edit of what is frozen now is found."""
    (copy / "migrations/released.json").unlink()
    change(copy / "CHANGELOG.md", "## [1.0.0] - 2026-12-01\n", "## [Unreleased]\n\n- better\n")
    written = ["pyproject.toml", "CHANGELOG.md", "migrations/released.json"]
    for _ in range(2):
        assert written == release.set_version(copy, "1.1.0", "2026-12-24")
    assert "## [Unreleased]\n\n## [1.1.0] - 2026-12-24\n\n- better\n" in (copy / "CHANGELOG.md").read_text("utf-8")
    assert ("1.1.0", []) == (release.version(copy), release.of_the_files(copy))
    change(copy / f"migrations/versions/{HEAD}.py", "\n", "\n# better now\n")
    assert 1 == len(release.of_the_files(copy))
    assert ["pyproject.toml"] == release.set_version(copy, "1.2.0.dev0", "2026-12-24")
    assert "1.2.0.dev0" == release.version(copy)


def test_files_that_an_archive_lacks_or_has_too_much_are_named(copy: Path, tmp_path: Path) -> None:
    excluded = (
        '[tool.hatch.build.targets.sdist]\nexclude = ["docs/how-to/roll-back.md"]\n\n[tool.hatch.build.targets.wheel]\n'
    )
    excluded += 'exclude = ["leadprotect/pgtap/all.sql"]\n'
    change(copy / "pyproject.toml", "[tool.hatch.build.targets.wheel]\n", excluded)
    release.build(copy, tmp_path / "dist")
    change(copy / "pyproject.toml", 'version = "1.0.0"', 'version = "1.0.1"')
    (copy / "migrations/versions/lp_0001_expand_territories.py").unlink()
    wheel = "leadprotect-1.0.0-py3-none-any.whl"
    assert [
        "leadprotect-1.0.0.tar.gz: docs/how-to/roll-back.md is missing",
        "leadprotect-1.0.0.tar.gz: migrations/versions/lp_0001_expand_territories.py is no file of the project",
        f"{wheel}: leadprotect/pgtap/all.sql is missing",
        f"{wheel}: leadprotect/migrations/versions/lp_0001_expand_territories.py is no file of the package",
        "leadprotect-1.0.0.tar.gz is not of version 1.0.1",
        f"{wheel} is not of version 1.0.1",
    ] == release.of_the_archives(copy, tmp_path / "dist")
