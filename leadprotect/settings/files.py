"""Where the files are: those that the package carries, installed or in a checkout, and the ini file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from leadprotect.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

CONFIG = "LEADPROTECT_CONFIG"
"""The environment variable that names the ini file; the command line sets it from ``--config``."""

_PACKAGE = Path(__file__).resolve().parents[1]

_INI = """\
[alembic]
script_location = {migrations}
path_separator = os

[leadprotect]
{settings}"""
LOGGING = """
[loggers]
keys = root,alembic{names}

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
{sections}
[handler_console]
class = StreamHandler
args = (sys.stderr,)
formatter = plain

[formatter_plain]
format = %(levelname)-7s [%(name)s] %(message)s
"""
"""What an ini file says of logging; `names` and `sections` are those of further loggers."""


def migrations() -> Path:
    """The absolute folder of env.py, script.py.mako and versions/: an Alembic ``script_location``."""
    installed = _PACKAGE / "migrations"
    return installed if installed.is_dir() else _PACKAGE.parent / "migrations"


def version_path() -> str:
    """The absolute folder of the revisions, for a host application's own ``version_locations``."""
    return str(migrations() / "versions")


def ini_file(environ: Mapping[str, str] = os.environ) -> Path:
    """The file that `CONFIG` names, or ``alembic.ini`` here, which need not exist.

    Raises `SettingsError` when a named one is not there.
    """
    named = environ.get(CONFIG)
    if named and not Path(named).is_file():
        raise SettingsError(f"{CONFIG} or --config: there is no file {named}")
    return Path(named or "alembic.ini")


def write_ini(folder: Path, sections: Mapping[str, Mapping[str, str]] | None = None, /, **settings: object) -> Path:
    """Write an alembic.ini for our revisions into `folder`, with these settings in its section [leadprotect].

    `sections` are others to write, by their whole names.
    """

    def escaped(value: object) -> str:
        return str(value).replace("%", "%%")  # a percent sign would begin a name

    def written(given: Mapping[str, object]) -> str:
        return "".join(f"{key} = {escaped(value)}\n" for key, value in given.items())

    file = folder / "alembic.ini"
    text = _INI.format(migrations=escaped(migrations()), settings=written(settings)) + LOGGING.format(
        names="", sections=""
    )
    more = "".join(f"\n[{name}]\n{written(given)}" for name, given in (sections or {}).items())
    file.write_text(text + more, encoding="utf-8")
    return file
