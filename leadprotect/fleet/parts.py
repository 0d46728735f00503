"""Which part of a command is for which database: of the territories that it names, those that are there."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from leadprotect.errors import InvalidRequest
from leadprotect.settings.databases import SECTION

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from leadprotect.settings import Settings
    from leadprotect.settings.databases import TerritoryDatabase

BACKFILL_COMMANDS = ("run", "status", "pause", "resume", "stop")
WITHOUT_VALUE = ("--all", "--dry-run", "--verify", "--json", "--help")
"""Options of the backfill that take no word after them."""

_TERRITORY = "--territory"
_OF_ONE = ("add", "rename", "remove")
_EVERYWHERE = ""
"""How the audit names rows without a territory."""


def require_held(settings: Settings, command: Sequence[str]) -> None:
    """Raise `InvalidRequest` for a territory that no database of the settings has, or a change of one of them alone."""
    held = [code for one in settings.databases for code in one.territories]
    for _, _, code in _named(command):
        if code not in (*held, _EVERYWHERE):
            raise InvalidRequest(
                f"territory: {code!r} is in no database of [{SECTION}]; those hold {', '.join(held)}; "
                "correct it, or write it into the section"
            )
    if command[0] == "territory" and len(command) > 1 and command[1] in _OF_ONE:
        raise InvalidRequest(
            f"territory {command[1]} is about one database, for a territory lives in one; "
            f"say which: leadprotect --on {shlex.quote(held[0])} {shlex.join(command)}"
        )


def part_of(one: TerritoryDatabase, command: Sequence[str]) -> list[str] | None:
    """The command for one database: of territories that it names, those that are there; None if none is."""
    named = [*_named(command)]
    left = {
        place
        for first, last, code in named
        if code not in (*one.territories, _EVERYWHERE)
        for place in range(first, last)
    }
    if named and len(left) == sum(last - first for first, last, _ in named):
        return None
    return [word for place, word in enumerate(command) if place not in left]


def _named(command: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    """Each territory that the command names: from which word to before which one it is named."""
    if command and command[0] == "audit":
        for place, word in enumerate(command):
            if word.startswith(f"{_TERRITORY}="):
                yield place, place + 1, word.partition("=")[2]
            elif word == _TERRITORY and place + 1 < len(command):
                yield place, place + 2, command[place + 1]
    if command and command[0] == "backfill":
        yield from _of_backfill(command)


def _of_backfill(command: Sequence[str]) -> Iterator[tuple[int, int, str]]:
    place = 2 if len(command) > 1 and command[1] in BACKFILL_COMMANDS else 1
    options = True
    while place < len(command):
        word = command[place]
        if options and word == "--":
            options = False
        elif options and word.startswith("-") and word != "-":
            place += "=" not in word and word not in WITHOUT_VALUE
        else:
            yield place, place + 1, word
        place += 1
