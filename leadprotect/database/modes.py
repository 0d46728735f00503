"""Modes of a lock on a table, as pg_locks calls them, and which of them exclude each other."""

from __future__ import annotations

MODES = [
    "AccessShareLock",
    "RowShareLock",
    "RowExclusiveLock",
    "ShareUpdateExclusiveLock",
    "ShareLock",
    "ShareRowExclusiveLock",
    "ExclusiveLock",
    "AccessExclusiveLock",
]
"""https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-TABLES, the weakest first."""

# https://www.postgresql.org/docs/current/explicit-locking.html#TABLE-LOCK-COMPATIBILITY
CONFLICTS = {
    "AccessShareLock": MODES[7:],
    "RowShareLock": MODES[6:],
    "RowExclusiveLock": MODES[4:],
    "ShareUpdateExclusiveLock": MODES[3:],
    "ShareLock": [*MODES[2:4], *MODES[5:]],
    "ShareRowExclusiveLock": MODES[2:],
    "ExclusiveLock": MODES[1:],
    "AccessExclusiveLock": MODES,
}
"""Mode -> those that whoever wants it waits for."""


def in_sql(mode: str) -> str:
    """ShareRowExclusiveLock as SQL says it: SHARE ROW EXCLUSIVE."""
    return "".join(f" {letter}" if letter.isupper() else letter for letter in mode.removesuffix("Lock")).strip().upper()
