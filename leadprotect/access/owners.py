"""Who owns leads, since when and by whose hand; for who looks something up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadprotect.access.arguments import as_lead_id
from leadprotect.access.context import require_order
from leadprotect.database.bound import per_database
from leadprotect.database.statements import rows
from leadprotect.settings import current, render, type_name

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from leadprotect.database.drivers import AnyConnection

_NOBODY = {"uuid": "00000000-0000-0000-0000-000000000000", "text": "nobody", "bigint": "0", "integer": "0"}


@dataclass(frozen=True)
class Owned:
    """A lead of the territory in context: `owner` None where nobody owns it, `here` False where it is none of these.

    `source` says how it came to him, `shared_with` who else may edit this lead now or later.
    """

    lead_id: Any
    here: bool
    owner: Any | None
    assigned_at: datetime | None
    assigned_by: Any | None
    source: str | None
    shared_with: tuple[Any, ...]


@per_database
def owned(conn: AnyConnection, lead_ids: Iterable[Any]) -> tuple[Owned, ...]:
    """Who owns each lead, in the order asked; for managers and auditors of the territory in context.

    Raises `InvalidRequest` for an id of the wrong type, `ProtectionUnavailable` for a login without the role.
    """
    s = current()
    kind = type_name(s.lead_id_type)
    statement = render(
        "SELECT asked.lead, {schema}.decide(asked.lead, %s, (SELECT {schema}.admitted_territory())), a.user_id, "
        "a.assigned_at, a.assigned_by, a.source, ARRAY(SELECT r.user_id FROM {schema}.lead_protection_rules AS r "
        "WHERE r.lead_id OPERATOR(pg_catalog.=) asked.lead AND r.protection OPERATOR(pg_catalog.=) 'COLLABORATOR' "
        "AND r.territory OPERATOR(pg_catalog.=) (SELECT {schema}.admitted_territory()) AND r.active "
        "AND (r.effective_to IS NULL OR r.effective_to OPERATOR(pg_catalog.>) pg_catalog.statement_timestamp()) "
        f"ORDER BY r.user_id) FROM ROWS FROM (pg_catalog.unnest(%s::{kind}[])) WITH ORDINALITY AS asked (lead, place) "
        "LEFT JOIN {schema}.user_lead_assignments AS a ON a.lead_id OPERATOR(pg_catalog.=) asked.lead "
        "AND a.territory OPERATOR(pg_catalog.=) (SELECT {schema}.admitted_territory()) ORDER BY asked.place",
        s,
    )
    leads = [as_lead_id(lead) for lead in lead_ids]
    require_order(conn)
    found = rows(conn, statement, (_NOBODY[s.user_id_type], leads))
    return tuple(
        Owned(lead, reason not in ("not_found", "no_context", "unprotected"), owner, at, by, source, tuple(shared))
        for lead, reason, owner, at, by, source, shared in found
    )
