"""What `alembic upgrade head` would do here: asked in one transaction that can't write, from whatever phase."""

from __future__ import annotations

import shlex
from collections import defaultdict
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import psycopg

from leadprotect import phases
from leadprotect.backfilling.jobs import list_jobs
from leadprotect.backfilling.verify import estimate_backfill, most_of
from leadprotect.database.catalog import one, relation
from leadprotect.database.memberships import grants
from leadprotect.database.modes import MODES, in_sql
from leadprotect.database.statements import own_names
from leadprotect.doctor.repair import altered
from leadprotect.doctor.versions import named_revision
from leadprotect.errors import LeadProtectError, PreflightError, ProtectionUnavailable
from leadprotect.migration import gate
from leadprotect.planning.losses import EVERYBODY, Loss, losses, noted
from leadprotect.planning.obstacles import Obstacle, obstacles
from leadprotect.planning.refusals import Refusals, refusals
from leadprotect.planning.steps import PendingRevision, TableSize, spare_patience, steps, touched
from leadprotect.preflight import standing
from leadprotect.preflight.columns import in_text
from leadprotect.settings import Settings, current, ident, render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from leadprotect.backfilled import Estimate

T = TypeVar("T")
Outcome = Literal["nothing to do", "through", "stops at the gate", "refused"]
_HANDFUL = 20  # of fewer leads the gate asks for no share with owners
_CLOSES = {
    "logins": "logins with privileges on the leads would be locked out",
    "lead_tables": "logins with privileges on lead_tables would be locked out",
    "views": "a view shows leads past row security to logins",
    "shadow": "a shadow saw logins do what no user of theirs could do after contract",
    "host_code": "code of the host changes leads, and would find none, for logins",
    "lead_tables_ways": "a view shows rows of lead_tables past row security to logins",
    "lead_tables_code": "code of the host changes rows of lead_tables, and would find none, for logins",
}
EXIT: dict[Outcome, int] = {"nothing to do": 0, "through": 0, "stops at the gate": 3, "refused": 1}


@dataclass(frozen=True)
class DeployPlan:
    """What the next upgrade would do; bytes, seconds, and times since.

    `applies` are the revisions that it would apply, `steps` all that are pending. `conditions` are those of the gate:
    of the database where `gate_asked`, else foreseen from the catalog. `backfill` is what a backfill has left to do,
    `losses` who loses what at contract, `obstacles` who is in the way now, `unseen` what this login can't see.
    """

    outcome: Outcome
    verdict: str
    revision: str | None
    head: str
    phase: str
    login: str
    database: str
    server: str
    refusals: tuple[str, ...]
    statements: tuple[str, ...]
    steps: tuple[PendingRevision, ...]
    applies: tuple[str, ...]
    tables: tuple[TableSize, ...]
    gate_asked: bool
    conditions: tuple[gate.Condition, ...]
    backfill: tuple[Estimate, ...]
    losses: tuple[Loss, ...]
    obstacles: tuple[Obstacle, ...]
    lacking: tuple[str, ...]
    unseen: tuple[str, ...]

    @property
    def exit_code(self) -> int:
        """0 it would go through, 3 it would stop at the gate, 1 it would be refused."""
        return EXIT[self.outcome]

    @property
    def seconds(self) -> float | None:
        """What the revisions that it would apply take together; None where one could not be measured."""
        taken = [step.seconds for step in self.applied_steps]
        return None if None in taken else sum(second for second in taken if second is not None)

    @property
    def applied_steps(self) -> tuple[PendingRevision, ...]:
        """The steps of `applies`."""
        return tuple(step for step in self.steps if step.revision in self.applies)

    @property
    def closed(self) -> tuple[gate.Condition, ...]:
        """The conditions that keep contract from going on."""
        return tuple(condition for condition in self.conditions if not condition.met)


def plan_deploy(conn: psycopg.Connection[Any], *, settings: Settings | None = None) -> DeployPlan:
    """Say what an upgrade would do, in a transaction of `conn` that can't write.

    Works as any login, at any revision, on a database without anything of ours and on a replica. Set a lock_timeout on
    `conn` where somebody may hold the host's tables exclusively.
    """
    with conn.transaction(), own_names(conn):
        conn.execute("SET TRANSACTION READ ONLY")
        return _plan(conn, in_text(conn, settings or current()))


def _plan(conn: psycopg.Connection[Any], s: Settings) -> DeployPlan:
    unseen: list[str] = []
    present = _present(conn, s, unseen)
    away = present is not None and standing.taken_away(conn, s)
    refused = Refusals([standing.TAKEN_AWAY]) if away else refusals(conn, s, present)
    unseen += refused.unseen
    lacking = [] if away else standing.lacking(conn, s, phases.through(present))
    waiting = phases.pending(present)
    if not waiting and not away and phases.reached(present) == "contract":
        lacking = lacking or altered(conn, settings=s)
        refused.problems += [f"{one}: leadprotect doctor says what mends it" for one in lacking]
    pending = steps(conn, s, waiting, unseen)
    contracts = any(step.asks_gate for step in pending)
    lost = _asked(conn, lambda: losses(conn, s, unseen), "who would lose what", unseen) or [] if contracts else []
    lost += _asked(conn, lambda: noted(conn, s), "what a shadow noted", unseen) or [] if contracts else []
    left = _backfill(conn, s, unseen) if contracts else []
    asked = _gate(conn, s, unseen) if contracts else []
    conditions = asked if asked is not None else _foreseen(s, lost, left)
    outcome, applies = _outcome(refused.problems, pending, conditions)
    closed = [condition.name for condition in conditions if not condition.met]
    # where none would be applied, what is in the way is asked for the time after
    taken = [step for step in pending if step.revision in applies] or pending
    who, database, server = conn.execute("SELECT current_user::text, current_database()::text, version()").fetchall()[0]
    return DeployPlan(
        outcome=outcome,
        verdict=_verdict(outcome, refused.problems, applies, pending, closed),
        revision=present,
        head=phases.chain()[-1],
        phase=phases.reached(present),
        login=who,
        database=database,
        server=" ".join(server.split()[:2]),
        refusals=tuple(refused.problems),
        statements=tuple(refused.statements),
        steps=tuple(pending),
        applies=applies,
        tables=tuple(touched(conn, s)),
        gate_asked=asked is not None,
        conditions=tuple(conditions),
        backfill=tuple(left),
        losses=tuple(lost),
        obstacles=tuple(_obstacles(conn, s, taken, unseen)),
        lacking=tuple(lacking),
        unseen=tuple(dict.fromkeys(unseen)),
    )


def _present(conn: psycopg.Connection[Any], s: Settings, unseen: list[str]) -> str | None:
    """The revision that is applied; the least that stands where this login may not read it."""
    try:
        with conn.transaction():
            return named_revision(conn, s)
    except PreflightError:
        return standing.furthest(conn, s)
    except ProtectionUnavailable:
        unseen.append(f"the version table, so what stands counts: {_operator(conn, s)}")
        return standing.furthest(conn, s)


def _asked(conn: psycopg.Connection[Any], ask: Callable[[], T], what: str, unseen: list[str]) -> T | None:
    """The answer, in a savepoint of its own; None where it can't be had, and `unseen` says why."""
    try:
        with conn.transaction():
            return ask()
    except (LeadProtectError, psycopg.Error) as error:
        # ours hides the server's own
        spare_patience(conn, error.__cause__ if isinstance(error.__cause__, psycopg.Error) else error)
        said = error.diag.message_primary if isinstance(error, psycopg.Error) else str(error)
        unseen.append(f"{what}: {said}")
        return None


def _has_function(conn: psycopg.Connection[Any], s: Settings, name: str) -> bool:
    query = "SELECT EXISTS (SELECT FROM pg_proc WHERE pronamespace = to_regnamespace(%s) AND proname = %s)"
    return bool(one(conn, query, ident(s.schema), name))


def _gate(conn: psycopg.Connection[Any], s: Settings, unseen: list[str]) -> list[gate.Condition] | None:
    """What the database answers; None before the revision that makes the gate."""
    if not _has_function(conn, s, "gate_conditions"):
        return None
    found = _asked(conn, lambda: gate.conditions(conn, settings=s), "the conditions of the gate", unseen)
    if found is not None:
        return found
    asks = f"{_operator(conn, s)} and wait for whoever holds a lock"
    return [gate.Condition("gate", met=False, detail="not asked, so it may be closed", remedy=asks)]


def _operator(conn: psycopg.Connection[Any], s: Settings) -> str:
    """What lets this login ask our functions."""
    return grants(conn, [s.role("operator")], str(one(conn, "SELECT current_user")))


def _foreseen(s: Settings, lost: Iterable[Loss], left: Iterable[Estimate]) -> list[gate.Condition]:
    """The conditions that the catalog alone tells: what they say once the migrate step is there, and nothing else."""
    wants = [estimate for estimate in left if estimate.assignable]
    leads = sum(estimate.assignable for estimate in wants)
    codes = shlex.join(s.territories)
    found = [
        gate.Condition(
            "owners",
            not wants,
            f"up to {leads:,} leads wait for the backfill" if wants else "no lead waits for the backfill",
            f"leadprotect backfill {codes}" if wants else None,
        ),
        gate.Condition(
            "observation_window",
            s.observation_window == 0,
            f"the observation window of {s.observation_window / 86400:g} days begins when the backfill is through",
            None if s.observation_window == 0 else "wait, or shorten observation_window",
        ),
    ]
    counted = [estimate for estimate in left if estimate.leads >= _HANDFUL]
    if s.host_rls != "off" and (few := [one for one in counted if one.assignable < one.leads / 2]):
        detail = f"at most {few[0].assignable:,} of {few[0].leads:,} leads would have an owner"
        mends = (
            "see that activities and qualifying_kinds are those of this host, or answer for it after the migrate step"
        )
        found.append(gate.Condition("unowned", met=False, detail=detail, remedy=mends))
    closing: dict[str, list[Loss]] = {}
    for loss in lost:
        if loss.condition:
            closing.setdefault(loss.condition, []).append(loss)
    for name, several in closing.items():
        whom = ", ".join(dict.fromkeys(loss.login or EVERYBODY for loss in several))
        mends = " ".join(dict.fromkeys(loss.remedy for loss in several if loss.remedy))
        found.append(gate.Condition(name, met=False, detail=f"{_CLOSES[name]}: {whom}", remedy=mends or None))
    return found


def _backfill(conn: psycopg.Connection[Any], s: Settings, unseen: list[str]) -> list[Estimate]:
    """What is left to do, from a sample; before the migrate step, an upper bound from the catalog."""
    if not _has_function(conn, s, "backfill_sample"):
        sizes = {size.name: size.rows or 0 for size in touched(conn, s)}
        leads = sizes.get(s.leads_table, 0)
        most = leads if s.owner_column else min(leads, sum(sizes.get(one.stands_on, 0) for one in s.activities))
        query = render("SELECT EXISTS (SELECT FROM {qualifying} AS q)", s)
        if hiding := _hiding(conn, [one.stands_on for one in s.activities]):
            unseen.append(f"how many leads get an owner: row security of {', '.join(hiding)} hides rows")
            return [most_of(", ".join(s.territories), leads, most)]
        any_qualifies = _asked(conn, lambda: bool(one(conn, query)), "whether any activity makes an owner", unseen)
        return [most_of(", ".join(s.territories), leads, 0 if any_qualifies is False else most)]
    jobs = _asked(conn, lambda: list_jobs(conn, settings=s), "where the backfill stands", unseen)
    if jobs is None:
        return []
    codes = [job.territory for job in jobs]
    found = _asked(conn, lambda: estimate_backfill(conn, codes, settings=s), "what the backfill has left", unseen) or []
    done = {job.territory for job in jobs if job.state == "done"}
    return [estimate for estimate in found if estimate.assignable or estimate.territory not in done]


def _hiding(conn: psycopg.Connection[Any], tables: list[str]) -> list[str]:
    """Those whose row security binds who asks: an owner, too, where it is forced."""
    query = "SELECT pg_catalog.row_security_active(%s::pg_catalog.oid)"
    return [name for name in tables if one(conn, query, relation(conn, *name.split(".", 1)))]


def _outcome(
    problems: list[str], pending: list[PendingRevision], conditions: Iterable[gate.Condition]
) -> tuple[Outcome, tuple[str, ...]]:
    """How it would end, and the revisions that it would apply before."""
    if problems:
        return "refused", ()
    if not pending:
        return "nothing to do", ()
    closed = any(not condition.met for condition in conditions)
    if closed and any(step.asks_gate for step in pending):
        return "stops at the gate", tuple(step.revision for step in takewhile(lambda step: not step.asks_gate, pending))
    return "through", tuple(step.revision for step in pending)


def _verdict(
    outcome: Outcome, problems: list[str], applies: tuple[str, ...], pending: list[PendingRevision], closed: list[str]
) -> str:
    """One line."""
    count = f"{len(applies)} of {len(pending)} revisions" if applies else "no revision"
    if outcome == "refused":
        return f"refused: {len(problems)} finding{'s' * (len(problems) > 1)}, and nothing would be touched"
    if outcome == "nothing to do":
        return f"nothing to do: the database is at the head {phases.chain()[-1]}"
    if outcome == "through":
        return f"goes through: {len(applies)} revisions, to the head {phases.chain()[-1]}"
    first = next(step.revision for step in pending if step.asks_gate)
    waits = f"none from {first} on while it is closed by {', '.join(closed)}"
    return f"stops at the gate: {count} would be applied, and {waits}"


def _obstacles(
    conn: psycopg.Connection[Any], s: Settings, taken: Iterable[PendingRevision], unseen: list[str]
) -> list[Obstacle]:
    modes = {in_sql(mode): mode for mode in MODES}
    wanted: dict[str, set[str]] = defaultdict(set)
    for step in taken:
        for lock in step.locks:
            wanted[lock.table].add(modes[lock.mode])
    waits = any("ShareUpdateExclusiveLock" in several for several in wanted.values())
    return _asked(conn, lambda: obstacles(conn, s, wanted, unseen, builds=waits), "who is in the way", unseen) or []
