"""What a check is, and what it finds."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import psycopg

    from leadprotect.settings import Settings

Level = Literal["danger", "warning", "note"]
LEVELS: tuple[Level, ...] = ("danger", "warning", "note")


@dataclass(frozen=True)
class Fault:
    """What one check found at one place; `mends` is SQL or a command to run, `level` that of the check where None."""

    where: str
    what: str
    mends: str | None = None
    level: Level | None = None


@dataclass(frozen=True)
class Symptom:
    """A fault with the name of its check and why it matters: what `leadprotect doctor` shows."""

    check: str
    level: Level
    where: str
    what: str
    why: str
    mends: str | None


Needs = Literal["schema", "text", "enforced", "settings"] | None
Ask = Callable[["psycopg.Connection[Any]", "Settings"], Iterable[Fault]]


@dataclass(frozen=True)
class Check:
    """One question to the catalog: `level` is that of its faults, `why` says what they would let happen.

    `needs` says what must be there to ask it: "schema" our tables, "text" a release of ours that this version
    knows, "enforced" a contract that changed the leads, "settings" those of today, where all others get what contract
    was made with, None nothing.
    """

    name: str
    level: Level
    finds: str
    why: str
    needs: Needs
    ask: Ask


def check(level: Level, why: str, *, needs: Needs = "schema") -> Callable[[Ask], Check]:
    """Make a check of a function: its name is the check's, its docstring says what it finds."""

    def made(ask: Ask) -> Check:
        return Check(ask.__name__.replace("_", "-"), level, " ".join((ask.__doc__ or "").split()), why, needs, ask)

    return made


def replacing(drop: str, again: str | None) -> str | None:
    """What takes something away and makes it anew, as one statement: where the second fails, the first is not done.

    As a script that is pasted into psql, the first would be done alone: a border that is gone.
    """
    return again and f"DO $mend$ BEGIN {drop} {re.sub('^SELECT ', 'PERFORM ', again)} END $mend$;"


def apart(parent: str, child: str, *, partition: bool) -> str:
    """What parts two tables that share rows, both as SQL."""
    if partition:
        return f"ALTER TABLE {parent} DETACH PARTITION {child};"
    return f"ALTER TABLE {child} NO INHERIT {parent};"
