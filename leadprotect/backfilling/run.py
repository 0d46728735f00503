"""Gives every lead with a qualifying activity its owner, while the database is live.

Workers claim chunks of leads by a lease, and commit them in slices of about 50 ms that always give
way; a slice moves its chunk's cursor in the transaction that writes its rows. So a run may end at
any moment, by Ctrl-C or kill -9, and the next one goes on where it ended.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal, overload

from psycopg.conninfo import make_conninfo

from leadprotect.backfilled import Backfilled
from leadprotect.backfilling import ending, ready, verify
from leadprotect.backfilling.progress import Watch, counts
from leadprotect.backfilling.sessions import Session
from leadprotect.backfilling.throttle import APPLICATION, INTERVAL_S, Throttle
from leadprotect.backfilling.worker import Run, Worker
from leadprotect.database.drivers import driver_connection
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.errors import (
    BackfillError,
    BackfillIncomplete,
    BackfillStopped,
    InvalidRequest,
)
from leadprotect.preflight.columns import in_text
from leadprotect.settings import current, parse, render, url
from leadprotect.settings.sources import fingerprint, owned_by

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import psycopg

    from leadprotect.backfilled import Estimate, Locked
    from leadprotect.backfilling.progress import Progress
    from leadprotect.backfilling.signals import Limits
    from leadprotect.database.drivers import AnyConnection
    from leadprotect.database.opening import Address
    from leadprotect.settings import Settings

    Watcher = Callable[[Progress], None]

BATCH_SIZE = 20_000
LARGEST_BATCH = 10_000_000
"""A chunk is claimed in one short statement, which looks for its end; the server counts in 32 bits."""

LEASE_S = 30.0
PATIENCE_S = 30.0
_TICK_S = 0.05
# requests are read once a second, on a server that answers within a second or two
_STOP_STANDS_S = 3 * INTERVAL_S


@overload
def backfill(
    conn: AnyConnection | str | None,
    territories: Sequence[str] | str,
    *,
    batch_size: int = ...,
    workers: int = ...,
    dry_run: Literal[False] = ...,
    lease: float = ...,
    patience: float = ...,
    limits: Limits | None = ...,
    gate: Callable[[], str | None] | None = ...,
    on_progress: Watcher | None = ...,
    settings: Settings | None = ...,
) -> list[Backfilled]: ...


@overload
def backfill(
    conn: AnyConnection | str | None,
    territories: Sequence[str] | str,
    *,
    batch_size: int = ...,
    workers: int = ...,
    dry_run: Literal[True],
    settings: Settings | None = ...,
) -> list[Estimate]: ...


def backfill(
    conn: AnyConnection | str | None,
    territories: Sequence[str] | str,
    *,
    batch_size: int = BATCH_SIZE,
    workers: int = 1,
    dry_run: bool = False,
    lease: float = LEASE_S,
    patience: float = PATIENCE_S,
    limits: Limits | None = None,
    gate: Callable[[], str | None] | None = None,
    on_progress: Watcher | None = None,
    settings: Settings | None = None,
) -> list[Backfilled] | list[Estimate]:
    """Assign every lead of `territories` to the user of its newest qualifying activity.

    `conn` says which database: a URL, None for the settings' own, or a connection, on whose server
    sessions of our own are opened, since every slice is committed at once; yours is not touched.
    `batch_size` is leads per chunk, at most 10 million; `workers` sessions work on them; a chunk of a
    worker that died is taken over after `lease` seconds; leads that somebody holds are waited for
    `patience` seconds at the end. `limits` say when to slow down; `gate` is asked once a second and
    returns why to hold, or None. `dry_run` estimates from a sample and writes nothing. A
    KeyboardInterrupt ends it after the current slices.

    Raises `InvalidRequest`, `PreflightError` and `BackfillError` before anything is written, `BackfillStopped` when
    somebody asked for it, and `BackfillIncomplete` when leads that need an owner have none at the end.
    """
    s = settings or current()
    codes = (territories,) if isinstance(territories, str) else tuple(dict.fromkeys(territories))
    _check_arguments(codes, batch_size=batch_size, workers=workers, lease=lease)
    address = _address(conn, s)
    with Session(address) as side:
        s = in_text(side.conn, s)
        ready.check_ready(side.conn, s, codes, read_only=dry_run)
        if dry_run:
            return verify.estimate_backfill(side.conn, codes, settings=s)
        throttle = Throttle(address, s, codes, limits=limits, gate=gate)
        run = Run(s, address, codes, batch_size, lease, throttle)
        with mapped_errors():
            if index := ready.missing_index(side.conn, s):
                return _nothing_left(run, side.conn, index)
            return _run(run, side, workers, patience, on_progress or _nobody)


def _check_arguments(codes: tuple[str, ...], *, batch_size: int, workers: int, lease: float) -> None:
    if not codes:
        message = "name at least one territory"
        raise InvalidRequest(message)
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value < 1:
            raise InvalidRequest(f"{name} is {value}; it must be at least 1")
    if batch_size > LARGEST_BATCH:
        raise InvalidRequest(f"batch_size is {batch_size}; it must be at most {LARGEST_BATCH:,}")
    if lease <= 0:
        raise InvalidRequest(f"lease is {lease:g} s; it must be longer than a slice")


def _address(conn: AnyConnection | str | None, s: Settings) -> Address:
    if conn is None or isinstance(conn, str):
        # parsed like the setting itself, so that a mistake in it never prints a password
        given = parse({"database_url": conn}) if conn else s
        return lambda: url(given)
    info = driver_connection(conn).info
    return make_conninfo(info.dsn, password=info.password or None)


def _nobody(_progress: Progress) -> None:
    """Nobody watches."""


def _run(run: Run, side: Session, workers: int, patience: float, on_progress: Watcher) -> list[Backfilled]:
    _start(run, side.conn)
    watch = Watch(run, side, on_progress)
    run.throttle.start()
    try:
        _work(run, workers, watch)
        locked, unsettled = side.do(lambda conn: _close(run, conn, patience, watch))
        if run.stopping.is_set():
            raise BackfillStopped(f"stopped from another shell ({run.throttle.stop_asked}); the same command goes on")
    finally:
        run.throttle.end()
    if not unsettled:
        side.do(lambda conn: _finish(run, conn))
    watch(done=True)
    return side.do(lambda conn: _results(run, conn, locked, unsettled))


def _start(run: Run, conn: psycopg.Connection[Any]) -> None:
    """Begin, or go on; a stop that stands is taken back when the runs that it was meant for could read it."""
    query = render(
        """
        SELECT EXISTS (SELECT FROM {schema}.backfill_jobs WHERE territory = ANY (%s) AND request = 'stop')
           AND EXISTS (
             SELECT FROM pg_catalog.pg_stat_activity WHERE application_name = %s AND datname = current_database())
        """,
        run.settings,
    )
    until = time.monotonic() + _STOP_STANDS_S
    while conn.execute(query, (list(run.territories), APPLICATION)).fetchone() == (True,) and time.monotonic() < until:
        time.sleep(_TICK_S)
    for code in run.territories:
        conn.execute(render("SELECT {schema}.backfill_start(%s, %s)", run.settings), (code, fingerprint(run.settings)))


def _close(run: Run, conn: psycopg.Connection[Any], patience: float, watch: Watch) -> tuple[list[Locked], str | None]:
    with run.connect() as victim:
        locked = ending.retry_deferred(run, conn, victim, patience, watch)
        return locked, ending.settle_noted(run, conn, victim, patience, watch)


def _finish(run: Run, conn: psycopg.Connection[Any]) -> None:
    for code in run.territories:
        conn.execute(render("SELECT {schema}.backfill_finish(%s)", run.settings), (code,))


def _nothing_left(run: Run, side: psycopg.Connection[Any], index: str) -> list[Backfilled]:
    try:
        return _results(run, side, [], None)
    except BackfillIncomplete as error:
        raise BackfillError(
            f"index {index} is missing, without it every slice would read whole tables, and {error}. Before contract, "
            "alembic upgrade head builds the index; after contract owners change by hand only"
        ) from None


def _work(run: Run, workers: int, watch: Watch) -> None:
    threads = [Worker(run, number + 1) for number in range(workers)]
    try:
        for thread in threads:  # Ctrl-C may come between two of them, too
            thread.start()
        while not all(thread.ended.is_set() for thread in threads):
            watch()
            for thread in threads:
                thread.ended.wait(_TICK_S / workers)
    finally:
        run.stopping.set()
        for thread in threads:
            if thread.is_alive():  # one that is still being started does nothing any more
                thread.join()
    if run.errors:
        raise run.errors[0]
    if run.throttle.stop_asked is None:
        run.stopping.clear()


def _results(run: Run, side: psycopg.Connection[Any], locked: list[Locked], unsettled: str | None) -> list[Backfilled]:
    (outside,) = side.execute(render("SELECT {schema}.backfill_outside()", run.settings)).fetchone() or (0,)
    results = []
    for verified in verify.counted(side, run.territories, run.settings, deep=False):
        code = verified.territory
        scanned, assigned, _ = counts(run, side, [code])
        held = tuple(lead for lead in locked if lead.territory == code)
        results.append(Backfilled(code, scanned, assigned, held, verified, outside))
    problems = [f"{r.verified.missing:,} in {r.territory}" for r in results if r.verified.missing]
    if problems or locked or unsettled:
        text = f"leads with {owned_by(run.settings)} but no owner: {', '.join(problems) or 'none'}"
        by = "".join(f"; lead {lead.lead_id} is locked by {lead.blockers}" for lead in locked)
        message = f"{text}{by}{'; ' + unsettled if unsettled else ''}. Run the same command again"
        raise BackfillIncomplete(message, tuple(results))
    return results
