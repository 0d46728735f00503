"""What a backfill slows down or holds for: each signal asks the database one question.

A signal answers for itself alone; the throttle takes the slowest. Whatever an ordinary login can't
read of the server is an error or says which role to grant, never a good answer.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from leadprotect.settings import Settings, ident

if TYPE_CHECKING:
    import psycopg


_REPLICA_BYTES = 1024**3
_SLOWEST = 0.1


@dataclass(frozen=True)
class Limits:
    """Where the backfill slows down and where it holds; None switches a signal off.

    `replica_lag` in seconds of replay, `lock_waits` in waiting requests of others, `wal_rate` in bytes
    per second of the whole server, `archive_queue` in WAL segments; it slows down from a quarter of
    a limit, for WAL from the limit itself. `condition` is a SELECT whose first value must be true.
    """

    replica_lag: float | None = 10.0
    lock_waits: int | None = 20
    wal_rate: float | None = 128 * 1024 * 1024
    archive_queue: int | None = 64
    condition: str | None = None


@dataclass(frozen=True)
class Pace:
    """How fast the backfill may go: 1 at full speed, 0.5 at half, 0 not at all; and why."""

    factor: float = 1.0
    reason: str | None = None


GO = Pace()


@dataclass
class Asked:
    """What a signal may know: a connection of the throttle's own, the limits, and what WAL came to last."""

    conn: psycopg.Connection[Any]
    limits: Limits
    settings: Settings
    wal: list[tuple[float, int]] = field(default_factory=list)
    wal_factor: float = 1.0

    def row(self, query: str, params: tuple[Any, ...] = ()) -> Any:
        """One row of an answer."""
        return self.conn.execute(query, params or None).fetchone()


def replicas(asked: Asked) -> Pace:
    """How far the replicas are behind with replaying: pg_stat_replication."""
    if asked.limits.replica_lag is None:
        return GO
    hidden, lag, size = asked.row("""
        SELECT count(*) FILTER (WHERE state IS NULL),
               coalesce(max(extract(epoch FROM replay_lag)) FILTER (WHERE state <> 'backup'), 0)::float8,
               coalesce(max(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), replay_lsn)), 0)::float8
        FROM pg_catalog.pg_stat_replication
        """)
    if hidden:
        role = ident(asked.settings.role("operator"))
        return Pace(0.0, f"the replicas' lag is hidden from this login; a DBA can run: GRANT pg_monitor TO {role};")
    # a replica that replays nothing reports no new lag, only the distance grows
    in_time = _level(lag, asked.limits.replica_lag, f"a replica is {lag:.1f} s behind")
    in_bytes = _level(size, _REPLICA_BYTES, f"a replica is {size / 2**20:,.0f} MiB behind")
    return min(in_time, in_bytes, key=lambda verdict: verdict.factor)


def lock_waits(asked: Asked) -> Pace:
    """How many sessions wait for locks, our own left out."""
    if asked.limits.lock_waits is None:
        return GO
    (waiting,) = asked.row("""
        SELECT count(*) FROM pg_catalog.pg_locks AS l JOIN pg_catalog.pg_stat_activity AS a USING (pid)
        WHERE NOT l.granted AND l.locktype <> 'advisory' AND a.application_name <> 'leadprotect backfill'
        """)
    return _level(waiting, asked.limits.lock_waits, f"{waiting} sessions wait for locks")


def wal_rate(asked: Asked) -> Pace:
    """How much WAL the server writes, since the last sample."""
    if asked.limits.wal_rate is None:
        return GO
    (written,) = asked.row("SELECT pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), '0/0')::bigint")
    asked.wal[:] = [*asked.wal[-1:], (time.monotonic(), written)]
    (since, before), (now, last) = asked.wal[0], asked.wal[-1]
    rate = (last - before) / (now - since) if now > since else 0.0
    asked.wal_factor = paced(asked.wal_factor, asked.limits.wal_rate, rate)
    if asked.wal_factor == 1:
        return GO
    return Pace(asked.wal_factor, f"the server writes {rate / 2**20:.0f} MiB of WAL a second")


def paced(factor: float, limit: float, rate: float) -> float:
    """The next factor, after `factor` made the server write `rate` bytes per second: at most `limit`, and near it."""
    return min(max(factor * limit / rate, _SLOWEST), 1.0) if rate > 0 else 1.0


def archive(asked: Asked) -> Pace:
    """How many WAL segments wait to be archived: the position of the last one against the present one."""
    if asked.limits.archive_queue is None:
        return GO
    found = asked.row("""
        SELECT coalesce(a.last_failed_time > a.last_archived_time, a.last_failed_time IS NOT NULL),
               coalesce(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), '0/0')::bigint / size
                 - (('x' || substr(name, 9, 8))::bit(32)::bigint * (4294967296 / size)
                    + ('x' || substr(name, 17, 8))::bit(32)::bigint), 0)
        FROM pg_catalog.pg_stat_archiver AS a,
          LATERAL (SELECT substring(a.last_archived_wal FROM '^[0-9A-F]{24}')) AS segment (name),
          LATERAL (SELECT setting::bigint FROM pg_catalog.pg_settings AS s WHERE name = 'wal_segment_size') AS s (size)
        WHERE pg_catalog.current_setting('archive_mode') <> 'off'
        """)
    if found is None:
        return GO
    failing, queue = found
    if failing:
        return Pace(0.0, "WAL can't be archived: the last attempt failed")
    return _level(queue, asked.limits.archive_queue, f"{queue} WAL segments wait to be archived")


def vacuum(asked: Asked) -> Pace:
    """Whether the assignments are being vacuumed: its lock is visible to every login, its progress is not."""
    (working,) = asked.row(
        """
        SELECT count(*) FROM pg_catalog.pg_locks AS l
        WHERE l.granted AND l.locktype = 'relation' AND l.mode = 'ShareUpdateExclusiveLock'
          AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
          AND l.relation = pg_catalog.to_regclass(%s)
        """,
        (ident(asked.settings.schema, "user_lead_assignments"),),
    )
    return Pace(0.8, "the assignments are being vacuumed") if working else GO


def condition(asked: Asked) -> Pace:
    """Whether the user's own SELECT says true."""
    if asked.limits.condition is None:
        return GO
    found = asked.row(asked.limits.condition)
    return GO if found and found[0] is True else Pace(0.0, "the SQL condition is not true")


SIGNALS = {
    "the replicas' lag": replicas,
    "the waiting lock requests": lock_waits,
    "the WAL rate": wal_rate,
    "the archive queue": archive,
    "the vacuum of the assignments": vacuum,
    "the SQL condition": condition,
}
"""Name of a signal -> the function that asks it."""


def _level(value: float, limit: float, reason: str) -> Pace:
    """Full speed below a quarter of the limit, half speed above it, none from the limit on."""
    if value < limit / 4:
        return GO
    return Pace(0.0 if value >= limit else 0.5, reason)
