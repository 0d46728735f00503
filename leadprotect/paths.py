"""Where the files that the package carries are, installed or in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def migrations() -> Path:
    """The absolute folder of env.py, script.py.mako and versions/: an Alembic ``script_location``."""
    installed = _PACKAGE / "migrations"
    return installed if installed.is_dir() else _PACKAGE.parent / "migrations"


def version_path() -> str:
    """The absolute folder of the revisions, for a host application's own ``version_locations``."""
    return str(migrations() / "versions")
