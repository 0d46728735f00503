"""The backfill's jobs in the database: where they stand, and pause, resume and stop from another shell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from leadprotect._sql import rows
from leadprotect.errors import InvalidRequest
from leadprotect.settings import Settings, current, ident

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from leadprotect._sql import AnyConnection


@dataclass(frozen=True)
class Job:
    """The backfill of one territory; leads, and times with time zone.

    `state` is new, running (or interrupted: nobody holds a lease), paused, stopped or done.
    `workers` counts leases that are not over.
    """

    territory: str
    state: str
    started_at: datetime | None
    ended_at: datetime | None
    scanned: int
    assigned: int
    deferred: int
    total: int
    workers: int
    request_reason: str | None


def jobs(conn: AnyConnection, territories: Sequence[str] = (), *, settings: Settings | None = None) -> list[Job]:
    """The jobs of `territories` (none: of all). Raises `InvalidRequest` for one that is not in the database."""
    s = settings or current()
    found = [Job(*row) for row in rows(conn, _JOBS.replace("{schema}", ident(s.schema)))]
    check_known(territories, [job.territory for job in found])
    return [job for job in found if job.territory in territories or not territories]


def pause(
    conn: AnyConnection, territories: Sequence[str] = (), *, reason: str | None = None, settings: Settings | None = None
) -> list[Job]:
    """Hold the backfill of `territories` (none: of all) after its current slices, until `resume`."""
    return _request(conn, territories, "pause", reason, settings)


def resume(conn: AnyConnection, territories: Sequence[str] = (), *, settings: Settings | None = None) -> list[Job]:
    """Take back a pause or a stop."""
    return _request(conn, territories, "run", None, settings)


def stop(
    conn: AnyConnection, territories: Sequence[str] = (), *, reason: str | None = None, settings: Settings | None = None
) -> list[Job]:
    """End the running backfill of `territories` (none: of all) after its current slices."""
    return _request(conn, territories, "stop", reason, settings)


def check_known(wanted: Sequence[str], known: Sequence[str]) -> None:
    """Raise `InvalidRequest` for a territory that is not in the database."""
    unknown = [code for code in wanted if code not in known]
    if unknown:
        listed = ", ".join(sorted(known)) or "none"
        message = f"territory {unknown[0]!r} is not in the database; known are: {listed}"
        raise InvalidRequest(message)


def _request(
    conn: AnyConnection, territories: Sequence[str], wanted: str, reason: str | None, settings: Settings | None
) -> list[Job]:
    s = settings or current()
    for job in jobs(conn, territories, settings=s):
        call = f"SELECT {ident(s.schema)}.backfill_request(%s, %s, %s)"
        rows(conn, call, (job.territory, wanted, reason))
    return jobs(conn, territories, settings=s)


_JOBS = """
SELECT j.territory,
       CASE WHEN j.request = 'pause' THEN 'paused'
            WHEN j.ended_at IS NOT NULL THEN 'done'
            WHEN j.request = 'stop' THEN 'stopped'
            WHEN j.started_at IS NULL THEN 'new'
            WHEN c.workers > 0 THEN 'running'
            ELSE 'interrupted' END,
       j.started_at, j.ended_at, c.scanned, c.assigned + j.retried,
       (SELECT count(*) FROM {schema}.backfill_deferred AS d WHERE d.territory = j.territory),
       {schema}.backfill_estimate(j.territory), c.workers, j.request_reason
FROM {schema}.backfill_jobs AS j,
  LATERAL (
    SELECT coalesce(sum(c.scanned), 0)::bigint AS scanned, coalesce(sum(c.assigned), 0)::bigint AS assigned,
           count(*) FILTER (WHERE c.finished_at IS NULL AND c.lease_until > clock_timestamp()) AS workers
    FROM {schema}.backfill_chunks AS c WHERE c.territory = j.territory) AS c
ORDER BY j.territory
"""
