"""Puts back what doctor finds changed among our own objects, by the shipped text; never touches a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadprotect.database.sqlstates import mapped_errors
from leadprotect.database.statements import own_names
from leadprotect.doctor.examine import CHECKS, examine
from leadprotect.settings import Settings, current

if TYPE_CHECKING:
    import psycopg

    from leadprotect.doctor.finding import Symptom

OWN = (
    "schema-open",  # without it our owner may be shut out of what follows
    *("row-security-off", "leads-row-security-off"),
    *("function-changed", "function-missing", "function-unpinned", "function-owner", "function-grants"),
    *("policy-missing", "policy-changed", "policy-stray"),
    *("table-owner", "column-changed", "rule-on-ours"),
    *("guard-missing", "guard-off", "guard-changed"),
    *("lead-trigger-missing", "lead-trigger-off", "lead-trigger-changed"),
    *("undo-changed", "view-changed", "table-grants", "column-grants", "territory-list-stale"),
)
"""Checks of what leadprotect made itself: flags, functions, policies, triggers, the view, grants."""

_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '2s'"


@dataclass(frozen=True)
class Repairs:
    """What is to be done: `own` findings with the `statements` that mend them, and `others`, for a DBA to judge."""

    own: tuple[Symptom, ...]
    statements: tuple[str, ...]
    others: tuple[Symptom, ...]


def altered(conn: psycopg.Connection[Any], *, settings: Settings | None = None) -> list[str]:
    """What is dangerous about our own objects, as lines: the end of an upgrade that has nothing to do asks."""
    checks = [
        check for check in CHECKS if check.name in OWN and check.level == "danger" and check.name != "undo-changed"
    ]
    found = examine(conn, settings=settings, checks=checks).findings
    return [f"{one.where}: {one.what}" for one in found if one.level == "danger"]


def plan(conn: psycopg.Connection[Any], *, settings: Settings | None = None) -> Repairs:
    """Ask doctor, and sort what it found: of our own objects, or of somebody else's; reads only."""
    found = [one for one in examine(conn, settings=settings).findings if one.level != "note"]
    # what is missing or too much is told by the number, so that nothing is put back while it is wrong
    stamped = any(one.check == "version-stamped" for one in found)
    own = [one for one in found if one.check in OWN and one.mends and not stamped]
    # in the order of the checks: a function stands again before what calls it
    own.sort(key=lambda one: OWN.index(one.check))
    statements = dict.fromkeys(str(one.mends) for one in own)
    return Repairs(tuple(own), tuple(statements), tuple(one for one in found if one not in own))


def repair(conn: psycopg.Connection[Any], todo: Repairs, *, settings: Settings | None = None) -> tuple[Symptom, ...]:
    """Run the statements of a plan in one transaction of `conn`; returns what our own checks still find.

    Needs a superuser, or who migrates: a member of our owner and reader that owns the leads. Raises
    `ProtectionUnavailable` without the rights, `LockUnavailable` when a lock is not to be had in 2 s, and
    nothing is changed then.
    """
    s = settings or current()
    checks = [check for check in CHECKS if check.name in OWN]
    with mapped_errors():
        with conn.transaction(), own_names(conn):
            conn.execute(_LOCK_TIMEOUT)
            for statement in todo.statements:
                conn.execute(statement.encode())
        return examine(conn, settings=s, checks=checks).findings
