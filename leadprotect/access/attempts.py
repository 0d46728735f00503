"""Requires a decision, and records every attempt: what is allowed in the caller's transaction, a denial beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

from leadprotect import metrics
from leadprotect.access import denials
from leadprotect.access.arguments import as_lead_id, check_text, missing
from leadprotect.access.context import require_order, trace_id
from leadprotect.database.bound import per_database
from leadprotect.database.statements import row
from leadprotect.decision import Action, Decision
from leadprotect.errors import InvalidRequest, LeadAccessDenied
from leadprotect.settings import current, literal, render

if TYPE_CHECKING:
    from leadprotect.database.drivers import AnyConnection


ACTIONS: tuple[Action, ...] = get_args(Action)


@per_database
def assert_edit(conn: AnyConnection, lead_id: Any, *, action: Action = "EDIT", note: str | None = None) -> Decision:
    """Require that the user in context may edit the lead, and record the attempt.

    Allowed: the record is written in the caller's transaction, and the rows on which the decision
    rests stay locked until it ends, so a transfer waits. Denied: the record is committed on a
    connection of leadprotect's own before the error is raised; it survives whatever the caller does.

    Raises `LeadAccessDenied` (carries the decision), `AuditUnavailable` when the attempt could not
    be recorded, allowed or not (a denial, too), and what `can_edit` raises.
    """
    check_action(action)
    s = current()
    call = render("allow_edit(%s::{lead_type}, %s::{schema}.lead_action, %s::pg_catalog.text)", s)
    with metrics.timed("assert"):
        attempt = attempted(conn, call, (as_lead_id(lead_id), action, note), action=action, note=note)
    return conclude(conn, Decision(lead_id, attempt.reason), attempt)


def check_action(action: str) -> None:
    """Raise `InvalidRequest` for what is no action."""
    if action not in ACTIONS:
        message = f"action: {action!r} is not one of {', '.join(ACTIONS)}"
        raise InvalidRequest(message)


def attempted(
    conn: AnyConnection, call: str, values: tuple[Any, ...], *, action: str, note: str | None
) -> denials.Attempt:
    """Decide by `call`, a function of ours whose first value is the lead and which records what it allows."""
    check_text("note", note)
    answer, facts = answered_by(conn, call, values)
    return denials.attempt(values[0], action, answer, note, facts)


def answered_by(conn: AnyConnection, call: str, values: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
    """What `call` answers, and who asked: user, territory, correlation id, login, role.

    Where the context has no correlation id, the current trace's is recorded, and the context stays as it was.
    Raises `ContextMissing` before anything is done: a manager's change would be recorded in no territory.
    """
    require_order(conn)
    schema, trace = render("{schema}", current()), trace_id()
    if trace is None:
        statement = _attempt(f"{schema}.{call}", f"{schema}.context()")
        answer, *facts = row(conn, statement, values, recording=True)
    else:
        guc = literal(current().correlation_guc)
        # OFFSET 0 keeps the order: what stood is read, then the call is made, then it is set again
        # NULLIF would compare by an operator of the caller's path
        given = "CASE WHEN context.correlation_id OPERATOR(pg_catalog.<>) '' THEN context.correlation_id ELSE %s END"
        traced = f"pg_catalog.set_config({guc}, {given}, true) OPERATOR(pg_catalog.<>) ''"
        inner = _attempt(f"CASE WHEN {traced} THEN {schema}.{call} END", f"(SELECT * FROM {schema}.context() OFFSET 0)")
        statement = (
            f"SELECT attempt.*, pg_catalog.set_config({guc}, coalesce(attempt.correlation_id, ''), true) "
            f"FROM ({inner} OFFSET 0) AS attempt"
        )
        answer, *facts, _ = row(conn, statement, (trace, *values), recording=True)
    user_id, territory, correlation_id, login, role = facts
    if answer is None:
        missing(user_id, territory)
    return answer, (user_id, territory, correlation_id or trace, login, role)


def attempting(call: str) -> str:
    """The statement that decides by `call` in the context that stands: the answer, and who asked."""
    schema = render("{schema}", current())
    return _attempt(f"{schema}.{call}", f"{schema}.context()")


def _attempt(call: str, context: str) -> str:
    return (
        "SELECT CASE WHEN context.user_id OPERATOR(pg_catalog.<>) '' AND context.territory OPERATOR(pg_catalog.<>) '' "
        f"THEN {call} END AS reason, context.*, "
        f"session_user::pg_catalog.text AS login, pg_catalog.current_setting('role') AS role FROM {context} AS context"
    )


def conclude(conn: AnyConnection, decision: Decision, attempt: denials.Attempt) -> Decision:
    """Return an allowed decision; record a denied one so that it lasts, and raise it."""
    if decision.allowed:
        metrics.allowed()
        return decision
    if attempt.lead_id is not None:  # an attempt on no lead leaves no row
        denials.record_denials(conn, [attempt])
    metrics.denied(decision.reason)
    metrics.told_denial(attempt.action, decision.reason, attempt.territory)
    raise LeadAccessDenied(decision)
