"""Partitions of the audit: months made ahead, and old months detached. No row is ever deleted."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from leadprotect.database import blockers
from leadprotect.database.opening import open_connection
from leadprotect.database.statements import row, rows
from leadprotect.errors import InvalidRequest, LockUnavailable
from leadprotect.settings import current, render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

MAX_MOVED = 20_000
"""Rows that may be copied out of the default partition while nobody can record: about 0.2 s."""

_PAUSES_S = (0.3, 0.5, 1, 2, 4)


@dataclass(frozen=True)
class Detached:
    """A month (or several) that left the audit: `table` stays in our schema until somebody archives and drops it."""

    table: str
    rows: int


def create_partitions(conn: psycopg.Connection[Any], *, ahead: int = 3, max_moved: int = MAX_MOVED) -> int:
    """Make the partitions of this month and of `ahead` months more (UTC); returns how many are new.

    For operators, in autocommit. Rows that came while a month was missing lie in the default
    partition: they get a partition of their own as well. Raises `InvalidRequest` when `ahead` is
    not 0 to 120, or when more than `max_moved` rows would have to be copied, `LockUnavailable`
    when live traffic leaves no gap of 100 ms within some ten seconds.
    """
    call = render("SELECT {schema}.create_audit_partitions(%s::integer, %s::integer)", current())
    (created,) = _patiently(conn, partial(row, conn, call, (ahead, max_moved)))
    return int(created)


def detach(conn: psycopg.Connection[Any], before: date) -> Iterator[Detached]:
    """Detach every partition that ends at or before the month of `before`, the oldest first.

    For operators, in autocommit; each one is committed before the next begins, and every chain of
    seals says so. Raises `InvalidRequest`, and detaches nothing more, at the first month that is not
    over or not sealed to its end, or when `before` is later than this month.
    """
    if before.replace(day=1) > datetime.now(UTC).date():
        message = f"before: {before:%Y-%m} is still to come; a month is detached when it is over"
        raise InvalidRequest(message)
    query = """
        SELECT (from_month AT TIME ZONE 'Etc/UTC')::pg_catalog.date FROM {schema}.audit_partitions()
        WHERE to_month OPERATOR(pg_catalog.<=) (%s::timestamp AT TIME ZONE 'Etc/UTC') ORDER BY 1
        """
    for (month,) in rows(conn, render(query, current()), (before.replace(day=1),)):
        call = "SELECT detached::pg_catalog.text, row_count FROM {schema}.detach_audit_month(%s::pg_catalog.date)"
        yield Detached(*_patiently(conn, partial(row, conn, render(call, current()), (month,))))


def _patiently(conn: psycopg.Connection[Any], attempt: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
    """Each attempt gives up after 100 ms, so that no recording queues behind it for longer."""
    way: dict[str, Any] = {**conn.info.get_parameters(), "password": conn.info.password or None}
    way["application"] = way.pop("application_name", "leadprotect")
    with open_connection(**way) as side, blockers.watch(side, conn.info.backend_pid) as seen:
        for pause in _PAUSES_S:
            try:
                return attempt()
            except LockUnavailable:
                time.sleep(random.uniform(pause, 2 * pause))  # noqa: S311 - jitter, no secret
        try:
            return attempt()
        except LockUnavailable:
            who = "; ".join(map(str, seen())) or "a session that is gone already"
            message = (
                f"no lock on the audit in {len(_PAUSES_S) + 1} attempts, blocked by {who}. "
                "Nothing is half done: end that session or wait, and run the same command again"
            )
            raise LockUnavailable(message) from None
