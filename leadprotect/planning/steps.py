"""The pending revisions: what each locks, how large that is, and what it costs in time, disk and WAL."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect import phases
from leadprotect.authoring.chain import read_revision
from leadprotect.backfilling.ready import missing_indexes
from leadprotect.database.catalog import one, relation
from leadprotect.database.modes import in_sql
from leadprotect.settings import Settings, ident, render, table
from leadprotect.settings.names import host_indexes
from leadprotect.settings.sources import column_sql, qualifies

if TYPE_CHECKING:
    from leadprotect.settings.activities import Activities

SAMPLE = 20_000
"""Rows that are read and sorted to measure this server; the rest is by proportion."""

BUILDS = "lp_0009_expand_indexes"
"""The only revision whose time grows with the data: it builds indexes on the host's tables."""

_SMALL = 1_000_000  # bytes that are read at once
_TWICE = 2.0  # CREATE INDEX CONCURRENTLY reads the table twice
_FULL = 0.9  # https://www.postgresql.org/docs/current/sql-createindex.html: fillfactor of a B-tree
_PAGE = 8192
_PER_ENTRY = 8 + 4  # header of an index entry, and the pointer to it in its page
# measured on a host with a million leads, PostgreSQL 18: 14 revisions wrote 2.1 MB of WAL, and 1.7 MB of disk stayed
_METADATA_S, _METADATA_WAL, _METADATA_DISK = 0.2, 150_000, 120_000


@dataclass(frozen=True)
class TableSize:
    """A table of the host that is touched, in bytes; `rows` as the catalog or the planner says, None if unreadable."""

    name: str
    rows: int | None
    bytes: int
    index_bytes: int


@dataclass(frozen=True)
class Lock:
    """The strongest lock beyond ACCESS SHARE that a revision takes on a table of the host, and what stops behind it."""

    table: str
    mode: str
    stops: str


@dataclass(frozen=True)
class PendingRevision:
    """A pending revision; `seconds` None where nothing could be measured, `how` says what the figures rest on.

    `disk_bytes` stay, `wal_bytes` go to archive and replicas.
    """

    revision: str
    phase: str
    title: str
    locks: tuple[Lock, ...]
    seconds: float | None
    disk_bytes: int
    wal_bytes: int
    how: str
    asks_gate: bool


@dataclass(frozen=True)
class Build:
    """An index to be built on a table of the host, from a sample; `seconds` None where it can't be read."""

    index: str
    table: str
    rows: int
    sampled: int
    seconds: float | None
    bytes: int
    why_not: str = ""


def steps(
    conn: psycopg.Connection[Any], s: Settings, revisions: tuple[str, ...], unseen: list[str]
) -> list[PendingRevision]:
    """The revisions `revisions`, each with its locks and costs; what can't be measured is added to `unseen`."""
    builds = _builds(conn, s, unseen) if BUILDS in revisions else []
    return [_step(s, revision, builds if revision == BUILDS else []) for revision in revisions]


def touched(conn: psycopg.Connection[Any], s: Settings) -> list[TableSize]:
    """The tables of the host that the settings name, with their sizes; a partitioned one with all its parts."""
    names = dict.fromkeys((*s.host_tables, *(child.table for child in s.lead_tables)))
    found = ((name, relation(conn, *name.split(".", 1))) for name in names)
    return [_size(conn, name, oid) for name, oid in found if oid]


def _size(conn: psycopg.Connection[Any], name: str, oid: int) -> TableSize:
    """As the server measures it, or as the catalog has it where somebody holds the table."""
    query = """
        SELECT sum(pg_relation_size(c.oid))::bigint, sum(pg_table_size(c.oid))::bigint,
               sum(pg_indexes_size(c.oid))::bigint
        FROM pg_class AS c
        WHERE c.oid IN (SELECT relid FROM pg_partition_tree(%s::oid::regclass) UNION SELECT %s::oid)
        """
    noted = """
        SELECT sum(c.relpages)::bigint * current_setting('block_size')::bigint, (
          SELECT coalesce(sum(i.relpages), 0)::bigint * current_setting('block_size')::bigint
          FROM pg_index AS k JOIN pg_class AS i ON i.oid = k.indexrelid WHERE k.indrelid = %s)
        FROM pg_class AS c WHERE c.oid = %s
        """
    try:
        with conn.transaction():
            main, size, indexes = conn.execute(query, (oid, oid)).fetchall()[0]
    except psycopg.errors.LockNotAvailable as error:
        spare_patience(conn, error)
        size, indexes = conn.execute(noted, (oid, oid)).fetchall()[0]
        return TableSize(name, _estimated_rows(conn, oid), size, indexes)
    return TableSize(name, _rows(conn, name, oid, main) if main else 0, size, indexes)


def spare_patience(conn: psycopg.Connection[Any], error: Exception) -> None:
    """Whoever waited once for somebody's lock does not wait again for it with the next question."""
    if isinstance(error, psycopg.errors.LockNotAvailable):
        conn.execute("SET LOCAL lock_timeout = '20ms'")


def _rows(conn: psycopg.Connection[Any], name: str, oid: int, size: int) -> int | None:
    """As the catalog counts them; of a table that nobody analysed by its pages, and a small one is counted."""
    if counted := _estimated_rows(conn, oid):
        return counted
    try:
        with conn.transaction():
            if size <= _SMALL:
                return int(one(conn, f"SELECT count(*) FROM {table(name)}"))
            (explained,) = conn.execute(f"EXPLAIN (FORMAT JSON) SELECT FROM {table(name)}".encode()).fetchall()[0]
            return int(explained[0]["Plan"]["Plan Rows"])
    except psycopg.Error as error:
        spare_patience(conn, error)
        return None


def _step(s: Settings, revision: str, builds: list[Build]) -> PendingRevision:
    read = read_revision(phases.file(revision))
    phase = phases.phase(revision)
    seconds: float | None = _METADATA_S
    how = "catalog only, whatever the size of the tables"
    if builds:
        measured = [build.seconds for build in builds if build.seconds is not None]
        seconds = _METADATA_S + sum(measured) if len(measured) == len(builds) else None
        how = "; ".join(_said(build) for build in builds)
    size = sum(build.bytes for build in builds)
    return PendingRevision(
        revision,
        phase,
        read.doc.strip().splitlines()[0].rstrip("."),
        tuple(_locks(s, read.values)),
        seconds,
        size + _METADATA_DISK,
        size + _METADATA_WAL,
        how,
        phase == "contract",
    )


def _locks(s: Settings, declared: dict[str, Any]) -> list[Lock]:
    """As the revision declares them, for the tables of these settings."""
    activities = list(dict.fromkeys(one.stands_on for one in s.activities))
    of = {"leads": [s.leads_table], "activities": activities}
    modes: dict[str, str] = {}
    for key, mode in declared["locks"]["upgrade"].items():
        modes |= dict.fromkeys(of[key], mode)
    if "child_locks" in declared and s.host_rls != "off":
        modes |= dict.fromkeys((child.table for child in s.lead_tables), declared["child_locks"]["upgrade"])
    return [Lock(name, in_sql(mode), _STOPS[mode]) for name, mode in modes.items()]


_STOPS = {
    "ShareUpdateExclusiveLock": "nobody but DDL and VACUUM",
    "ShareRowExclusiveLock": "writers, for milliseconds",
    "AccessExclusiveLock": "readers and writers, for milliseconds",
}


def _said(build: Build) -> str:
    if build.seconds is None:
        return f"{build.index}: not measured ({build.why_not})"
    if not build.sampled:
        return f"{build.index}: {build.table} is empty"
    return (
        f"{build.index} over {build.rows:,} rows of {build.table}: reading and sorting {build.sampled:,} of them "
        "was measured, an index is built from two readings"
    )


def _builds(conn: psycopg.Connection[Any], s: Settings, unseen: list[str]) -> list[Build]:
    """The indexes that are not there yet."""
    keys = dict(
        zip(host_indexes(s), [_leads_keys(s), *(_activities_keys(s, one) for one in s.activities)], strict=True)
    )
    found = []
    for name, of in missing_indexes(conn, s):
        oid = relation(conn, *of.split(".", 1))
        if oid is None:
            continue
        build = _measured(conn, name, of, oid, keys[name])
        if build.why_not:
            unseen.append(f"how long an index on {of} takes: {build.why_not}")
        found.append(build)
    return found


def _measured(conn: psycopg.Connection[Any], name: str, of: str, oid: int, shape: tuple[list[str], str]) -> Build:
    """What reading and sorting a sample of the keys takes here; bounded by its rows, not by the table."""
    rows = _estimated_rows(conn, oid)
    keys, condition = shape
    share = min(100.0, 100.0 * SAMPLE / max(rows, 1))
    widths = " + ".join(f"coalesce(pg_column_size({key}), 0)" for key in keys)
    asked = f"""
        SELECT count(*), count(*) FILTER (WHERE kept), coalesce(sum(width) FILTER (WHERE kept), 0)::bigint
        FROM (SELECT {widths} AS width, ({condition}) IS TRUE AS kept FROM {table(of)} AS v TABLESAMPLE SYSTEM ({share})
              ORDER BY {", ".join(keys)} LIMIT {10 * SAMPLE}) AS sampled
        """
    began = time.perf_counter()
    try:
        with conn.transaction():
            sampled, kept, width = conn.execute(asked.encode()).fetchall()[0]
    except psycopg.errors.InsufficientPrivilege:
        return Build(name, of, rows, 0, None, 0, f"GRANT SELECT ON {table(of)} TO {_me(conn)};")
    except psycopg.Error as error:
        spare_patience(conn, error)
        return Build(name, of, rows, 0, None, 0, str(error.diag.message_primary))
    took = time.perf_counter() - began
    if not sampled:
        return Build(name, of, rows, 0, 0.0, _PAGE)
    rows = max(rows, sampled)
    entries = rows * kept / sampled
    size = _PAGE + round(entries * (width / max(kept, 1) + _PER_ENTRY) / _FULL)
    return Build(name, of, rows, sampled, took / sampled * rows * _TWICE, size)


def _estimated_rows(conn: psycopg.Connection[Any], oid: int) -> int:
    query = """
        SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM pg_class AS c
        WHERE c.relkind = 'r' AND c.oid IN (SELECT relid FROM pg_partition_tree(%s::oid::regclass) UNION SELECT %s::oid)
        """
    return int(one(conn, query, oid, oid))


def _leads_keys(s: Settings) -> tuple[list[str], str]:
    # of its own row: no other table is read beside it
    return [render("{territory_of_here}", s), ident(s.lead_id_column)], "true"


def _activities_keys(s: Settings, source: Activities) -> tuple[list[str], str]:
    lead = render(f"{{source_lead__{source.name}}}", s)
    if source.base_table:
        return [lead, column_sql(source.id_column)], "true"
    columns = (source.at_column, source.id_column, source.user_id_column)
    return [lead, *map(column_sql, columns)], qualifies(s, source)


def _me(conn: psycopg.Connection[Any]) -> str:
    return ident(str(one(conn, "SELECT current_user")))
