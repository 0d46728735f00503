"""Gives every lead with a qualifying activity its owner, while the database is live."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import make_conninfo

from leadprotect import settings as _settings
from leadprotect._sql import driver_connection, mapped_errors
from leadprotect.errors import BackfillIncomplete, InvalidRequest, SettingsError
from leadprotect.settings import Settings, ident, names
from leadprotect.worker import Run, Worker

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from leadprotect._sql import AnyConnection

_TICK_S = 0.2


@dataclass(frozen=True)
class Progress:
    """Where a running backfill stands: rows, rows per second, seconds."""

    territories: tuple[str, ...]
    scanned: int
    assigned: int
    total: int
    rate: float
    seconds: float
    slice_rows: int
    deferred: int
    reason: str | None

    @property
    def eta(self) -> float | None:
        """Seconds that are left at the present rate."""
        return max(self.total - self.scanned, 0) / self.rate if self.rate > 0 else None


@dataclass(frozen=True)
class Backfilled:
    """What a backfill did in one territory; `missing` counts leads that should have an owner."""

    territory: str
    scanned: int
    assigned: int
    missing: int


def backfill(  # noqa: PLR0913 - the options of the command, all keyword-only
    conn: AnyConnection | str | None,
    territories: Sequence[str] | str,
    *,
    batch_size: int = 20_000,
    workers: int = 1,
    lease: float = 30.0,
    on_progress: Callable[[Progress], None] | None = None,
    settings: Settings | None = None,
) -> list[Backfilled]:
    """Assign every lead of `territories` to the user of its newest qualifying activity.

    `conn` says which database: a URL, None for the settings' own, or a connection, on whose server
    sessions of our own are opened, because each slice is committed at once; yours is not touched.
    `batch_size` is rows per chunk, `lease` seconds. Raises `InvalidRequest`, `BackfillError`, and
    `BackfillIncomplete` when leads that need an owner have none at the end.
    """
    s = settings or _settings.current()
    codes = (territories,) if isinstance(territories, str) else tuple(dict.fromkeys(territories))
    if not codes:
        raise InvalidRequest("name at least one territory")
    if batch_size < 1 or workers < 1:
        raise InvalidRequest("batch_size and workers must be at least 1")
    run = Run(s, _conninfo(conn, s), codes, batch_size, lease)
    with (
        mapped_errors(),
        psycopg.connect(run.conninfo, autocommit=True, application_name="leadprotect backfill") as side,
    ):
        total = _start(side, run)
        _work(run, workers, total, on_progress)
        return _finish(side, run)


def _conninfo(conn: AnyConnection | str | None, s: Settings) -> str:
    if conn is None or isinstance(conn, str):
        url = conn or s.database_url
        if not url:
            raise SettingsError("database_url is missing: set DATABASE_URL or the key in [leadprotect]")
        return url
    info = driver_connection(conn).info
    return make_conninfo(info.dsn, password=info.password or None)


def _start(side: psycopg.Connection[Any], run: Run) -> int:
    for code in run.territories:
        side.execute(run.call("backfill_start", "%s, %s"), (code, fingerprint(run.settings)))
    return 0


def fingerprint(s: Settings) -> str:
    """The settings on which the result depends, as `backfill_start` writes them."""
    known = names(s)
    keys = (
        "leads", "lead_id", "territory", "activities", "activity_id", "activity_lead_id",
        "activity_user_id", "activity_kind", "activity_at",
    )  # fmt: skip
    return "; ".join([*(known[key] for key in keys), ", ".join(sorted(s.qualifying_kinds))])


def _work(run: Run, workers: int, total: int, on_progress: Callable[[Progress], None] | None) -> None:
    began = time.monotonic()
    threads = [Worker(run, number + 1) for number in range(workers)]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            threads[0].join(_TICK_S)
            if on_progress:
                on_progress(_progress(run, total, time.monotonic() - began))
    finally:
        run.stopping.set()
        for thread in threads:
            thread.join()
    if run.failed:
        raise run.failed[0]
    if on_progress:
        on_progress(_progress(run, total, time.monotonic() - began))


def _progress(run: Run, total: int, seconds: float) -> Progress:
    scanned = sum(run.scanned.values())
    rate = scanned / seconds if seconds else 0.0
    return Progress(
        run.territories, scanned, sum(run.assigned.values()), max(total, scanned), rate, seconds,
        run.slice_rows, run.deferred, run.waiting,
    )  # fmt: skip


def _finish(side: psycopg.Connection[Any], run: Run) -> list[Backfilled]:
    results = []
    for code in run.territories:
        waiting = side.execute(
            f"SELECT lead_id FROM {ident(run.settings.schema)}.backfill_deferred WHERE territory = %s", (code,)
        ).fetchall()
        for (lead,) in waiting:
            side.execute(run.call("backfill_retry", "%s, %s"), (code, lead))
        side.execute(run.call("backfill_finish", "%s"), (code,))
        (missing,) = side.execute(
            f"SELECT count(*) FROM {ident(run.settings.schema)}.unowned_leads(%s)", (code,)
        ).fetchone() or (0,)
        results.append(Backfilled(code, run.scanned.get(code, 0), run.assigned.get(code, 0), missing))
    if any(result.missing for result in results):
        text = ", ".join(f"{r.missing} in {r.territory}" for r in results if r.missing)
        raise BackfillIncomplete(f"leads with a qualifying activity, but without an owner: {text}; run it again")
    return results
