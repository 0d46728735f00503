"""Changes of ownership: the only way to change who may edit a lead."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect import metrics
from leadprotect.access.arguments import as_lead_id, as_user_id, check_dates
from leadprotect.access.attempts import attempted, conclude
from leadprotect.database.bound import per_database
from leadprotect.decision import Decision
from leadprotect.settings import current, type_name

if TYPE_CHECKING:
    from datetime import datetime
    from uuid import UUID

    from leadprotect.database.drivers import AnyConnection


@per_database
def assign(conn: AnyConnection, lead_id: Any, user_id: UUID | str, *, note: str | None = None) -> Decision:
    """Give the lead to `user_id`, whoever owns it now; for managers of its territory.

    Like every function here it records the attempt as `assert_edit` does and raises
    `LeadAccessDenied` when it is denied, `ContextMissing` without a user or territory in context (a
    manager needs them, too: they are recorded), `InvalidRequest` when the new owner is suspended.
    """
    return _change_owner(conn, lead_id, "assign", as_user_id(user_id), note)


@per_database
def transfer(conn: AnyConnection, lead_id: Any, user_id: UUID | str, *, note: str | None = None) -> Decision:
    """Give an owned lead to `user_id`; for managers. An edit under way is waited for."""
    return _change_owner(conn, lead_id, "transfer", as_user_id(user_id), note)


@per_database
def claim(conn: AnyConnection, lead_id: Any, *, note: str | None = None) -> Decision:
    """Make the user in context the owner of a lead that nobody owns; of two claims one wins."""
    return _change_owner(conn, lead_id, "claim", None, note)


@per_database
def release(conn: AnyConnection, lead_id: Any, *, note: str | None = None) -> Decision:
    """Take the lead from its owner; for the owner and for managers. No backfill gives it back."""
    return _change_owner(conn, lead_id, "release", None, note)


@per_database
def share(
    conn: AnyConnection,
    lead_id: Any,
    user_id: UUID | str,
    *,
    effective_from: datetime | None = None,
    effective_to: datetime | None = None,
    note: str | None = None,
) -> Decision:
    """Let `user_id` edit the lead as well, from `effective_from` (now) until `effective_to` (open).

    For the owner and for managers. Raises `InvalidRequest` when the dates are in the wrong order.
    """
    return _change_sharing(conn, lead_id, "share", user_id, (effective_from, effective_to), note)


@per_database
def unshare(conn: AnyConnection, lead_id: Any, user_id: UUID | str, *, note: str | None = None) -> Decision:
    """End every share of the lead with `user_id` now; an edit under way is waited for."""
    return _change_sharing(conn, lead_id, "unshare", user_id, (None, None), note)


def _change_owner(conn: AnyConnection, lead_id: Any, change: str, user_id: str | None, note: str | None) -> Decision:
    s = current()
    lead, user = type_name(s.lead_id_type), type_name(s.user_id_type)
    call = f"change_owner(%s::{lead}, %s::pg_catalog.text, %s::{user}, %s::pg_catalog.text)"
    action = "UNASSIGN" if change == "release" else "ASSIGN"
    return _change(conn, lead_id, action, call, (change, user_id, note), note)


def _change_sharing(
    conn: AnyConnection,
    lead_id: Any,
    change: str,
    user_id: UUID | str,
    dates: tuple[Any, Any],
    note: str | None,
) -> Decision:
    check_dates(*dates)
    s = current()
    call = (
        f"change_sharing(%s::{type_name(s.lead_id_type)}, %s::pg_catalog.text, %s::{type_name(s.user_id_type)}, "
        "%s::pg_catalog.timestamptz, %s::pg_catalog.timestamptz, %s::pg_catalog.text)"
    )
    action = "ASSIGN" if change == "share" else "UNASSIGN"
    return _change(conn, lead_id, action, call, (change, as_user_id(user_id), *dates, note), note)


def _change(
    conn: AnyConnection, lead_id: Any, action: str, call: str, values: tuple[Any, ...], note: str | None
) -> Decision:
    with metrics.timed("change"):
        attempt = attempted(conn, call, (as_lead_id(lead_id), *values), action=action, note=note)
    return conclude(conn, Decision(lead_id, attempt.reason), attempt)
