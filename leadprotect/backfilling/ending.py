"""The end of a backfill: what was locked is tried again, what changed meanwhile is looked at again."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.backfilled import Locked
from leadprotect.backfilling.worker import VICTIM
from leadprotect.database import blockers
from leadprotect.database.catalog import relation
from leadprotect.settings import render

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadprotect.backfilling.progress import Watch
    from leadprotect.backfilling.worker import Run

NAMED = 20
"""So many of the leads that are left are named; `--report` lists them all."""

_PAGE = 1000
_SAMPLE_S = 0.005
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 5.0


def retry_deferred(
    run: Run, side: psycopg.Connection[Any], victim: psycopg.Connection[Any], patience: float, watch: Watch
) -> list[Locked]:
    """Try the deferred leads again for at most `patience` seconds after the last success."""
    last, pause = time.monotonic(), _FIRST_PAUSE_S
    while True:
        left = done = paused = 0
        holders = ""
        for territory, lead in _deferred(run, side):
            ready = run.throttle.proceed(territory, run.stopping)
            if run.stopping.is_set():
                return []
            if ready and not holders:  # of the first that is held, as of all: they mostly are one transaction's
                assigned, holders = _seen(run, side, victim, territory, lead)
            else:
                assigned = ready and _try(run, victim, territory, lead)
            left, done, paused = left + (not assigned), done + assigned, paused + (not ready)
        if not left:
            run.waiting = None
            return []
        run.waiting = f"{left - paused:,} leads are locked by {holders}" if left > paused else None
        watch()
        if done or paused:
            last = time.monotonic()
        if time.monotonic() - last >= patience:
            return _still_locked(run, side, victim)
        run.stopping.wait(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_S)


def settle_noted(
    run: Run, side: psycopg.Connection[Any], victim: psycopg.Connection[Any], patience: float, watch: Watch
) -> str | None:
    """Look again at leads that changed under a slice; says who is in the way if that can't be done.

    A live transaction that changed activities before a slice was committed may have seen nothing of
    it. Its note is there when it has ended, so those that run now are waited for, `patience` seconds.
    """
    while not run.stopping.is_set():
        if waiting := _writers_left(run, side, patience, watch):
            return f"transactions that changed leads or activities during the backfill are still open: {waiting}"
        changed = 0
        for lead in _noted(run, side):
            settled = _settle(run, victim, lead, patience)
            if settled is None:
                return f"lead {lead} stays locked"
            changed += settled
        if not changed:
            return None
    return None


def _deferred(run: Run, side: psycopg.Connection[Any]) -> Iterator[tuple[str, Any]]:
    query = render(
        "SELECT territory, lead_id FROM {schema}.backfill_deferred WHERE territory = ANY (%s) "
        "AND (%s OR lead_id > %s) ORDER BY lead_id LIMIT %s",
        run.settings,
    )
    after = None
    while page := side.execute(query, (list(run.territories), after is None, after, _PAGE)).fetchall():
        yield from page
        after = page[-1][1]


def _try(run: Run, victim: psycopg.Connection[Any], territory: str, lead: Any) -> bool:
    try:
        row = victim.execute(
            render("SELECT {schema}.backfill_retry(%s, %s)", run.settings), (territory, lead)
        ).fetchone()
    except psycopg.Error as error:
        if error.sqlstate not in VICTIM:
            raise
        return False
    return row is not None and row[0] is not None


def _still_locked(run: Run, side: psycopg.Connection[Any], victim: psycopg.Connection[Any]) -> list[Locked]:
    found = []
    for number, (territory, lead) in enumerate(_deferred(run, side)):
        if number == NAMED:
            break
        assigned, holders = _seen(run, side, victim, territory, lead)
        if not assigned:
            found.append(Locked(territory, lead, holders))
    return found


def _seen(
    run: Run, side: psycopg.Connection[Any], victim: psycopg.Connection[Any], territory: str, lead: Any
) -> tuple[bool, str]:
    """Whether the lead got its owner; else who held it while that was tried."""
    who: list[str] = []
    tried = threading.Event()

    def look() -> None:
        while not tried.wait(_SAMPLE_S):
            who[:] = [str(blocker) for blocker in blockers.blockers(side, victim.info.backend_pid)] or who

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        assigned = _try(run, victim, territory, lead)
    finally:
        tried.set()
        watcher.join()
    return assigned, "" if assigned else "; ".join(who) or "a session that is gone already"


def _writers(run: Run, side: psycopg.Connection[Any]) -> dict[str, int]:
    """Transactions that write to the host's tables: virtual transaction id -> pid."""
    s = run.settings
    found = side.execute(
        """
        SELECT DISTINCT l.virtualtransaction, coalesce(l.pid, 0) FROM pg_catalog.pg_locks AS l
        WHERE l.granted AND l.locktype = 'relation'
          AND l.mode IN ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
          AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
          AND l.relation IN (
            SELECT host FROM pg_catalog.unnest(%(tables)s::oid[]) AS host
            UNION SELECT part.relid
            FROM pg_catalog.unnest(%(tables)s::oid[]) AS host, pg_catalog.pg_partition_tree(host) AS part)
        """,
        {"tables": [relation(side, *name.split(".", 1)) for name in s.host_tables]},
    )
    return dict(found.fetchall())


def _writers_left(run: Run, side: psycopg.Connection[Any], patience: float, watch: Watch) -> str | None:
    began = time.monotonic()
    waited_for = _writers(run, side)
    while not run.stopping.is_set():
        now = _writers(run, side)
        waited_for = {name: pid for name, pid in waited_for.items() if name in now}
        if not waited_for:
            return None
        those = ", ".join(f"pid {pid}" if pid else "a prepared transaction" for pid in waited_for.values())
        run.waiting = f"waiting for transactions that change leads or activities: {those}"
        watch()
        if time.monotonic() - began >= patience:
            return those
        run.stopping.wait(0.05)
    return None


def _noted(run: Run, side: psycopg.Connection[Any]) -> Iterator[Any]:
    query = render(
        "SELECT DISTINCT lead_id FROM {schema}.unsettled_leads WHERE %s OR lead_id > %s ORDER BY lead_id LIMIT %s",
        run.settings,
    )
    after = None
    while page := side.execute(query, (after is None, after, _PAGE)).fetchall():
        yield from (lead for (lead,) in page)
        after = page[-1][0]


def _settle(run: Run, victim: psycopg.Connection[Any], lead: Any, patience: float) -> int | None:
    """How many assignments changed; None if the lead stays locked."""
    began = time.monotonic()
    while True:
        try:
            row = victim.execute(render("SELECT {schema}.backfill_settle(%s)", run.settings), (lead,)).fetchone()
        except psycopg.Error as error:
            if error.sqlstate not in VICTIM:
                raise
            if time.monotonic() - began >= patience or run.stopping.wait(_FIRST_PAUSE_S):
                return None
        else:
            return int(row[0]) if row else 0
