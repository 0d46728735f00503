"""Delete the quarantine: what a downgrade to the base left, the audit included."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.database.sqlstates import mapped_errors
from leadprotect.errors import RollbackError
from leadprotect.migration import inventory, version_table
from leadprotect.migration.locks import LOCK_TIMEOUT_MS
from leadprotect.preflight import standing
from leadprotect.preflight.version_table import revision
from leadprotect.settings import Settings, current, ident, render

if TYPE_CHECKING:
    from collections.abc import Sequence

_KINDS = {
    "TABLE": "SELECT relname::text FROM pg_catalog.pg_class WHERE relnamespace = to_regnamespace(%s) "
    "AND relkind IN ('r', 'p') ORDER BY 1",
    # one that a column owns goes with its table
    "SEQUENCE": "SELECT relname::text FROM pg_catalog.pg_class AS c WHERE relnamespace = to_regnamespace(%s) "
    "AND relkind = 'S' AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d "
    "WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'a') ORDER BY 1",
    "ROUTINE": "SELECT oid::regprocedure::text FROM pg_catalog.pg_proc WHERE pronamespace = to_regnamespace(%s) "
    "ORDER BY 1",
    "TYPE": "SELECT typname::text FROM pg_catalog.pg_type WHERE typnamespace = to_regnamespace(%s) "
    "AND typtype = 'e' ORDER BY 1",
}


@dataclass(frozen=True)
class Quarantine:
    """What a purge would delete: tables with their rows, None where they were not counted, and bytes on disk."""

    schema: str
    rows: dict[str, int | None]
    bytes: int


def quarantine(conn: psycopg.Connection[Any], *, settings: Settings | None = None) -> Quarantine:
    """Look into the quarantine; raises `RollbackError` when there is none, or while a host-change is to put it back."""
    s = settings or current()
    with mapped_errors():
        if conn.execute("SELECT to_regnamespace(%s)", (ident(s.quarantine),)).fetchone() == (None,):
            applied = revision(conn, s)
            where = f"revision {applied} is applied and" if applied else "leadprotect is not installed, and"
            raise RollbackError(f"nothing to purge: {where} there is no schema {s.quarantine}; a downgrade makes one")
        if standing.taken_away(conn, s) and revision(conn, s):
            raise RollbackError(f"nothing to purge: {standing.TAKEN_AWAY}")
        size = conn.execute(
            "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_catalog.pg_class "
            "WHERE relnamespace = to_regnamespace(%s) AND relkind = 'r'",
            (ident(s.quarantine),),
        ).fetchall()[0][0]
        return Quarantine(s.quarantine, inventory.count(conn, s, s.quarantine), size)


def purge(conn: psycopg.Connection[Any], *, settings: Settings | None = None) -> Quarantine:
    """Delete the quarantine with every row in it, in one transaction of `conn`; returns what was deleted.

    An empty version table that an interrupted command left goes, too.
    Nothing outside the quarantine goes with it. Raises `RollbackError` when there is none, when
    somebody's object depends on it, which the message names, or while a host-change is to put it back.
    """
    s = settings or current()
    with mapped_errors():
        try:
            with conn.transaction():
                deleted = _purge(conn, s)
        except psycopg.errors.DependentObjectsStillExist as error:
            raise RollbackError(
                f"nothing was deleted: somebody's objects depend on the quarantine: {error.diag.message_detail}"
            ) from None
        if revision(conn, s) is None:
            version_table.drop_empty(conn, s)
    return deleted


def _purge(conn: psycopg.Connection[Any], s: Settings) -> Quarantine:
    conn.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_MS}ms'")
    found = quarantine(conn, settings=s)  # our owner need not read the version table of a host
    conn.execute(render("SET LOCAL ROLE {owner}", s))
    conn.execute("SET LOCAL search_path = pg_catalog")
    for kind, query in _KINDS.items():
        names = [name for (name,) in conn.execute(query, (ident(s.quarantine),)).fetchall()]
        _drop(conn, kind, [name if kind == "ROUTINE" else ident(s.quarantine, name) for name in names])
    conn.execute(render("DROP SCHEMA {quarantine} RESTRICT", s))
    return found


def _drop(conn: psycopg.Connection[Any], kind: str, names: Sequence[str]) -> None:
    if names:
        conn.execute(f"DROP {kind} {', '.join(names)} RESTRICT")
