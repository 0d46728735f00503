"""What a guard does to the database: hold and resume the backfill, cancel, sweep, roll back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.backfilling import jobs
from leadprotect.database.catalog import one
from leadprotect.database.connection import connect
from leadprotect.errors import InvalidRequest, LeadProtectError, PreflightError, SettingsError
from leadprotect.migration import locks
from leadprotect.migration.rollback import Event, rollback
from leadprotect.preflight.version_table import revision
from leadprotect.settings import Settings, ident, table
from leadprotect.settings.names import host_indexes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from alembic.config import Config

REASON = "leadprotect guard"
"""What the reason of each pause of ours begins with: no other pause is taken back."""

_LOCK_WAIT_S = 1.0
_FINAL = (PreflightError, InvalidRequest, SettingsError)


def hold(conn: psycopg.Connection[Any], s: Settings, why: str) -> list[str]:
    """Pause what is unfinished, and wait until no slice is under way; the territories that were paused by it."""
    return jobs.pause_backfill(conn, s, f"{REASON}: {why}" if why else REASON)


def paused(conn: psycopg.Connection[Any], s: Settings, *, by: str = "") -> list[str]:
    """The territories whose backfill is paused, for a reason that begins with `by`."""
    if one(conn, "SELECT pg_catalog.to_regprocedure(%s)", f"{ident(s.schema)}.backfill_status()") is None:
        return []
    found = [job for job in jobs.list_jobs(conn, settings=s) if job.state == "paused"]
    return [job.territory for job in found if (job.request_reason or "").startswith(by)]


def take_back(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    """Take back the pauses of guards, and no pause of anybody else; the territories."""
    if ours := paused(conn, s, by=REASON):
        jobs.resume(conn, ours, settings=s)
    return ours


def cancel_ddl(conn: psycopg.Connection[Any]) -> int:
    """Cancel what migrations of ours run in this database under this login; how many statements there were.

    A process that is killed leaves its statement running in the server; a statement that is cancelled
    takes its transaction back.
    """
    query = """
        SELECT count(*) FILTER (WHERE pg_catalog.pg_cancel_backend(a.pid)) FROM pg_catalog.pg_stat_activity AS a
        WHERE a.application_name = %s AND a.datname = current_database() AND a.usename = session_user
          AND a.state <> 'idle' AND a.pid <> pg_catalog.pg_backend_pid()
        """
    return int(one(conn, query, locks.APPLICATION))


def sweep(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    """Drop indexes of ours on the host's tables that a cancelled build left invalid; their names.

    Under the lock of migrations, so that none is being built. Raises `LockUnavailable` where that is taken.
    """
    query = """
        SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_index AS i
        JOIN pg_catalog.pg_class AS c ON c.oid = i.indexrelid
        JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE NOT i.indisvalid AND c.relname = ANY (%s)
          AND i.indrelid = ANY (SELECT pg_catalog.to_regclass(name) FROM unnest(%s::text[]) AS name) ORDER BY 2
        """
    found = conn.execute(query, (list(host_indexes(s)), [table(name) for name in s.host_tables])).fetchall()
    if found:
        with locks.one_at_a_time(conn, s, wait=_LOCK_WAIT_S):
            conn.execute("SELECT set_config('lock_timeout', %s, false)", (f"{_LOCK_WAIT_S:g}s",))
            for schema, name in found:
                conn.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {ident(schema, name)}")
    return [name for _, name in found]


@dataclass(frozen=True)
class Returned:
    """How an attempt to roll back ended; `final` where another one could not help."""

    why: str
    verified: bool = False
    final: bool = False


def roll_back(
    settings: Settings,
    config: Config | None,
    *,
    to: str | None,
    expected: Collection[str | None],
    tell: Callable[[Event], None],
) -> Returned:
    """Go back to the revision `to` (None: the base) and verify it; never raises what a database or a host may cause.

    A database that stands at none of `expected`, where this run or an attempt before this one left it, was
    migrated by somebody else meanwhile: that is not undone without asking.
    """
    try:
        with connect(settings) as conn:
            present = revision(conn, settings)
        if present not in expected:
            return Returned(f"somebody else migrated it meanwhile: {_named(present)}", final=True)
        done = rollback(to or "base", config=config, on_event=tell)
    except (LeadProtectError, psycopg.Error) as error:
        return Returned(" ".join(str(error).split()), final=isinstance(error, _FINAL))
    if done.problems:
        return Returned(f"rolled back, but not as it must be: {'; '.join(done.problems)}", final=True)
    return Returned(f"from {_named(done.before)} to {_named(done.after)} in {done.seconds:.1f} s", verified=True)


def _named(present: str | None) -> str:
    return present or "the base"
