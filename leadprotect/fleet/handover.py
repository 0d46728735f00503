"""The steps of a hand-over between two databases; docs/explanation/handovers.md says what each crash leaves."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from leadprotect.access import denials
from leadprotect.access.context import trace_id
from leadprotect.database.blockers import sqlstate
from leadprotect.database.catalog import territory_role
from leadprotect.database.memberships import grants
from leadprotect.database.statements import row
from leadprotect.decision import Decision
from leadprotect.errors import (
    ConnectionUnusable,
    InvalidRequest,
    LeadProtectError,
    LeadsAccessDenied,
    ProtectionUnavailable,
)
from leadprotect.fleet import travelling
from leadprotect.fleet.exchange import BEGIN, COMMIT, Sent, exchange, undo
from leadprotect.settings import acting_with, render

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from uuid import UUID

    import psycopg

    from leadprotect.fleet.exchange import Rows
    from leadprotect.fleet.manifest import Manifest
    from leadprotect.fleet.travelling import Cargo
    from leadprotect.settings import Settings

    Connection = psycopg.Connection[Any]
    Pairs = Mapping[str, UUID]

# what a value is written as must not hang on who is connected
_SAME = {"TimeZone": "UTC", "extra_float_digits": "1", "bytea_output": "hex"}


# a constraint refused it, code of the host raised it, or an edit of another lead that comes with it was denied
_OF_THE_HOST = ("23", "P0", "LP403", "42501", "44", "45")


@dataclass(frozen=True)
class Side:
    """One of the two databases, in the territory that the lead leaves or comes to."""

    conn: Connection
    territory: str


@dataclass(frozen=True)
class Route:
    """From where to where leads go, by whom, and what travels.

    `unheard` are hand-overs that neither side has heard of, so that nothing needs to be looked up. `lasts`: its end
    is on disk before it is told; another slice that follows brings it there, too.
    """

    here: Side
    there: Side
    settings: Settings
    actor: str
    correlation_id: str
    plan: Manifest
    unheard: set[UUID] = field(default_factory=set)
    lasts: bool = True


class ChangedSince(LeadProtectError):
    """What was frozen has changed since it was sent: it is sent anew."""


class Withdrawn(LeadProtectError):
    """The other side has cancelled the hand-over, so it is cancelled here."""


def look_up(route: Route, side: Side, *asked: Sent) -> list[Rows]:
    """The rows of statements that change nothing, asked at once as the manager in the territory of one side."""
    with _undone(side.conn):
        return exchange(side.conn, [*_begun(route, side), *asked, COMMIT]).all_done().of(2, len(asked))


def carry(route: Route, pairs: Pairs, *, fresh: bool) -> None:
    """Bring leads from here to there: frozen on both sides, and then deleted here.

    What the other database does not take is said before either side commits. Here is committed first: a crash
    between the two leaves frozen leads without a copy, and the same step again makes it. `fresh`: no such hand-over
    was begun before. Raises `ChangedSince` where a row came to a lead in spite of all; it stays frozen then.
    """
    with _undone(route.here.conn, route.there.conn):
        cargo = copy(route, pairs, fresh=fresh)
        settle(route, pairs, cargo)
        leave(route)


def try_out(route: Route, pairs: Pairs, *, fresh: bool) -> None:
    """All of it on both sides, and rolled back there and here."""
    with _undone(route.here.conn, route.there.conn):
        cargo = copy(route, pairs, fresh=fresh)
        frozen = [_step(route, "freeze", pairs, cargo), _first(route, route.here, pairs)]
        answers = exchange(route.here.conn, [*frozen, *_going(route, pairs)]).all_done()
        _refuse_changed(route, pairs, cargo, answers.of(len(frozen) + 1, len(route.plan.tables)))
        undo(route.there.conn, route.here.conn)


def copy(route: Route, pairs: Pairs, *, fresh: bool) -> dict[str, Cargo]:
    """Lock and read the leads here, and write them there, frozen; neither side has committed."""
    plan = route.plan
    # a server that crashes and forgets the freeze has the lead as before, and nobody may edit the copy
    steps = [*_begun(route, route.here, lasts=False), _first(route, route.here, pairs)]
    reads = travelling.picking_up(plan, pairs, lock=True)
    looks, tries = travelling.looking(plan, pairs), travelling.trying(plan, pairs)
    answers = exchange(route.here.conn, [*steps, *reads, *looks, *tries])
    _refuse_denied(route, route.here, pairs, answers[len(steps) - 1])
    cargo = travelling.cargo(plan, [*pairs], answers.of(len(steps), len(reads)))
    first = len(steps) + len(reads)
    travelling.refuse_kept(answers.of(first, len(looks)))
    first += len(looks)
    if tries:
        with _kept_here():
            gone = answers.all_done().of(first + travelling.first_of_trial(plan), len(plan.tables))
            travelling.all_gone([*pairs], gone[-1])
            if not travelling.same(plan, cargo, gone):
                raise LeadProtectError("code of the host keeps or changes rows of it that were to go")
    travelling.refuse_numbers(plan, cargo)
    arrive(route, pairs, cargo, fresh=fresh)
    return cargo


def settle(route: Route, pairs: Pairs, cargo: Mapping[str, Cargo]) -> None:
    """Commit here, then there; the leads are deleted here when this is done, and that is not committed.

    Whether the copy is the same is asked for when the hand-over here and the leads are locked again, which whoever
    cancels it takes first, and whoever adds a row to a lead. Raises `ChangedSince` where it is another one, or where
    a row came to a lead while it was frozen.
    """
    again = [*_begun(route, route.here), _first(route, route.here, pairs), travelling.locking(route.plan, pairs)]
    steps = [_step(route, "freeze", pairs, cargo), COMMIT, *again]
    answers = exchange(route.here.conn, [*steps, *_going(route, pairs)])
    _refuse_denied(route, route.here, pairs, answers[4])
    _refuse_changed(route, pairs, cargo, answers.all_done().of(len(steps) + 1, len(route.plan.tables)))
    committed = exchange(route.there.conn, [COMMIT, *_begun(route, route.there), _asking(route, pairs), COMMIT])
    stands = _states(committed.all_done()[3])
    if any(stands.get(lead) != ("arriving", one.digest) for lead, one in cargo.items()):
        raise ChangedSince("the copy is another one by now")


def leave(route: Route) -> None:
    """Commit that the leads are deleted here, now that their copies are durable there."""
    exchange(route.here.conn, [COMMIT]).all_done()


def finish(route: Route, pairs: Pairs) -> None:
    """Unfreeze the copies of leads that are gone here: whoever may claim them there, does."""
    unfreeze = render(
        "SELECT {schema}.hand_over(u.lead_id, u.id, 'finish') FROM (SELECT h.lead_id, h.id "
        "FROM {schema}.lead_handovers AS h WHERE h.id = ANY (%s::uuid[]) AND h.lead_id = ANY (%s::{lead_type}[]) "
        "AND h.state = 'arriving' ORDER BY h.lead_id OFFSET 0) AS u",
        route.settings,
    )
    asked = Sent(unfreeze, ([*set(pairs.values())], [*pairs]), recording=True)
    with _undone(route.there.conn):
        steps = [*_begun(route, route.there, lasts=route.lasts), asked, _asking(route, pairs), COMMIT]
        standing = _states(exchange(route.there.conn, steps).all_done()[3])
    if lost := pairs.keys() - standing.keys():
        raise LeadProtectError(f"lead {min(lost)}: {lost_between(route)}")


def lost_between(route: Route) -> str:
    """Why a lead is on neither side: a server was restored, or a standby took over that had not come so far."""
    return (
        f"it left {route.here.territory}, and {route.there.territory} knows nothing of it: that database is older than "
        "the hand-over; restore it to a later time, or the lead from a backup"
    )


def unknown(route: Route, pairs: Pairs) -> set[str]:
    """Of leads that have left here, those of whose hand-over the other side knows nothing."""
    if not pairs:
        return set()
    (found,) = look_up(route, route.there, _asking(route, pairs))
    return set(pairs) - _states(found).keys()


def withdraw(route: Route, pairs: Pairs) -> None:
    """Give frozen leads back to their owners here; a copy there is deleted first, and none can come after it.

    A hand-over that is known there only, because a crash has made here forget it, is made known here and cancelled.
    """
    here, there = route.here, route.there
    with _undone(here.conn, there.conn):
        found = exchange(here.conn, [*_begun(route, here), _asking(route, pairs), _first(route, here, pairs)])
        if left := [lead for lead, (state, _) in _states(found[2]).items() if state == "gone"]:
            raise LeadProtectError(f"lead {min(left)} has left already: --resume ends that")
        _refuse_denied(route, here, pairs, found[3])
        _withdraw_there(route, pairs)
        exchange(here.conn, [_step(route, "cancel", pairs), COMMIT]).all_done()


def forget(route: Route, pairs: Pairs) -> None:
    """Delete frozen copies there of leads that have left here on another way, as if there had been no such hand-over.

    For hand-overs that a crash has made here forget; whoever calls it knows that the leads live elsewhere.
    """
    with _undone(route.there.conn):
        _withdraw_there(route, pairs)


def orphaned(route: Route, pairs: Pairs) -> set[str]:
    """Which of these leads are not here, while here knows nothing of their hand-over: a crash made it forget."""
    here = render(
        "SELECT l.{lead_id}::text FROM {leads} AS l WHERE l.{lead_id} = ANY (%s::{lead_type}[]) "
        "AND {territory_of_l}::text = %s",
        route.settings,
    )
    asked = _asking(route, pairs), Sent(here, ([*pairs], route.here.territory))
    known, found = look_up(route, route.here, *asked)
    return set(pairs) - _states(known).keys() - {lead for (lead,) in found}


def _withdraw_there(route: Route, pairs: Pairs) -> None:
    there = route.there
    found = exchange(there.conn, [*_begun(route, there), _first(route, there, pairs), _asking(route, pairs)])
    _refuse_denied(route, there, pairs, found[2])
    standing = _states(found[3])
    if any(state == "arrived" for state, _ in standing.values()):
        raise LeadProtectError(
            "the lead has arrived there, and nothing is left to cancel; move it back: "
            f"leadprotect move --to {route.here.territory}"
        )
    arriving = {lead: pairs[lead] for lead, (state, _) in standing.items() if state == "arriving"}
    copies = [lead for lead in arriving if standing[lead][1]]
    away = travelling.deleting(route.plan, copies) if copies else []
    exchange(there.conn, [_step(route, "cancel", arriving), *away, COMMIT]).all_done()


def gone(route: Route, pairs: Pairs) -> set[str]:
    """Which of these leads have left here already."""
    (found,) = look_up(route, route.here, _asking(route, pairs))
    return {lead for lead, (state, _) in _states(found).items() if state == "gone"}


# --- a step of one side


@contextmanager
def _undone(*conns: Connection) -> Iterator[None]:
    """Whatever stands on these connections is rolled back where the block ends in an error."""
    try:
        yield
    except BaseException:
        undo(*conns)
        raise


@contextmanager
def _kept_here() -> Iterator[None]:
    """What keys, triggers or rules of the host said when its rows were to go is about these leads."""
    try:
        yield
    except ConnectionUnusable as error:
        if not _of_the_host(error):
            raise
        raise LeadProtectError(f"the host's keys, triggers or rules keep it here: {error}") from error.__cause__


@contextmanager
def _taken(there: Side) -> Iterator[None]:
    """What the receiving schema says of the rows; the server's own words only where they hold none of them."""
    try:
        yield
    except InvalidRequest as error:
        if error.__cause__ and sqlstate(error.__cause__) == "LP422":
            raise
        raise InvalidRequest(f"{there.territory} does not take what a row holds: {error}") from error.__cause__
    except ConnectionUnusable as error:
        if not _of_the_host(error):
            raise
        told = str(error).removeprefix("the database gave no answer").lstrip(": ")
        raise InvalidRequest(f"{there.territory} does not take it: {told}") from error.__cause__


def _of_the_host(error: ConnectionUnusable) -> str:
    """The SQLSTATE of what a constraint or code of the host said; empty for anything else."""
    state = (sqlstate(error.__cause__) if error.__cause__ else None) or ""
    return state if state.startswith(_OF_THE_HOST) else ""


def _begun(route: Route, side: Side, *, lasts: bool = True) -> tuple[Sent, Sent]:
    """A transaction of the manager in the territory of one side; one that does not last is not waited for on disk."""
    settings = _SAME if lasts else _SAME | {"synchronous_commit": "off"}
    same = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in settings.items())
    context = render("{schema}.set_context(%s::text, %s::text, %s::text)", route.settings)
    return BEGIN, Sent(f"SELECT {same}, {context}", (route.actor, side.territory, route.correlation_id))


def arrive(route: Route, pairs: Pairs, cargo: Mapping[str, Cargo], *, fresh: bool) -> None:
    """Write the copies there, and freeze them; what is there already of an earlier attempt is compared first."""
    first = [*_begun(route, route.there), _first(route, route.there, pairs)]
    if fresh:
        _write(route, pairs, cargo, first)
        return
    found = exchange(route.there.conn, [*first, _asking(route, pairs)])
    _refuse_denied(route, route.there, pairs, found[2])
    standing = _states(found[3])
    if ended := {state for state, _ in standing.values()} - {"arriving"}:
        raise Withdrawn(f"the other side has {ended.pop()} the hand-over")
    stale = {lead: pairs[lead] for lead, (_, digest) in standing.items() if digest not in ("", cargo[lead].digest)}
    if stale:
        away = [_step(route, "hold", stale), *travelling.deleting(route.plan, stale)]
        exchange(route.there.conn, away).all_done()
    new = {lead: one for lead, one in cargo.items() if standing[lead][1] != one.digest}
    if new:
        _write(route, {lead: pairs[lead] for lead in new}, new, [])


def _write(route: Route, pairs: Pairs, cargo: Mapping[str, Cargo], first: list[Sent]) -> None:
    """`first` are the statements that begin, whose last answer says whether he may."""
    plan = route.plan
    writes = [*travelling.writing_leads(plan, cargo), _step(route, "hold", pairs)]
    writes += travelling.writing_others(plan, cargo)
    back = travelling.picking_up(plan, pairs, lock=False)
    last = [_step(route, "freeze", pairs, cargo), Sent("SET CONSTRAINTS ALL IMMEDIATE")]
    answers = exchange(route.there.conn, [*first, *writes, *back, *last])
    if first:
        _refuse_denied(route, route.there, pairs, answers[len(first) - 1])
    with _taken(route.there):
        answers.of(len(first), len(writes))
    arrived = answers.of(len(first) + len(writes), len(back))
    travelling.compare(plan, cargo, travelling.cargo(plan, [*pairs], arrived))
    with _taken(route.there):
        answers.all_done()


def _going(route: Route, pairs: Pairs) -> list[Sent]:
    """Delete the leads here; the answers of each table come after that of the step."""
    return [_step(route, "leave", pairs), *travelling.deleting(route.plan, pairs)]


def _refuse_changed(route: Route, pairs: Pairs, cargo: Mapping[str, Cargo], gone: Sequence[Rows]) -> None:
    """Raise where what was deleted is not what was sent."""
    travelling.all_gone([*pairs], gone[-1])
    if not travelling.same(route.plan, cargo, gone):
        raise ChangedSince("a row came to the lead while it was frozen")


def _asking(route: Route, pairs: Pairs) -> Sent:
    """State and digest of these hand-overs on a side; of the side's own territory only."""
    statement = render(
        "SELECT h.lead_id::text, h.state, h.digest FROM {schema}.lead_handovers AS h "
        "WHERE h.id = ANY (%s::uuid[]) AND h.lead_id = ANY (%s::{lead_type}[])",
        route.settings,
    )
    return Sent(statement, ([*set(pairs.values())], [*pairs]))


def _states(found: Rows) -> dict[str, tuple[str, str]]:
    return {lead: (state, digest) for lead, state, digest in found}


def _first(route: Route, side: Side, pairs: Pairs) -> Sent:
    """The first step of a side, which decides."""
    function, other = ("send_lead", route.there) if side is route.here else ("receive_lead", route.here)
    statement = render(
        f"SELECT u.lead::text, {{schema}}.{function}(u.lead, u.id, %s::text) FROM ({_PAIRS}) AS u",
        route.settings,
    )
    return Sent(statement, (other.territory, [*pairs], [*pairs.values()]), recording=True)


def _refuse_denied(route: Route, side: Side, pairs: Pairs, found: Rows) -> None:
    """Every denial of the first step is recorded on its side before the error is raised."""
    denied = [(lead, answer) for lead, answer in found if answer != "manager"]
    if not denied:
        return
    undo(side.conn)
    facts = row(side.conn, "SELECT session_user::text, current_setting('role')")
    declared = (route.actor, side.territory, route.correlation_id or trace_id(), *facts)
    action = "UNASSIGN" if side is route.here else "ASSIGN"
    attempts = [
        denials.attempt(lead, action, answer, f"move to {route.there.territory} from {route.here.territory}", declared)
        for lead, answer in denied
    ]
    # a denial is recorded where it was answered
    with acting_with(replace(route.settings, audit_url="")):
        denials.record_denials(side.conn, attempts)
        if action == "ASSIGN" or attempts[0].reason != "not_found":
            role = territory_role(side.conn, side.territory)
            needs = grants(side.conn, [route.settings.role("manager"), role], side.conn.info.user)
            raise ProtectionUnavailable(
                f"the login is no manager of {side.territory} ({attempts[0].reason}), which is recorded. "
                f"A DBA can run: {needs}"
            )
    raise LeadsAccessDenied([Decision(one.lead_id, one.reason) for one in attempts], len(pairs))


_PAIRS = (
    "SELECT p.lead::{lead_type} AS lead, p.id FROM unnest(%s::text[], %s::uuid[]) AS p (lead, id) ORDER BY 1 OFFSET 0"
)


def _step(route: Route, step: str, pairs: Pairs, cargo: Mapping[str, Cargo] | None = None) -> Sent:
    digests = [cargo[lead].digest if cargo else "" for lead in pairs]
    statement = render(
        "SELECT {schema}.hand_over(u.lead, u.id, %s::text, u.digest) FROM (SELECT p.lead::{lead_type} AS lead, "
        "p.id, p.digest FROM unnest(%s::text[], %s::uuid[], %s::text[]) "
        "AS p (lead, id, digest) ORDER BY 1 OFFSET 0) AS u",
        route.settings,
    )
    return Sent(statement, (step, [*pairs], [*pairs.values()], digests), recording=True)
