"""The backfill's jobs in the database: where they stand, and pause, resume and stop from another shell."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from leadprotect.backfilled import Job
from leadprotect.database.memberships import grants
from leadprotect.database.statements import row, rows
from leadprotect.errors import BackfillError, InvalidRequest
from leadprotect.settings import Settings, current, ident, render

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg

    from leadprotect.database.drivers import AnyConnection


def list_jobs(conn: AnyConnection, territories: Sequence[str] = (), *, settings: Settings | None = None) -> list[Job]:
    """The jobs of `territories` (none: of all). Raises `InvalidRequest` for one that is not in the database."""
    s = settings or current()
    found = [Job(*row) for row in rows(conn, render("SELECT * FROM {schema}.backfill_status()", s))]
    check_known(territories, [job.territory for job in found])
    return [job for job in found if job.territory in territories or not territories]


def pause(
    conn: AnyConnection, territories: Sequence[str] = (), *, reason: str | None = None, settings: Settings | None = None
) -> list[Job]:
    """Hold the backfill of `territories` (none: of all) after its current slices, until `resume`."""
    return _request(conn, territories, "pause", reason, settings)


def resume(conn: AnyConnection, territories: Sequence[str] = (), *, settings: Settings | None = None) -> list[Job]:
    """Take back a pause or a stop, and give up guards that were not heard of for 60 seconds."""
    s = settings or current()
    release_guards(conn, s, silent_for=SILENT_S)
    return _request(conn, territories, "run", None, s)


def stop(
    conn: AnyConnection, territories: Sequence[str] = (), *, reason: str | None = None, settings: Settings | None = None
) -> list[Job]:
    """End the running backfill of `territories` (none: of all) after its current slices."""
    return _request(conn, territories, "stop", reason, settings)


def known_territories(conn: AnyConnection, s: Settings) -> list[str]:
    """The codes that have a job. Raises `BackfillError` with the grant for a login that sees none of them."""
    known = rows(conn, render("SELECT territory FROM {schema}.backfill_jobs ORDER BY 1", s))
    if not known:  # each territory has its job, from the migration on
        (login,) = row(conn, "SELECT current_user::text")
        grant = grants(conn, [s.role("operator")], login)
        raise BackfillError(f"login {login} sees no territory of the backfill. A DBA can run: {grant}")
    return [code for (code,) in known]


def check_known(wanted: Sequence[str], known: Sequence[str]) -> None:
    """Raise `InvalidRequest` for a territory that is not in the database."""
    unknown = [code for code in wanted if code not in known]
    if unknown:
        listed = ", ".join(sorted(known)) or "none"
        meant = next((code for code in known if code.lower() == unknown[0].lower()), None)
        message = f"territory {unknown[0]!r} is not in the database; known are: {listed}"
        raise InvalidRequest(f"{message}. Did you mean {meant}?" if meant else message)


def _request(
    conn: AnyConnection, territories: Sequence[str], wanted: str, reason: str | None, settings: Settings | None
) -> list[Job]:
    s = settings or current()
    for job in list_jobs(conn, territories, settings=s):
        call = render("SELECT {schema}.backfill_request(%s, %s, %s)", s)
        rows(conn, call, (job.territory, wanted, reason))
    return list_jobs(conn, territories, settings=s)


SILENT_S = 60.0
"""A guard that was not heard of for so long is dead, and can stop nothing any more: the backfill stops for it."""


def release_guards(conn: AnyConnection, settings: Settings, *, silent_for: float) -> None:
    """Give up the guards that were not heard of for `silent_for` seconds; before their revision there is none."""
    known = "SELECT FROM pg_catalog.to_regprocedure(%s) AS p WHERE p IS NOT NULL"
    if rows(conn, known, (f"{ident(settings.schema)}.guard_release(interval)",)):
        rows(conn, render("SELECT {schema}.guard_release(make_interval(secs => %s))", settings), (silent_for,))


PAUSE_S = 5.0
"""How long a running backfill is waited for; a downgrade that meets one wins, so it need not be long."""


_QUIET_S = 1.2  # workers read the request once a second


_POLL_S = 0.05


def pause_backfill(conn: psycopg.Connection[Any], settings: Settings, reason: str) -> list[str]:
    """Ask every unfinished backfill to pause, and wait until none is in a slice; returns the territories.

    `conn` is in autocommit, so that the workers see the request. One that does not answer within
    `PAUSE_S` seconds is no obstacle: its slice is one transaction, and gives way to any other.
    """
    schema = ident(settings.schema)
    if conn.execute("SELECT to_regprocedure(%s)", (f"{schema}.backfill_status()",)).fetchone() == (None,):
        return []
    unfinished = conn.execute(
        render("SELECT territory FROM {schema}.backfill_status() WHERE state IN ('running', 'interrupted')", settings)
    ).fetchall()
    for (territory,) in unfinished:
        conn.execute(render("SELECT {schema}.backfill_request(%s, 'pause', %s)", settings), (territory, reason))
    if unfinished:
        _wait_for_workers(conn, f"{schema}.backfill_chunks")
    return [territory for (territory,) in unfinished]


def _wait_for_workers(conn: psycopg.Connection[Any], chunks: str) -> None:
    """Until no session of a backfill is left, or none has touched its chunks for a while."""
    query = """
        SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_activity AS a
                       WHERE a.application_name = 'leadprotect backfill' AND a.datname = current_database()),
               EXISTS (SELECT FROM pg_catalog.pg_locks AS l
                       WHERE l.relation = %s::regclass AND l.pid <> pg_catalog.pg_backend_pid())
        """
    end = time.monotonic() + PAUSE_S
    quiet_since = time.monotonic()
    while time.monotonic() < end:
        alive, busy = conn.execute(query, (chunks,)).fetchall()[0]
        if busy:
            quiet_since = time.monotonic()
        if not alive or time.monotonic() - quiet_since > _QUIET_S:
            return
        time.sleep(_POLL_S)
