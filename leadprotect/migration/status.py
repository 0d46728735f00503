"""Where a protected database stands: revision, gate, backfill, quarantine, and what is in the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alembic.script import ScriptDirectory

from leadprotect.database.connection import row, rows
from leadprotect.errors import LockUnavailable
from leadprotect.migration import gate
from leadprotect.settings import Settings, current, ident, table
from leadprotect.settings.files import migrations

if TYPE_CHECKING:
    from datetime import datetime

    from leadprotect.database.connection import AnyConnection


@dataclass(frozen=True)
class Job:
    """The backfill of a territory; times in UTC, `request` is run, pause or stop."""

    territory: str
    started_at: datetime | None
    finished_at: datetime | None
    scanned: int
    assigned: int
    deferred: int
    request: str
    request_reason: str | None


@dataclass(frozen=True)
class Waiting:
    """A session that waits for a lock on a table of the host or of ours, and who holds it."""

    pid: int
    application: str
    seconds: float
    blocked_by: tuple[int, ...]


@dataclass(frozen=True)
class Status:
    """What `leadprotect status` shows; `phase` is none, expand, migrate, contract or unknown.

    It is unknown at a revision of a newer version; gate and backfill are not asked there, because
    that version may have changed them. `conditions` are those of the gate, empty before the migrate
    step; `quarantine` maps a table to its estimated rows; `invalid_indexes` are leftovers of
    cancelled builds.
    """

    revision: str | None
    head: str
    phase: str
    conditions: tuple[gate.Condition, ...]
    backfill: tuple[Job, ...]
    quarantine: dict[str, int]
    invalid_indexes: tuple[str, ...]
    waiting: tuple[Waiting, ...]


def status(conn: AnyConnection, *, settings: Settings | None = None) -> Status:
    """Read where the database stands; writes nothing and takes no lock that a writer could feel.

    Set a lock_timeout on `conn` if it must answer while somebody holds the host's tables exclusively.
    Raises `ProtectionUnavailable` without the role of an operator.
    """
    s = settings or current()
    scripts = ScriptDirectory(str(migrations()))
    present = revision(conn, s)
    phase = "none" if present is None else _phase(scripts, present)
    migrated = phase not in ("none", "unknown") and _exists(conn, ident(s.schema, "backfill_jobs"))
    return Status(
        present,
        scripts.get_current_head() or "",
        phase,
        backfill=_jobs(conn, s) if migrated else (),
        quarantine=_quarantine(conn, s),
        invalid_indexes=_invalid_indexes(conn, s),
        waiting=_waiting(conn, s),
        conditions=_conditions(conn, s) if migrated else (),
    )


def revision(conn: AnyConnection, settings: Settings) -> str | None:
    """The revision of ours that is applied; None at the base."""
    versions = ident(settings.version_table_schema, settings.version_table)
    if not _exists(conn, versions):
        return None
    found = rows(conn, f"SELECT version_num FROM {versions} WHERE version_num LIKE %s", (r"lp\_%",))
    return found[0][0] if found else None


def known_revisions(scripts: ScriptDirectory) -> set[str]:
    """Ids of the revisions that this version carries."""
    return {script.revision for script in scripts.walk_revisions()}


def _phase(scripts: ScriptDirectory, present: str) -> str:
    return str(scripts.get_revision(present).module.phase) if present in known_revisions(scripts) else "unknown"


def _conditions(conn: AnyConnection, s: Settings) -> tuple[gate.Condition, ...]:
    # asked last: only the gate reads the host's tables, so only it can meet a lock
    try:
        return tuple(gate.conditions(conn, settings=s))
    except LockUnavailable:
        return (gate.Condition("gate", met=False, detail="not asked: a lock is in the way", remedy="see who waits"),)


def _exists(conn: AnyConnection, name: str) -> bool:
    return row(conn, "SELECT to_regclass(%s) IS NOT NULL", (name,)) == (True,)


def _jobs(conn: AnyConnection, s: Settings) -> tuple[Job, ...]:
    schema = ident(s.schema)
    query = f"""
        SELECT j.territory, j.started_at AT TIME ZONE 'UTC', j.finished_at AT TIME ZONE 'UTC',
               (SELECT coalesce(sum(c.scanned), 0)::bigint FROM {schema}.backfill_chunks AS c
                WHERE c.territory = j.territory),
               (SELECT coalesce(sum(c.assigned), 0)::bigint FROM {schema}.backfill_chunks AS c
                WHERE c.territory = j.territory) + j.retried,
               (SELECT count(*) FROM {schema}.backfill_deferred AS d WHERE d.territory = j.territory),
               j.request, j.request_reason
        FROM {schema}.backfill_jobs AS j ORDER BY j.territory
        """
    return tuple(Job(*found) for found in rows(conn, query))


def _quarantine(conn: AnyConnection, s: Settings) -> dict[str, int]:
    query = """
        SELECT relname, greatest(reltuples, 0)::bigint FROM pg_catalog.pg_class
        WHERE relnamespace = pg_catalog.to_regnamespace(%s) AND relkind IN ('r', 'p') ORDER BY relname
        """
    return dict(rows(conn, query, (ident(s.quarantine),)))


def _invalid_indexes(conn: AnyConnection, s: Settings) -> tuple[str, ...]:
    query = """
        SELECT i.indexrelid::regclass::text FROM pg_catalog.pg_index AS i
        JOIN pg_catalog.pg_class AS c ON c.oid = i.indrelid
        WHERE NOT i.indisvalid AND (c.relnamespace = pg_catalog.to_regnamespace(%s)
          OR c.oid IN (pg_catalog.to_regclass(%s), pg_catalog.to_regclass(%s)))
        ORDER BY 1
        """
    names = (ident(s.schema), table(s.leads_table), table(s.activities_table))
    return tuple(found[0] for found in rows(conn, query, names))


def _waiting(conn: AnyConnection, s: Settings) -> tuple[Waiting, ...]:
    query = """
        SELECT DISTINCT a.pid, coalesce(a.application_name, ''),
               coalesce(extract(epoch FROM clock_timestamp() - a.query_start), 0)::float8,
               pg_catalog.pg_blocking_pids(a.pid)
        FROM pg_catalog.pg_locks AS l
        JOIN pg_catalog.pg_stat_activity AS a ON a.pid = l.pid
        JOIN pg_catalog.pg_class AS c ON c.oid = l.relation
        WHERE NOT l.granted AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
          AND (c.relnamespace = pg_catalog.to_regnamespace(%s)
            OR c.oid IN (pg_catalog.to_regclass(%s), pg_catalog.to_regclass(%s)))
        ORDER BY a.pid
        """
    names: tuple[Any, ...] = (ident(s.schema), table(s.leads_table), table(s.activities_table))
    return tuple(Waiting(found[0], found[1], found[2], tuple(found[3])) for found in rows(conn, query, names))
