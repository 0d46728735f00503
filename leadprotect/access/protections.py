"""Rules: who may edit besides the owner, who is suspended, and who is shut out; managers make them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from leadprotect import metrics
from leadprotect.access.arguments import as_lead_id, as_user_id, check_dates
from leadprotect.access.attempts import attempted, conclude
from leadprotect.access.checks import require_context
from leadprotect.access.context import require_order
from leadprotect.database.bound import per_database
from leadprotect.database.statements import rows
from leadprotect.decision import PROTECTIONS, Decision, Protection
from leadprotect.errors import InvalidRequest
from leadprotect.settings import current, render, type_name
from leadprotect.settings.names import NIL_LEADS

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from leadprotect.database.drivers import AnyConnection


@dataclass(frozen=True)
class LeadRule:
    """A rule about a user; `lead_id` None: for the whole territory, `effective_to` None: without end (else UTC).

    `made_by` is the login that made it, `shared_by` the owner who shared his lead (None: a manager did).
    """

    user_id: Any
    territory: str
    protection: Protection
    lead_id: Any | None
    active: bool
    effective_from: datetime
    effective_to: datetime | None
    made_by: str
    shared_by: Any | None


@per_database
def rules(
    conn: AnyConnection, *, user_id: UUID | str | None = None, lead_id: Any = None, ended: bool = False
) -> tuple[LeadRule, ...]:
    """The rules of the territory in context, of a user or a lead where one is named; for managers and auditors.

    Those that hold now or will; with `ended`, also those that are over. Raises `ContextMissing` without a territory
    in context, `InvalidRequest` for an id of the wrong type, `ProtectionUnavailable` for a login without the role.
    """
    user = type_name(current().user_id_type)
    statement = render(
        "SELECT r.user_id, r.territory, r.protection::pg_catalog.text, r.lead_id, r.active, r.effective_from, "
        "r.effective_to, r.made_by::pg_catalog.text, r.shared_by FROM {schema}.lead_protection_rules AS r "
        "WHERE r.territory OPERATOR(pg_catalog.=) (SELECT {schema}.admitted_territory()) "
        f"AND (%s::{user} IS NULL OR r.user_id OPERATOR(pg_catalog.=) %s::{user}) "
        "AND (%s::{lead_type} IS NULL OR r.lead_id OPERATOR(pg_catalog.=) %s::{lead_type}) "
        "AND (%s OR r.active AND (r.effective_to IS NULL "
        "OR r.effective_to OPERATOR(pg_catalog.>) pg_catalog.statement_timestamp())) "
        "ORDER BY r.user_id, r.protection, r.lead_id NULLS FIRST, r.effective_from",
        current(),
    )
    of_user = None if user_id is None else as_user_id(user_id)
    lead = as_lead_id(lead_id)
    require_order(conn)
    found = rows(conn, statement, (of_user, of_user, lead, lead, ended))
    if not found:
        require_context(conn, user=False)
    return tuple(LeadRule(*values) for values in found)


@per_database
def grant(
    conn: AnyConnection,
    user_id: UUID | str,
    protection: Protection,
    *,
    lead_id: Any = None,
    effective_from: datetime | None = None,
    effective_to: datetime | None = None,
    note: str | None = None,
) -> Decision:
    """Make a rule for `user_id` in the territory in context, or for one lead of it; for managers.

    COLLABORATOR may edit, VIEW_ONLY suspends, SOLE_OWNER shuts out collaborators of the whole territory; from
    `effective_from` (now) until `effective_to` (open). It is recorded like a change of owner, and raises the same;
    `InvalidRequest` when the dates are in the wrong order.
    """
    check_dates(effective_from, effective_to)
    return _change_rule(conn, "grant", user_id, protection, lead_id, (effective_from, effective_to), note=note)


@per_database
def revoke(
    conn: AnyConnection, user_id: UUID | str, protection: Protection, *, lead_id: Any = None, note: str | None = None
) -> Decision:
    """End the rules of one kind of `user_id`, for the territory as a whole or for `lead_id`.

    For managers; an edit under way is waited for. It is recorded, also where there was none to end. Raises what `grant`
    raises.
    """
    return _change_rule(conn, "revoke", user_id, protection, lead_id, (None, None), note=note)


@per_database
def suspend(
    conn: AnyConnection,
    user_id: UUID | str,
    *,
    lead_id: Any = None,
    effective_to: datetime | None = None,
    note: str | None = None,
) -> Decision:
    """Let `user_id` edit nothing in the territory, or not this lead, from now until `effective_to` (open).

    The rule VIEW_ONLY: `revoke` with it ends the suspension. He keeps what he owns. Raises what `grant` raises.
    """
    return grant(conn, user_id, "VIEW_ONLY", lead_id=lead_id, effective_to=effective_to, note=note)


def _change_rule(
    conn: AnyConnection,
    change: str,
    user_id: UUID | str,
    protection: Protection,
    lead_id: Any,
    dates: tuple[datetime | None, datetime | None],
    *,
    note: str | None,
) -> Decision:
    if protection not in PROTECTIONS:
        raise InvalidRequest(f"protection: {protection!r} is not one of {', '.join(PROTECTIONS)}")
    s = current()
    user = type_name(s.user_id_type)
    call = render(
        f"change_rule(%s::{{lead_type}}, %s::pg_catalog.text, %s::{user}, %s::{{schema}}.protection_type, "
        "%s::pg_catalog.timestamptz, %s::pg_catalog.timestamptz, %s::pg_catalog.text)",
        s,
    )
    values = (as_lead_id(lead_id), change, as_user_id(user_id), protection, *dates, note)
    action = "ASSIGN" if change == "grant" else "UNASSIGN"
    with metrics.timed("change"):
        attempt = attempted(conn, call, values, action=action, note=note)
    if lead_id is None:  # the record of a whole territory has a lead, too
        attempt = replace(attempt, lead_id=NIL_LEADS[s.lead_id_type])
    return conclude(conn, Decision(lead_id, attempt.reason), attempt)
