"""Many leads at once: locked in the order of their ids, decided, changed and recorded together in the server."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from leadprotect import metrics
from leadprotect.access import denials
from leadprotect.access.arguments import as_lead_ids, as_user_id, check_text
from leadprotect.access.attempts import answered_by, check_action
from leadprotect.access.checks import require_context
from leadprotect.database.bound import per_database
from leadprotect.database.statements import row, rows
from leadprotect.decision import Action, Decision
from leadprotect.errors import InvalidRequest, LeadsAccessDenied
from leadprotect.settings import current, render, type_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from uuid import UUID

    from leadprotect.database.drivers import AnyConnection

AT_ONCE = 1000
"""Leads a statement: what is denied of them can be recorded in time, and whoever waits hears something."""


@per_database
def assert_edit_many(
    conn: AnyConnection,
    lead_ids: Iterable[Any],
    *,
    action: Action = "EDIT",
    note: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[Any, Decision]:
    """`assert_edit` for each lead: one record each, locked in the order of the ids; keys as they were given.

    One statement for 1,000 leads; `progress` is called after each with the number of leads done, and of all.
    Where one is denied, all are asked still and every denial is recorded; then `LeadsAccessDenied` is raised, and
    a rollback undoes the records of what was allowed. Raises what `assert_edit` raises, too.
    """
    check_action(action)
    call = render("allow_edits(%s, %s::{schema}.lead_action, %s::pg_catalog.text)", current())
    return _each(conn, lead_ids, call, (action, note), action=action, note=note, progress=progress)


@per_database
def assign_many(
    conn: AnyConnection,
    lead_ids: Iterable[Any],
    user_id: UUID | str,
    *,
    note: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[Any, Decision]:
    """`assign` for each lead, as `assert_edit_many` asserts them; raises what both raise."""
    return change_owners(conn, lead_ids, "assign", user_id, note=note, progress=progress)


@per_database
def change_owners(
    conn: AnyConnection,
    lead_ids: Iterable[Any],
    change: str,
    user_id: UUID | str | None,
    *,
    note: str | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> dict[Any, Decision]:
    """assign, transfer (to `user_id`) or release, for each lead."""
    action = "UNASSIGN" if change == "release" else "ASSIGN"
    new_owner = None if user_id is None else as_user_id(user_id)
    values = (change, new_owner, note, None)
    return _each(conn, lead_ids, _change_owners(), values, action=action, note=note, progress=progress)


@per_database
def transfer_all(
    conn: AnyConnection,
    from_user: UUID | str,
    to_user: UUID | str,
    *,
    note: str | None = None,
    limit: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> int:
    """Give what `from_user` owns in the territory in context to `to_user`; returns how many leads. For managers.

    One record each. What becomes somebody else's meanwhile stays with him. With `limit`, at most so many leads: a
    caller who commits after each call goes on until it returns 0. `progress` is called after each 1,000 leads with
    the number done, and of all. His rules stay: `suspend` him, too, where he must not edit any more.

    Raises what `transfer` raises, for more than one lead `LeadsAccessDenied`; `InvalidRequest` where both are one.
    """
    old, new = as_user_id(from_user), as_user_id(to_user)
    if old == new:
        raise InvalidRequest("from_user and to_user are the same user; name another one")
    if limit is not None and (type(limit) is not int or limit < 1):
        raise InvalidRequest(f"limit: {limit!r} is not a whole number above 0")
    total = min(_owned(conn, old), limit or sys.maxsize)
    moved, last = 0, None
    while leads := _leads_of(conn, old, last, min(AT_ONCE, (limit or sys.maxsize) - moved)):
        last = leads[-1]
        done = _ask(conn, "", leads, _change_owners(), ("transfer", new, note, old), action="ASSIGN", note=note)
        _raise_denied(done)
        moved += len(done)
        if progress:
            progress(moved, max(moved, total))
    return moved


def _each(
    conn: AnyConnection,
    lead_ids: Iterable[Any],
    call: str,
    values: tuple[Any, ...],
    *,
    action: str,
    note: str | None,
    progress: Callable[[int, int], object] | None,
) -> dict[Any, Decision]:
    kind, given = as_lead_ids(lead_ids)
    leads = list({typed: None for typed in given.values() if typed is not None})
    if not leads:
        require_context(conn)
    elif len(leads) > AT_ONCE:
        leads = _in_order(conn, kind, leads)
    done: dict[Any, Decision] = {None: Decision(None, "not_found")}
    for first in range(0, len(leads), AT_ONCE):
        slice_ = leads[first : first + AT_ONCE]
        done |= _ask(conn, kind, slice_, call, values, action=action, note=note)
        if progress:
            progress(first + len(slice_), len(leads))
    decisions = {lead: Decision(lead, done[typed].reason) for lead, typed in given.items()}
    _raise_denied(decisions)
    return decisions


def _ask(
    conn: AnyConnection,
    kind: str,
    leads: list[Any],
    call: str,
    values: tuple[Any, ...],
    *,
    action: str,
    note: str | None,
) -> dict[Any, Decision]:
    """Decisions of one statement, denials recorded; a lead that is not answered is left out."""
    check_text("note", note)
    lead_type = type_name(current().lead_id_type)
    array = f"%s::{type_name(kind or current().lead_id_type)}[]::{lead_type}[]"
    with metrics.timed("change" if call.startswith("change") else "assert"):
        answers, facts = answered_by(conn, call.replace("%s", array, 1), (leads, *values))
    attempts = [
        denials.attempt(lead, action, answer, note, facts)
        for lead, answer in zip(leads, answers, strict=True)
        if answer is not None
    ]
    decisions = {one.lead_id: Decision(one.lead_id, one.reason) for one in attempts}
    denied = [one for one in attempts if not decisions[one.lead_id].allowed]
    if denied:
        denials.record_denials(conn, denied)
    for decision in decisions.values():
        metrics.allowed() if decision.allowed else metrics.denied(decision.reason)
    return decisions


def _raise_denied(decisions: dict[Any, Decision]) -> None:
    denied = [decision for decision in decisions.values() if not decision.allowed]
    if denied:
        raise LeadsAccessDenied(denied, len(decisions))


def _in_order(conn: AnyConnection, kind: str, leads: list[Any]) -> list[Any]:
    """As the server sorts them: two who lock in slices must agree on the order, too."""
    given, lead = type_name(kind), type_name(current().lead_id_type)
    statement = f"SELECT u.lead::{given} FROM unnest(%s::{given}[]::{lead}[]) AS u (lead) ORDER BY u.lead"
    return [found for (found,) in rows(conn, statement, (leads,))]


def _change_owners() -> str:
    user = type_name(current().user_id_type)
    return f"change_owners(%s, %s::pg_catalog.text, %s::{user}, %s::pg_catalog.text, %s::{user})"


_OWNED = (
    "FROM {schema}.user_lead_assignments AS a WHERE a.user_id OPERATOR(pg_catalog.=) %s::{user} "
    "AND a.territory OPERATOR(pg_catalog.=) (SELECT {schema}.admitted_territory())"
)


def _owned(conn: AnyConnection, user_id: str) -> int:
    (count,) = row(conn, _listing(f"SELECT pg_catalog.count(*) {_OWNED}"), (user_id,))
    if not count:
        require_context(conn)
    return int(count)


def _leads_of(conn: AnyConnection, user_id: str, after: Any, limit: int) -> list[Any]:
    more = "(%s::{lead_type} IS NULL OR a.lead_id OPERATOR(pg_catalog.>) %s::{lead_type})"
    statement = _listing(f"SELECT a.lead_id {_OWNED} AND {more} ORDER BY a.lead_id LIMIT %s")
    return [lead for (lead,) in rows(conn, statement, (user_id, after, after, limit))]


def _listing(statement: str) -> str:
    return render(statement.replace("{user}", type_name(current().user_id_type)), current())
