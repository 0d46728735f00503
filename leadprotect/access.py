"""May this user edit this lead? One decision with one reason, asked in several ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadprotect import audit, metrics
from leadprotect._arguments import as_lead_id, as_lead_ids, check_caller, check_text, missing
from leadprotect._sql import row, rows
from leadprotect.context import declared, trace_id
from leadprotect.errors import InvalidRequest, LeadAccessDenied
from leadprotect.settings import current, ident, literal

if TYPE_CHECKING:
    from collections.abc import Iterable
    from uuid import UUID

    from leadprotect._sql import AnyConnection

ALLOWED = ("owner", "collaborator", "manager")
"""Reasons that allow; every other reason denies."""

ACTIONS = ("VIEW", "EDIT", "ASSIGN", "UNASSIGN")
MAX_PAGE = 1000


@dataclass(frozen=True)
class Decision:
    """What was decided about a lead, and why; true when allowed.

    `reason` is a code: no_context, not_found, suspended, owner, collaborator, unassigned, not_owner,
    and manager for a change of ownership.
    """

    lead_id: Any
    reason: str

    @property
    def allowed(self) -> bool:
        """Whether the reason allows."""
        return self.reason in ALLOWED

    def __bool__(self) -> bool:
        """The same: ``if decision`` must never let a denial through."""
        return self.allowed


@dataclass(frozen=True)
class Page:
    """Some leads in the order of their ids; `after` asks for the next page, None means: no more."""

    leads: tuple[Decision, ...]
    after: Any | None

    @property
    def more(self) -> bool:
        """Whether more leads follow."""
        return self.after is not None


def can_edit(
    conn: AnyConnection, lead_id: Any, *, user_id: UUID | str | None = None, territory: str | None = None
) -> bool:
    """Whether the user in context, or the one named, may edit the lead; one statement, nothing is recorded.

    `lead_id` has the type of the setting lead_id_type; an id given as text is converted. What is
    not named (None) comes from the context, and the context stays as it was.

    Raises `ContextMissing` without user or territory, or where one is named as '', `InvalidRequest`
    for an id of the wrong type, `ProtectionUnavailable` when no answer could be had. Source of the
    rule: DESIGN, decisions.
    """
    return _decide(conn, lead_id, user_id, territory).allowed


def explain(
    conn: AnyConnection, lead_id: Any, *, user_id: UUID | str | None = None, territory: str | None = None
) -> Decision:
    """The decision of `can_edit` with its reason; takes and raises the same."""
    return _decide(conn, lead_id, user_id, territory)


def can_edit_many(conn: AnyConnection, lead_ids: Iterable[Any]) -> dict[Any, bool]:
    """For each lead, whether the user in context may edit it; keys as they were given.

    One statement; if none may be edited, a second one asks whether there is a context at all.

    Raises what `can_edit` raises.
    """
    kind, given = as_lead_ids(lead_ids)
    s = current()
    # in binary, a thousand ids are sent in a fifth of the time
    statement = f"SELECT lead::{kind} FROM {ident(s.schema)}.editable_among(%b::{kind}[]::{s.lead_id_type}[])"
    with metrics.timed("many"):
        found = {lead for (lead,) in rows(conn, statement, ([lead for lead in given.values() if lead is not None],))}
    if not found:
        _require_context(conn)
    return {lead: typed in found for lead, typed in given.items()}


def editable_leads(conn: AnyConnection, *, after: Any = None, limit: int = 100) -> Page:
    """A page of the leads that the user in context may edit, in the order of their ids.

    `after` is the last lead id of the page before, `limit` 1 to 1000 leads.
    Raises what `can_edit` raises, and `InvalidRequest` for a limit out of bounds.
    """
    if type(limit) is not int or not 1 <= limit <= MAX_PAGE:
        message = f"limit: {limit!r} is not a whole number between 1 and {MAX_PAGE}"
        raise InvalidRequest(message)
    s = current()
    statement = f"SELECT lead, reason FROM {ident(s.schema)}.editable_leads(%s::{s.lead_id_type}, %s::integer)"
    with metrics.timed("list"):
        found = rows(conn, statement, (as_lead_id(after), limit + 1))
    if not found:
        _require_context(conn)
    leads = tuple(Decision(lead, reason) for lead, reason in found[:limit])
    return Page(leads, leads[-1].lead_id if len(found) > limit else None)


def assert_edit(conn: AnyConnection, lead_id: Any, *, action: str = "EDIT", note: str | None = None) -> Decision:
    """Require that the user in context may edit the lead, and record the attempt.

    Allowed: the record is written in the caller's transaction, and the rows on which the decision
    rests stay locked until it ends, so a transfer waits. Denied: the record is committed on a
    connection of leadprotect's own before the error is raised; it survives whatever the caller does.

    Raises `LeadAccessDenied` (carries the decision), `AuditUnavailable` when the attempt could not
    be recorded, allowed or not (a denial, too), and what `can_edit` raises.
    """
    if action not in ACTIONS:
        message = f"action: {action!r} is not one of {', '.join(ACTIONS)}"
        raise InvalidRequest(message)
    s = current()
    call = f"allow_edit(%s::{s.lead_id_type}, %s::{ident(s.schema)}.lead_action, %s::text)"
    with metrics.timed("assert"):
        attempt = attempted(conn, call, (as_lead_id(lead_id), action, note), action=action, note=note)
    return settle(conn, Decision(lead_id, attempt.reason), attempt)


def attempted(
    conn: AnyConnection, call: str, values: tuple[Any, ...], *, action: str, note: str | None
) -> audit.Attempt:
    """Decide by `call`, a function of ours whose first value is the lead and which records what it allows.

    Where the context has no correlation id, the current trace's is recorded, and the context stays as it was.
    Raises `ContextMissing` before anything is done: a manager's change would be recorded in no territory.
    """
    check_text("note", note)
    schema, trace = ident(current().schema), trace_id()
    if trace is None:
        statement = _attempt(f"{schema}.{call}", f"{schema}.context()")
        reason, *facts = row(conn, statement, values, recording=True)
    else:
        guc = literal(current().correlation_guc)
        # OFFSET 0 keeps the order: what stood is read, then the call is made, then it is set again
        traced = f"pg_catalog.set_config({guc}, coalesce(nullif(context.correlation_id, ''), %s), true) <> ''"
        inner = _attempt(f"CASE WHEN {traced} THEN {schema}.{call} END", f"(SELECT * FROM {schema}.context() OFFSET 0)")
        statement = (
            f"SELECT attempt.*, pg_catalog.set_config({guc}, coalesce(attempt.correlation_id, ''), true) "
            f"FROM ({inner} OFFSET 0) AS attempt"
        )
        reason, *facts, _ = row(conn, statement, (trace, *values), recording=True)
    user_id, territory, correlation_id, login, role = facts
    if reason is None:
        missing(user_id, territory)
    return audit.Attempt(values[0], action, reason, note, user_id, territory, correlation_id or trace, login, role)


def _attempt(call: str, context: str) -> str:
    return (
        f"SELECT CASE WHEN context.user_id <> '' AND context.territory <> '' THEN {call} END AS reason, context.*, "
        f"session_user::text AS login, pg_catalog.current_setting('role') AS role FROM {context} AS context"
    )


def settle(conn: AnyConnection, decision: Decision, attempt: audit.Attempt) -> Decision:
    """Return an allowed decision; record a denied one so that it lasts, and raise it."""
    if decision.allowed:
        metrics.allowed()
        return decision
    if attempt.lead_id is not None:  # an attempt on no lead leaves no row
        audit.record_denial(conn, attempt)
    metrics.denied(decision.reason)
    raise LeadAccessDenied(decision)


def _decide(conn: AnyConnection, lead_id: Any, user_id: UUID | str | None, territory: str | None) -> Decision:
    s = current()
    schema = ident(s.schema)
    lead = as_lead_id(lead_id)
    with metrics.timed("check"):
        if user_id is None and territory is None:
            (reason,) = row(conn, f"SELECT {schema}.explain_edit(%s::{s.lead_id_type})", (lead,))
            if reason == "no_context":
                _require_context(conn)
        else:
            if user_id is None or territory is None:
                outer_user, outer_territory, _ = declared(conn)
                user_id = outer_user if user_id is None else user_id
                territory = outer_territory if territory is None else territory
            check_caller(user_id, territory)
            statement = f"SELECT {schema}.decide(%s::{s.lead_id_type}, %s::text, %s::text)"
            (reason,) = row(conn, statement, (lead, str(user_id), territory))
    return Decision(lead_id, reason)


def _require_context(conn: AnyConnection) -> None:
    user_id, territory, _ = declared(conn)
    if not user_id or not territory:
        missing(user_id, territory)
