"""Where the files that the package carries are, installed or in a checkout."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent

_INI = """\
[alembic]
script_location = {migrations}
path_separator = os

[leadprotect]
{settings}
[loggers]
keys = root,alembic

[handlers]
keys = console

[formatters]
keys = plain

[logger_root]
level = WARNING
handlers = console

[logger_alembic]
level = INFO
handlers =
qualname = alembic

[handler_console]
class = StreamHandler
args = (sys.stderr,)
formatter = plain

[formatter_plain]
format = %(levelname)-7s [%(name)s] %(message)s
"""


def migrations() -> Path:
    """The absolute folder of env.py, script.py.mako and versions/: an Alembic ``script_location``."""
    installed = _PACKAGE / "migrations"
    return installed if installed.is_dir() else _PACKAGE.parent / "migrations"


def version_path() -> str:
    """The absolute folder of the revisions, for a host application's own ``version_locations``."""
    return str(migrations() / "versions")


def write_ini(folder: Path, **settings: object) -> Path:
    """Write an alembic.ini for our revisions into `folder`, with these settings in its section [leadprotect]."""

    def escaped(value: object) -> str:
        return str(value).replace("%", "%%")  # a percent sign would begin a name

    lines = "".join(f"{key} = {escaped(value)}\n" for key, value in settings.items())
    file = folder / "alembic.ini"
    file.write_text(_INI.format(migrations=escaped(migrations()), settings=lines), encoding="utf-8")
    return file
