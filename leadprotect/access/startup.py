"""Whether a service may serve at all: what contract promises, asked of the catalog for the session that asks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadprotect.database.bound import per_database
from leadprotect.database.statements import rows
from leadprotect.errors import InvalidRequest, NotProtected
from leadprotect.settings import current
from leadprotect.settings.codes import OFFICES
from leadprotect.settings.names import HOST_TRIGGERS

if TYPE_CHECKING:
    from collections.abc import Collection

    from leadprotect.database.drivers import AnyConnection
    from leadprotect.settings import Settings

DANGERS = {
    "not_migrated": "the database holds no leadprotect in this schema: alembic upgrade head",
    "row_security_off": "row security of the leads is off: leadprotect doctor tells what else is missing",
    "no_border": "the policy of the border is not on the leads: leadprotect doctor",
    "triggers": "a trigger of contract is gone, disabled, or does not fire always: leadprotect doctor",
    "superuser": "the role that acts is a superuser, whom no row security binds: log in as another one",
    "bypasses": "the role that acts has BYPASSRLS: log in as another one",
    "owner": "the role that acts owns the leads, whom row security does not bind: log in as a member of the app role",
    "no_member": "the role that acts holds no app role with a territory, so it sees no lead: GRANT both, or let it "
    "SET ROLE first",
    "session": "row_security is off or session_replication_role is not origin in this session: RESET both",
}
"""What is found -> what it means and what to do, in the order of danger."""

# one statement that means PostgreSQL's own by every name and operator, whatever the caller's path holds
_ASKED = """
    WITH leads AS (
      SELECT c.oid, c.relowner, c.relrowsecurity, c.relforcerowsecurity FROM pg_catalog.pg_class AS c
      JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
      WHERE n.nspname = %s::pg_catalog.name AND c.relname = %s::pg_catalog.name),
    acting AS (
      SELECT r.oid, r.rolsuper, r.rolbypassrls FROM pg_catalog.pg_roles AS r
      WHERE r.rolname = CASE WHEN pg_catalog.current_setting('role') = 'none' THEN session_user
                          ELSE pg_catalog.current_setting('role')::pg_catalog.name END),
    held AS (
      SELECT r.rolname FROM pg_catalog.pg_roles AS r, acting
      WHERE pg_catalog.starts_with(r.rolname::pg_catalog.text, %s)
        AND pg_catalog.pg_has_role(acting.oid, r.oid, 'USAGE')),
    found AS (
      SELECT 'not_migrated' AS danger WHERE NOT EXISTS (
        SELECT FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = %s::pg_catalog.name AND c.relname = 'user_lead_assignments'::pg_catalog.name)
      UNION ALL SELECT 'row_security_off' WHERE NOT EXISTS (SELECT FROM leads WHERE relrowsecurity)
      UNION ALL SELECT 'no_border' WHERE NOT EXISTS (
        SELECT FROM pg_catalog.pg_policy AS p JOIN leads ON leads.oid = p.polrelid
        WHERE p.polname = %s::pg_catalog.name AND NOT p.polpermissive AND p.polroles = '{0}'::pg_catalog.oid[])
      UNION ALL SELECT 'triggers' WHERE NOT 4::pg_catalog.int8 = (
        SELECT pg_catalog.count(*) FROM pg_catalog.pg_trigger AS t JOIN leads ON leads.oid = t.tgrelid
        WHERE t.tgname = ANY (%s::pg_catalog.name[]) AND t.tgenabled = 'A'::pg_catalog."char")
      UNION ALL SELECT 'superuser' FROM acting WHERE rolsuper
      UNION ALL SELECT 'bypasses' FROM acting WHERE rolbypassrls AND NOT rolsuper
      UNION ALL SELECT 'owner' FROM acting, leads
        WHERE NOT leads.relforcerowsecurity AND NOT acting.rolsuper
          AND pg_catalog.pg_has_role(acting.oid, leads.relowner, 'USAGE')
      UNION ALL SELECT 'no_member' WHERE NOT (
        EXISTS (SELECT FROM held WHERE held.rolname = %s::pg_catalog.name)
        AND EXISTS (SELECT FROM held WHERE NOT held.rolname = ANY (%s::pg_catalog.name[])))
      UNION ALL SELECT 'session'
        WHERE pg_catalog.current_setting('row_security') = 'off'
          OR NOT pg_catalog.current_setting('session_replication_role') = 'origin')
    SELECT danger FROM found
    """.replace(" = ", " OPERATOR(pg_catalog.=) ")
_ON_THE_HOST = {"row_security_off", "no_border", "triggers"}


@per_database
def check_startup(conn: AnyConnection, *, force: Collection[str] = ()) -> None:
    """Raise `NotProtected` where what contract promises does not hold for this session; once, before a service serves.

    One statement on the caller's connection. `force` names what is accepted, as the error
    names it: ``force=["no_member"]`` for a pool that sets a role for each request. With ``host_rls = off`` nothing
    is asked of the host's table. Raises `InvalidRequest` for a name that is none.
    """
    if unknown := sorted(set(force) - set(DANGERS)):
        raise InvalidRequest(f"force: {unknown[0]!r} is none of {', '.join(DANGERS)}")
    s = current()
    found = {danger for (danger,) in rows(conn, _ASKED, _values(s))}
    met = found - set(force) - (_ON_THE_HOST if s.host_rls == "off" else set())
    if met:
        raise NotProtected([(name, DANGERS[name]) for name in DANGERS if name in met])


def _values(s: Settings) -> tuple[object, ...]:
    updates = "audit_stepped" if s.owner_column else "audit_edits"
    triggers = [s.role(HOST_TRIGGERS[name]) for name in ("audit_edit", updates, "audit_truncate", "refuse_move")]
    offices = [s.role(name) for name in OFFICES]
    return (
        *s.leads_table.split(".", 1), s.role(""), s.schema, s.role("border"), triggers, s.role("app"), offices
    )  # fmt: skip
