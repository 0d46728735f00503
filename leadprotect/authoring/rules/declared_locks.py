"""What a revision declares of its locks is what it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadprotect.authoring.finding import Problem
from leadprotect.database.modes import MODES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadprotect.authoring.walk import Trial

_ORDINARY = MODES.index("RowExclusiveLock")


def declared_locks(step: Trial) -> Iterator[Problem]:
    """Whoever releases reads from `locks` who will wait, and for what; a table is called schema.table.

    Source: https://www.postgresql.org/docs/current/explicit-locking.html#LOCKING-TABLES
    """
    one = step.revision
    declared = one.values.get("locks") or {}
    for way, taken in step.locks.items():
        said = declared.get(way, {}) if isinstance(declared, dict) else {}
        # what reads and writes take is in nobody's way
        strong = {table: mode for table, mode in taken.items() if MODES.index(mode) > _ORDINARY or table in said}
        for table in sorted({*said, *strong}):
            if said.get(table) != strong.get(table):
                yield Problem(
                    "declared-locks", one.file, one.line("locks"),
                    f"{way} takes {strong.get(table, 'no lock')} on {table}, "
                    f"and locks declares {said.get(table, 'none')}",
                    f'write "{way}": {{"{table}": "{strong[table]}"}}, and say in the docstring for how long'
                    if table in strong else f"leave {table} out of {way}",
                )  # fmt: skip
