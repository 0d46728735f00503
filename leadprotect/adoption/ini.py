"""Writes the settings into an ini file: a new one, or a section of the host's, of which no line is lost."""

from __future__ import annotations

import configparser
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leadprotect.errors import SettingsError
from leadprotect.settings.files import LOGGING, migrations
from leadprotect.settings.load import text_of

if TYPE_CHECKING:
    from leadprotect.adoption.look import Proposed

SECTION = "leadprotect"
CHAIN = "leadprotect-chain"
"""The section of a host's own ini file that names our revisions: ``alembic -n leadprotect-chain``."""

_HEAD = """\
# Usage: DATABASE_URL=postgresql://user@host/name alembic upgrade head

[alembic]
{chain}
"""
_CHAIN = """\
script_location = {location}
path_separator = os
"""
_OURS = """
[logger_leadprotect]
level = INFO
handlers =
qualname = leadprotect
"""


@dataclass(frozen=True)
class Written:
    """The text of an ini file, and how the chain is run with it."""

    file: Path
    text: str
    command: str


def compose(file: Path, proposed: list[Proposed], *, force: bool = False) -> Written:
    """What `file` would hold; nothing is written.

    Raises `SettingsError` where it has a section of ours already, unless `force` lets that be replaced.
    """
    ours = _section(proposed)
    if not file.is_file():
        head = _HEAD.format(chain=_chain())
        return Written(file, head + ours + LOGGING.format(names=",leadprotect", sections=_OURS), _command(file))
    text = text_of(file)
    parser = _parsed(file, text)
    if parser.has_section(SECTION):
        if not force:
            raise SettingsError(f"{file} has a section [{SECTION}] already; --force replaces it, and nothing else")
        text = _without(text, SECTION)
    text = text.rstrip("\n") + "\n\n" + ours
    if _runs_ours(parser):
        return Written(file, _with_logging(text, parser), _command(file))
    if not parser.has_section(CHAIN):
        text += f"\n# leadprotect's own revisions: alembic -n {CHAIN} upgrade head\n[{CHAIN}]\n{_chain()}"
    return Written(file, _with_logging(text, parser), _command(file, CHAIN))


def _command(file: Path, section: str = "") -> str:
    where = "" if file.name == "alembic.ini" else f"-c {file} "
    return f"alembic {where}{f'-n {section} ' if section else ''}upgrade head"


def _chain() -> str:
    folder = migrations()
    installed = folder.parent.name == "leadprotect" and folder.parent.joinpath("settings").is_dir()
    return _CHAIN.format(location="leadprotect:migrations" if installed else _escaped(str(folder)))


def _section(proposed: list[Proposed]) -> str:
    head = f"# Every key: docs/reference/settings.md. LEADPROTECT_<KEY> in the environment wins.\n[{SECTION}]\n"
    return head + "".join(f"# {' '.join(one.reason.split())}\n{one.key} = {_escaped(one.value)}\n" for one in proposed)


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


def _parsed(file: Path, text: str) -> configparser.ConfigParser:
    parser = configparser.ConfigParser({"here": file.parent.absolute().as_posix()})
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise SettingsError(f"{file} can't be read: {str(error).splitlines()[0]}") from None
    return parser


def _runs_ours(parser: configparser.ConfigParser) -> bool:
    given = parser.get("alembic", "script_location", fallback="")
    return given == "leadprotect:migrations" or (bool(given) and Path(given).resolve() == migrations().resolve())


def _without(text: str, section: str) -> str:
    """Without a section, and the comment right above it that we wrote."""
    begin = re.search(rf"(?m)^(# Every key: [^\n]*\n)?\[{re.escape(section)}\][^\n]*\n", text)
    if begin is None:
        return text
    rest = text[begin.end() :]
    end = re.search(r"(?m)^(#[^\n]*\n)*\[", rest)
    return text[: begin.start()] + (rest[end.start() :] if end else "")


def _with_logging(text: str, parser: configparser.ConfigParser) -> str:
    """Let our lines be seen: by a logger of ours beside the host's, or by all of logging where there is none."""
    if not parser.has_section("loggers"):
        return text + LOGGING.format(names=",leadprotect", sections=_OURS)
    if parser.has_section("logger_leadprotect"):
        return text
    keys = re.search(r"(?ms)^\[loggers\]\s*$.*?^keys\s*=[^\n]*", text)
    if keys is None:
        return text
    return text[: keys.end()] + ",leadprotect" + text[keys.end() :].rstrip("\n") + "\n" + _OURS
