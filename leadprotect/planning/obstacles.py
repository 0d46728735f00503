"""Who is in the way now: sessions and prepared transactions that a migration waits for, slots that hold its WAL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadprotect.database.blockers import redact
from leadprotect.database.catalog import one, relation
from leadprotect.database.modes import CONFLICTS, MODES, in_sql
from leadprotect.migration.locks import holders, lock_name
from leadprotect.settings import Settings, ident, literal

if TYPE_CHECKING:
    import psycopg

LONG_S = 5.0
"""From this age on a transaction is worth a line, whatever it holds: an index that is built waits for its end."""
LAGGING = 1 << 30
"""Bytes of WAL that a slot may hold back unnamed."""


@dataclass(frozen=True)
class Obstacle:
    """Something that a migration would wait for; `age` in seconds since its transaction began.

    `kind`: lock, transaction, prepared, migration, slot. `pid` is None where there is no session, `remedy` ends it.
    """

    kind: str
    pid: int | None
    application: str
    age: float | None
    what: str
    remedy: str


def obstacles(
    conn: psycopg.Connection[Any], s: Settings, locks: dict[str, set[str]], unseen: list[str], *, builds: bool
) -> list[Obstacle]:
    """What is in the way of `locks`, modes by table; `builds` where indexes are built, which wait for transactions.

    What this login can't see is added to `unseen`.
    """
    found = [*_migrations(conn, s), *_locks(conn, locks), *_prepared(conn)]
    known = {one.pid for one in found}
    if builds:
        found += [one for one in _transactions(conn) if one.pid not in known]
    hidden = one(
        conn,
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND query = '<insufficient privilege>'",
    )
    if hidden:
        me = ident(str(one(conn, "SELECT current_user")))
        unseen.append(f"what {hidden} sessions of others do, and for how long: GRANT pg_read_all_stats TO {me};")
    return found + _slots(conn)


def _migrations(conn: psycopg.Connection[Any], s: Settings) -> list[Obstacle]:
    key = one(conn, "SELECT hashtextextended(%s, 0)", lock_name(s))
    return [
        Obstacle(
            "migration",
            holder.pid,
            holder.application or "",
            None,
            f"holds the lock of migrations of schema {s.schema}: another upgrade waits for its end",
            _end(holder.pid),
        )
        for holder in holders(conn, key)
    ]


def _locks(conn: psycopg.Connection[Any], locks: dict[str, set[str]]) -> list[Obstacle]:
    query = """
        SELECT l.pid, coalesce(nullif(a.application_name, ''), a.backend_type, ''),
               extract(epoch FROM clock_timestamp() - a.xact_start)::float8, a.state, a.query,
               array_agg(DISTINCT l.mode), bool_or(l.granted)
        FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
        WHERE l.locktype = 'relation' AND l.mode = ANY (%s)
          AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
          AND l.pid IS NOT NULL AND l.pid <> pg_backend_pid()
          AND l.relation IN (SELECT relid FROM pg_partition_tree(%s::oid::regclass) UNION SELECT %s::oid)
        GROUP BY 1, 2, 3, 4, 5 ORDER BY 3 DESC NULLS LAST, 1
        """
    found: dict[int, Obstacle] = {}
    for name, wanted in locks.items():
        oid = relation(conn, *name.split(".", 1))
        against = sorted({mode for lock in wanted for mode in CONFLICTS[lock]})
        if oid is None:
            continue
        for pid, application, age, state, text, modes, granted in conn.execute(query, (against, oid, oid)).fetchall():
            holds = ", ".join(in_sql(mode) for mode in sorted(modes, key=MODES.index))
            does = f"{'holds' if granted else 'waits for'} {holds} on {name}"
            doing = "; ".join(filter(None, (state, redact(text) if text else None)))
            found.setdefault(
                pid, Obstacle("lock", pid, application, age, f"{does} ({doing or 'hidden from this login'})", _end(pid))
            )
    return list(found.values())


def _transactions(conn: psycopg.Connection[Any]) -> list[Obstacle]:
    query = """
        SELECT a.pid, coalesce(nullif(a.application_name, ''), a.backend_type, ''),
               extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS age, a.state, a.query
        FROM pg_stat_activity AS a
        WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.backend_xmin IS NOT NULL
          AND a.xact_start < clock_timestamp() - make_interval(secs => %s) AND a.backend_type <> 'autovacuum worker'
        ORDER BY 3 DESC LIMIT 20
        """
    return [
        Obstacle(
            "transaction",
            pid,
            application,
            age,
            f"an index that is built waits for its end ({state}; {redact(text)})",
            _end(pid),
        )
        for pid, application, age, state, text in conn.execute(query, (LONG_S,)).fetchall()
    ]


def _prepared(conn: psycopg.Connection[Any]) -> list[Obstacle]:
    query = """
        SELECT p.gid, p.owner::text, extract(epoch FROM clock_timestamp() - p.prepared)::float8
        FROM pg_prepared_xacts AS p WHERE p.database = current_database() ORDER BY p.prepared LIMIT 20
        """
    return [
        Obstacle(
            "prepared",
            None,
            "",
            age,
            f"the prepared transaction {gid!r} of {owner} keeps its locks until somebody ends it",
            f"ROLLBACK PREPARED {literal(gid)};",
        )
        for gid, owner, age in conn.execute(query).fetchall()
    ]


def _slots(conn: psycopg.Connection[Any]) -> list[Obstacle]:
    """A slot that nobody reads holds back all the WAL that migration and backfill write."""
    if one(conn, "SELECT pg_is_in_recovery()"):
        return []
    query = """
        SELECT slot_name::text, active, pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn)::bigint
        FROM pg_replication_slots WHERE restart_lsn IS NOT NULL ORDER BY 3 DESC
        """
    return [
        Obstacle(
            "slot",
            None,
            "",
            None,
            f"the replication slot {name} {'lags' if active else 'is read by nobody'} and holds back "
            f"{held / (1 << 20):,.0f} MiB of WAL, and what the deploy and the backfill write",
            f"SELECT pg_drop_replication_slot({literal(name)});  -- or let its reader come back",
        )
        for name, active, held in conn.execute(query).fetchall()
        if not active or held > LAGGING
    ]


def _end(pid: int) -> str:
    return f"SELECT pg_terminate_backend({pid});"
