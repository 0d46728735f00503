"""How far this server is behind its primary, or who follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from leadprotect.database.statements import rows

if TYPE_CHECKING:
    from leadprotect.database.drivers import AnyConnection

# pg_last_xact_replay_timestamp() alone calls a standby of an idle primary late; as long as it is connected, and
# everything that it received is replayed, it is behind by no more than the network
_STANDBY = """
    SELECT r.sender_host OPERATOR(pg_catalog.||) ':' OPERATOR(pg_catalog.||) r.sender_port::pg_catalog.text,
           r.pid IS NOT NULL,
           CASE WHEN r.pid IS NOT NULL AND w.received OPERATOR(pg_catalog.=) w.replayed THEN 0
                ELSE extract(epoch FROM pg_catalog.clock_timestamp()
                             OPERATOR(pg_catalog.-) pg_catalog.pg_last_xact_replay_timestamp()) END::pg_catalog.float8,
           pg_catalog.pg_wal_lsn_diff(w.received, w.replayed)::pg_catalog.int8
    FROM (SELECT pg_catalog.pg_last_wal_receive_lsn() AS received, pg_catalog.pg_last_wal_replay_lsn() AS replayed
          OFFSET 0) AS w
    LEFT JOIN pg_catalog.pg_stat_wal_receiver AS r ON true
    WHERE pg_catalog.pg_is_in_recovery()
    """
# a login without pg_monitor sees that somebody follows, and no more
_REPLICAS = """
    SELECT f.application_name, f.state, f.sync_state, extract(epoch FROM f.replay_lag)::pg_catalog.float8,
           pg_catalog.pg_wal_lsn_diff(
             CASE WHEN NOT pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_current_wal_lsn() END,
             f.replay_lsn)::pg_catalog.int8
    FROM pg_catalog.pg_stat_replication AS f ORDER BY f.application_name, f.pid
    """


@dataclass(frozen=True)
class Standby:
    """That this server replays what another one writes.

    `primary` is host and port it receives from, None where it receives nothing or this login may not see it;
    `connected` whether it receives; `behind_s` seconds since the last replayed commit, 0 when all that came is
    replayed, None before the first; `to_replay` bytes that came and are not replayed.
    """

    primary: str | None
    connected: bool
    behind_s: float | None
    to_replay: int | None

    def __str__(self) -> str:
        """One line for a terminal."""
        of = f" of {self.primary}" if self.primary else ""
        if not self.connected:
            since = "" if self.behind_s is None else f"; its last commit is {self.behind_s:,.1f} s old"
            return f"standby{of}, not connected to its primary{since}"
        if not self.behind_s:
            return f"standby{of}, everything that it received is replayed"
        return f"standby{of}, {self.behind_s:,.1f} s behind, {self.to_replay or 0:,} bytes to replay"


@dataclass(frozen=True)
class Replica:
    """A standby of this server, as pg_stat_replication shows it; None where this login lacks pg_monitor.

    `behind_s` in seconds, None while nothing is written; `to_replay` in bytes.
    """

    name: str | None
    state: str | None
    sync: str | None
    behind_s: float | None
    to_replay: int | None

    def __str__(self) -> str:
        """One line for a terminal."""
        if self.state is None:
            return "followed by a standby, whose lag only a member of pg_monitor sees"
        late = f"{self.behind_s:,.1f} s behind, " if self.behind_s else ""
        return f"followed by {self.name} ({self.state}, {self.sync}): {late}{self.to_replay or 0:,} bytes to replay"


def standby(conn: AnyConnection) -> Standby | None:
    """What this server is as a standby; None on a primary."""
    found = rows(conn, _STANDBY)
    return Standby(*found[0]) if found else None


def followed_by(conn: AnyConnection) -> tuple[Replica, ...]:
    """The standbys that receive from this server now."""
    return tuple(Replica(*one) for one in rows(conn, _REPLICAS))
