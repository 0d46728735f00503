"""Where a protected database stands: revision, gate, backfill, quarantine, and what is in the way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg

from leadprotect import phases
from leadprotect.backfilling.jobs import list_jobs
from leadprotect.database import replication
from leadprotect.database.catalog import relation
from leadprotect.database.drivers import driver_connection
from leadprotect.database.statements import rows
from leadprotect.doctor.examine import DANGERS, examine
from leadprotect.doctor.handovers import OnTheWay, standing_handovers
from leadprotect.errors import LockUnavailable
from leadprotect.migration import gate
from leadprotect.migration.shadow import Shadow, shadow
from leadprotect.preflight import standing
from leadprotect.preflight.version_table import revision
from leadprotect.settings import Settings, current, ident

if TYPE_CHECKING:
    from leadprotect.backfilled import Job
    from leadprotect.database.drivers import AnyConnection
    from leadprotect.database.replication import Replica, Standby
    from leadprotect.doctor.finding import Symptom


_LOCKED_OUT = (
    "territories",
    "logins",
    "host_code",
    "owner_column_code",
    "lead_tables",
    "lead_tables_keys",
    "lead_tables_code",
)
_WAYS = ("visibility", "exempt_roles", "inheritance", "views", "lead_tables_ways")
_BROKEN = {"contract": "NOT PROTECTED"}
_VERDICTS = {
    "none": "not installed: alembic upgrade head begins",
    "unknown": "a newer version of leadprotect has been here: ask that one",
    "expand": "nothing is enforced yet: alembic upgrade head goes on",
    "migrate": "nothing is enforced yet: the gate is open, alembic upgrade head enforces",
    "contract": "protected: everything that contract put on the leads is there",
}


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

    It is the furthest that was reached, so contract also while a later release expands again. It is
    unknown at a revision of a newer version; gate and backfill are not asked there, because that
    version may have changed them. `conditions` are those of the gate, empty before the migrate step;
    `pending` names the revisions still to be applied, in their order; `lacking` what the applied ones
    made and is gone; `dangers` what doctor finds of that level, `not_judged` its checks of that level that this
    login may not ask; `quarantine` maps a table to its estimated rows, None where nobody has counted
    them yet; `invalid_indexes` are leftovers of cancelled builds. `standby` is None on a primary, `replicas` are
    the standbys of this server; `shadow` is the one that runs. `handovers` counts the leads that are on their way to or
    from another database.
    """

    revision: str | None
    head: str
    phase: str
    conditions: tuple[gate.Condition, ...]
    backfill: tuple[Job, ...]
    quarantine: dict[str, int | None]
    invalid_indexes: tuple[str, ...]
    waiting: tuple[Waiting, ...]
    pending: tuple[str, ...]
    lacking: tuple[str, ...]
    dangers: tuple[Symptom, ...]
    not_judged: tuple[str, ...]
    standby: Standby | None
    replicas: tuple[Replica, ...]
    shadow: Shadow | None
    handovers: tuple[OnTheWay, ...]

    @property
    def open_ways(self) -> tuple[gate.Condition, ...]:
        """After contract: conditions by which leads are reached past what it enforces."""
        return tuple(c for c in self.conditions if self.phase == "contract" and c.name in _WAYS and not c.met)

    @property
    def to_look_at(self) -> tuple[gate.Condition, ...]:
        """After contract: conditions by which somebody sees nothing."""
        return tuple(c for c in self.conditions if self.phase == "contract" and c.name in _LOCKED_OUT and not c.met)

    @property
    def taken_away(self) -> bool:
        """Whether a host-change has put our tables into the quarantine, and is to put them back."""
        return any(found.check == "host-change-under-way" for found in self.dangers)

    @property
    def sound(self) -> bool:
        """Whether what the phase promises is there."""
        return not self.lacking and not self.open_ways and not self.dangers

    @property
    def ready(self) -> bool:
        """Whether this version works with the database: compatible, not equal, so a newer revision is as good."""
        expanded = phases.before("migrate")[-1]
        return not self.lacking and (self.phase == "unknown" or expanded in phases.through(self.revision))

    @property
    def verdict(self) -> str:
        """One line: what holds now."""
        if self.taken_away:
            return f"CLOSED: {standing.TAKEN_AWAY}"
        if not self.sound:
            missing = [*self.lacking, *(way.detail for way in self.open_ways)] or [
                f"{found.where}: {found.what}" for found in self.dangers
            ]
            only_settings = not self.lacking and {one.check for one in self.dangers} == {"setting-not-applied"}
            broken = "NOT APPLIED" if only_settings and not self.open_ways else _BROKEN.get(self.phase, "BROKEN")
            return f"{broken}: {'; '.join(missing)}"
        if self.phase == "migrate" and (waits := [c.name for c in self.conditions if not c.met]):
            return f"nothing is enforced yet: the gate waits for {', '.join(waits)}"
        return _VERDICTS[self.phase]

    @property
    def contract_pending(self) -> bool:
        """Whether a revision waits that the gate lets through or holds."""
        return any(phases.phase(waits) == "contract" for waits in self.pending)


def status(conn: AnyConnection, *, settings: Settings | None = None) -> Status:
    """Read where the database stands; writes nothing and takes no lock that a writer could feel.

    Set a lock_timeout on `conn` if it must answer while somebody holds the host's tables exclusively.
    Raises `ProtectionUnavailable` without the role of an operator.
    """
    s = settings or current()
    present = revision(conn, s)
    phase = phases.reached(present)
    asked = set() if phase in ("none", "unknown") else _functions(conn, s)
    dangers, not_judged = _dangers(conn, s)
    return Status(
        present,
        phases.chain()[-1],
        phase,
        quarantine=_quarantine(conn, s),
        invalid_indexes=_invalid_indexes(conn, s),
        waiting=_waiting(conn, s),
        pending=phases.pending(present),
        lacking=tuple(standing.lacking(conn, s, phases.through(present))),
        dangers=dangers,
        not_judged=not_judged,
        standby=replication.standby(conn),
        replicas=replication.followed_by(conn),
        shadow=_shadow(conn, s) if "shadow_run" in asked else None,
        handovers=standing_handovers(conn, s) if "standing_handovers" in asked else (),
        # asked last: only these read the host's tables, so only they can meet a lock
        backfill=_backfill(conn, s) if "backfill_status" in asked else (),
        conditions=_conditions(conn, s) if "gate_conditions" in asked else (),
    )


def _dangers(conn: AnyConnection, s: Settings) -> tuple[tuple[Symptom, ...], tuple[str, ...]]:
    """What doctor would call a danger, so that the two never say different things."""
    driver = driver_connection(conn)
    if not isinstance(driver, psycopg.Connection):
        return (), tuple(check.name for check in DANGERS)
    found = examine(driver, settings=s, checks=DANGERS)
    return (
        tuple(one for one in found.findings if one.level == "danger"),
        tuple(one.check for one in found.not_judged),
    )


def _shadow(conn: AnyConnection, s: Settings) -> Shadow | None:
    found = shadow(conn, settings=s)
    return found if found and found.ended_at is None else None


def _functions(conn: AnyConnection, s: Settings) -> set[str]:
    """Those of the migrate step that stand already: an upgrade may have stopped between its revisions."""
    query = "SELECT proname::text FROM pg_catalog.pg_proc WHERE pronamespace = pg_catalog.to_regnamespace(%s)"
    return {name for (name,) in rows(conn, query, (ident(s.schema),))}


def _conditions(conn: AnyConnection, s: Settings) -> tuple[gate.Condition, ...]:
    try:
        return tuple(gate.conditions(conn, settings=s))
    except LockUnavailable:
        return (gate.Condition("gate", met=False, detail="not asked: a lock is in the way", remedy="see who waits"),)


def _backfill(conn: AnyConnection, s: Settings) -> tuple[Job, ...]:
    try:
        return tuple(list_jobs(conn, settings=s))
    except LockUnavailable:
        return ()  # the gate's answer says why


def _quarantine(conn: AnyConnection, s: Settings) -> dict[str, int | None]:
    query = """
        SELECT relname, CASE WHEN relkind = 'r' AND pg_catalog.pg_relation_size(oid) = 0 THEN 0
                             WHEN reltuples > 0 THEN reltuples::bigint END
        FROM pg_catalog.pg_class
        WHERE relnamespace = pg_catalog.to_regnamespace(%s) AND relkind IN ('r', 'p') ORDER BY relname
        """
    return dict(rows(conn, query, (ident(s.quarantine),)))


def _invalid_indexes(conn: AnyConnection, s: Settings) -> tuple[str, ...]:
    query = """
        SELECT i.indexrelid::regclass::text FROM pg_catalog.pg_index AS i
        JOIN pg_catalog.pg_class AS c ON c.oid = i.indrelid
        WHERE NOT i.indisvalid AND (c.relnamespace = pg_catalog.to_regnamespace(%s)
          OR c.oid = ANY (%s))
        ORDER BY 1
        """
    return tuple(found[0] for found in rows(conn, query, (ident(s.schema), _host_tables(conn, s))))


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
            OR c.oid = ANY (%s))
        ORDER BY a.pid
        """
    found = rows(conn, query, (ident(s.schema), _host_tables(conn, s)))
    return tuple(Waiting(pid, application, seconds, tuple(by)) for pid, application, seconds, by in found)


def _host_tables(conn: AnyConnection, s: Settings) -> list[int]:
    names = (*s.host_tables, *(child.table for child in s.lead_tables))
    found = (relation(conn, *name.split(".", 1)) for name in names)
    return [oid for oid in found if oid]
