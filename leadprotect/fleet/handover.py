"""The steps of a hand-over between two databases; docs/explanation/handovers.md says what each crash leaves."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from leadprotect.access import denials
from leadprotect.access.context import trace_id
from leadprotect.database.catalog import territory_role
from leadprotect.database.connection import mapped_errors, row, rows
from leadprotect.decision import Decision
from leadprotect.errors import LeadProtectError, LeadsAccessDenied, ProtectionUnavailable
from leadprotect.fleet import travelling
from leadprotect.settings import acting_with, ident, render

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from uuid import UUID

    import psycopg

    from leadprotect.settings import Settings

    Connection = psycopg.Connection[Any]
    Pairs = Mapping[str, UUID]

# what a value is written as must not hang on who is connected
_SAME = {"TimeZone": "UTC", "extra_float_digits": "1", "bytea_output": "hex"}


@dataclass(frozen=True)
class Side:
    """One of the two databases, in the territory that the lead leaves or comes to."""

    conn: Connection
    territory: str


@dataclass(frozen=True)
class Route:
    """From where to where leads go, by whom, and what travels."""

    here: Side
    there: Side
    settings: Settings
    actor: str
    correlation_id: str
    plan: travelling.Manifest


class ChangedSince(LeadProtectError):
    """What was frozen has changed since it was sent: it is sent anew."""


class Withdrawn(LeadProtectError):
    """The other side has cancelled the hand-over, so it is cancelled here."""


@contextmanager
def on_side(route: Route, side: Side, *, dry_run: bool = False) -> Iterator[None]:
    """A transaction of the manager in the territory of one side."""
    # a denial is recorded where it was answered
    ours = acting_with(replace(route.settings, audit_url=""))
    with ours, mapped_errors(), side.conn.transaction(force_rollback=dry_run):
        settings = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in _SAME.items())
        context = render("{schema}.set_context(%s::text, %s::text, %s::text)", route.settings)
        rows(side.conn, f"SELECT {settings}, {context}", (route.actor, side.territory, route.correlation_id))
        yield


def copy(route: Route, pairs: Pairs, *, dry_run: bool = False) -> dict[str, str]:
    """Freeze leads here, and make their copies there, frozen, too; returns the digest of each.

    What the other database does not take is said before either side commits. Here is committed first: a crash
    between the two leaves frozen leads without a copy, and the same step again makes it. A dry run deletes here as
    well, and rolls all of it back.
    """
    with on_side(route, route.there, dry_run=dry_run), on_side(route, route.here, dry_run=dry_run):
        _begin(route, route.here, "send_lead", pairs, route.there.territory)
        cargo = travelling.read_rows(route.here.conn, route.plan, [*pairs])
        _arrive(route, pairs, cargo)
        _step(route, route.here, "freeze", pairs, cargo)
        if dry_run:
            _delete(route, pairs, held=False)
    return {lead: one.digest for lead, one in cargo.items()}


def _arrive(route: Route, pairs: Pairs, cargo: Mapping[str, travelling.Cargo]) -> None:
    conn = route.there.conn
    _begin(route, route.there, "receive_lead", pairs, route.here.territory)
    standing = states(route, route.there, pairs)
    if ended := {state for state, _ in standing.values()} - {"arriving"}:
        raise Withdrawn(f"the other side has {ended.pop()} the hand-over")
    stale = {lead: pairs[lead] for lead, (_, digest) in standing.items() if digest not in ("", cargo[lead].digest)}
    if stale:
        _step(route, route.there, "hold", stale)
        travelling.delete(conn, route.plan, [*stale])
    new = {lead: one for lead, one in cargo.items() if standing[lead][1] != one.digest}
    if not new:
        return
    ids = {lead: pairs[lead] for lead in new}
    travelling.write_leads(conn, route.plan, new)
    _step(route, route.there, "hold", ids)
    travelling.write_others(conn, route.plan, new)
    travelling.verify(conn, route.plan, new)
    _step(route, route.there, "freeze", ids, new)
    rows(conn, "SET CONSTRAINTS ALL IMMEDIATE")


def leave(route: Route, pairs: Pairs, digests: Mapping[str, str]) -> None:
    """Delete the leads here, now that their copies are durable there.

    Under the lock of the hand-over here, which whoever cancels it takes first, the other side is asked for the
    copy. Raises `ChangedSince` where a row came to a lead in spite of all; nothing is done then.
    """
    with on_side(route, route.here):
        _begin(route, route.here, "send_lead", pairs, route.there.territory)
        with on_side(route, route.there):
            there = states(route, route.there, pairs)
        if any(there.get(lead) != ("arriving", digest) for lead, digest in digests.items()):
            raise ChangedSince("the copy is another one by now")
        cargo = travelling.read_rows(route.here.conn, route.plan, [*pairs])
        if any(one.digest != digests[lead] for lead, one in cargo.items()):
            raise ChangedSince("a row came to the lead while it was frozen")
        _delete(route, pairs, held=True)


def _delete(route: Route, pairs: Pairs, *, held: bool) -> None:
    if not held:
        _begin(route, route.here, "send_lead", pairs, route.there.territory)
    _step(route, route.here, "leave", pairs)
    travelling.delete(route.here.conn, route.plan, [*pairs])


def finish(route: Route, pairs: Pairs) -> None:
    """Unfreeze the copies of leads that are gone here: whoever may claim them there, does."""
    with on_side(route, route.there):
        standing = states(route, route.there, pairs)
        _step(
            route,
            route.there,
            "finish",
            {lead: pairs[lead] for lead, (state, _) in standing.items() if state == "arriving"},
        )
    if lost := pairs.keys() - standing.keys():
        raise LeadProtectError(
            f"lead {min(lost)} left {route.here.territory}, and {route.there.territory} knows nothing of it: that "
            "database is older than the hand-over; restore it to a later time, or the lead from a backup"
        )


def withdraw(route: Route, pairs: Pairs) -> None:
    """Give frozen leads back to their owners here; a copy there is deleted first, and none can come after it."""
    with on_side(route, route.here):
        _begin(route, route.here, "send_lead", pairs, route.there.territory)
        with on_side(route, route.there):
            _begin(route, route.there, "receive_lead", pairs, route.here.territory)
            standing = states(route, route.there, pairs)
            if any(state == "arrived" for state, _ in standing.values()):
                raise LeadProtectError(
                    "the lead has arrived there, and nothing is left to cancel; move it back: "
                    f"leadprotect move --to {route.here.territory}"
                )
            open_there = {lead: pairs[lead] for lead, (state, _) in standing.items() if state == "arriving"}
            _step(route, route.there, "cancel", open_there)
            copies = [lead for lead, (state, digest) in standing.items() if state == "arriving" and digest]
            if copies:
                travelling.delete(route.there.conn, route.plan, copies)
        _step(route, route.here, "cancel", pairs)


def states(route: Route, side: Side, pairs: Pairs) -> dict[str, tuple[str, str]]:
    """State and digest of these hand-overs on one side; of the side's own territory only."""
    statement = render(
        "SELECT h.lead_id::text, h.state, h.digest FROM {schema}.lead_handovers AS h "
        "WHERE h.id = ANY (%s::uuid[]) AND h.lead_id = ANY (%s::{lead_type}[])",
        route.settings,
    )
    found = rows(side.conn, statement, (list(set(pairs.values())), [*pairs]))
    return {lead: (state, digest) for lead, state, digest in found}


def _begin(route: Route, side: Side, function: str, pairs: Pairs, elsewhere: str) -> None:
    """The first step of a side, which decides; every denial is recorded there before the error is raised."""
    statement = render(
        f"SELECT u.lead::text, {{schema}}.{function}(u.lead, u.id, %s::text) FROM ({_PAIRS}) AS u",
        route.settings,
    )
    found = rows(side.conn, statement, (elsewhere, [*pairs], list(pairs.values())), recording=True)
    denied = [(lead, answer) for lead, answer in found if answer != "manager"]
    if not denied:
        return
    facts = row(side.conn, "SELECT session_user::text, current_setting('role')")
    declared = (route.actor, side.territory, route.correlation_id or trace_id(), *facts)
    action = "UNASSIGN" if function == "send_lead" else "ASSIGN"
    attempts = [
        denials.attempt(lead, action, answer, f"move to {route.there.territory} from {route.here.territory}", declared)
        for lead, answer in denied
    ]
    denials.record_denials(side.conn, attempts)
    if action == "ASSIGN" or attempts[0].reason != "not_found":
        role = territory_role(side.conn, side.territory)
        needs = f"GRANT {ident(route.settings.role('manager'))}, {ident(role)} TO {ident(side.conn.info.user)};"
        raise ProtectionUnavailable(
            f"the login is no manager of {side.territory} ({attempts[0].reason}), which is recorded. "
            f"A DBA can run: {needs}"
        )
    raise LeadsAccessDenied([Decision(one.lead_id, one.reason) for one in attempts], len(pairs))


_PAIRS = (
    "SELECT p.lead::{lead_type} AS lead, p.id FROM unnest(%s::text[], %s::uuid[]) AS p (lead, id) ORDER BY 1 OFFSET 0"
)


def _step(
    route: Route, side: Side, step: str, pairs: Pairs, cargo: Mapping[str, travelling.Cargo] | None = None
) -> None:
    digests = [cargo[lead].digest if cargo else "" for lead in pairs]
    statement = render(
        "SELECT {schema}.hand_over(u.lead, u.id, %s::text, u.digest) FROM (SELECT p.lead::{lead_type} AS lead, "
        "p.id, p.digest FROM unnest(%s::text[], %s::uuid[], %s::text[]) "
        "AS p (lead, id, digest) ORDER BY 1 OFFSET 0) AS u",
        route.settings,
    )
    rows(side.conn, statement, (step, [*pairs], list(pairs.values()), digests), recording=True)
