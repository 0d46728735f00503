"""Whether the owner of our functions sees every row of the host's tables.

Row security that the host had before binds it too, and a table that looks empty looks finished.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadprotect._sql import rows
from leadprotect.errors import PreflightError
from leadprotect.settings import Settings, ident, table

if TYPE_CHECKING:
    from leadprotect._sql import AnyConnection

# what binds whom: https://www.postgresql.org/docs/current/ddl-rowsecurity.html
_QUERY = """
    SELECT coalesce(p.opened, false), coalesce(p.binding, '{}')
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_catalog.pg_roles AS o ON o.rolname = %s
    CROSS JOIN LATERAL (
      SELECT bool_or(q.polpermissive AND q.condition = 'true') AS opened,
             array_agg(q.polname::text ORDER BY q.polname)
               FILTER (WHERE NOT q.polpermissive AND q.condition <> 'true') AS binding
      FROM (
        SELECT polname, polpermissive, pg_catalog.pg_get_expr(polqual, polrelid) AS condition
        FROM pg_catalog.pg_policy
        WHERE polrelid = c.oid AND polcmd IN ('r', '*') AND EXISTS (
          SELECT FROM unnest(polroles) AS bound
          WHERE bound = 0 OR coalesce(pg_catalog.pg_has_role(o.oid, bound, 'USAGE'), false))) AS q) AS p
    WHERE n.nspname = %s AND c.relname = %s AND c.relrowsecurity AND NOT coalesce(
      o.rolsuper OR o.rolbypassrls
      OR (NOT c.relforcerowsecurity AND pg_catalog.pg_has_role(o.oid, c.relowner, 'USAGE')), false)
    """


def visibility(conn: AnyConnection, s: Settings, statements: list[str]) -> list[str]:
    """Host tables that the owner can't see whole; what opens them is added to `statements`."""
    found = []
    owner = s.role("owner")
    for key, name in (("leads_table", s.leads_table), ("activities_table", s.activities_table)):
        for opened, binding in rows(conn, _QUERY, (owner, *name.split(".", 1))):
            if not opened:
                found.append(
                    f"{key}: {name} has row-level security, and no policy lets {owner} see every row: "
                    "leads without an owner would look like none"
                )
                # a name of its own: whatever begins like our schema is dropped or refused as ours
                statements.append(
                    f"CREATE POLICY {ident(f'read_for_{owner}')} ON {table(name)} "
                    f"FOR SELECT TO {ident(owner)} USING (true);"
                )
            found += [
                f"{key}: the restrictive policy {policy} on {name} hides rows from {owner}, which must see them all: "
                f"ALTER POLICY {ident(policy)} ON {table(name)} TO the roles of your application"
                for policy in binding
            ]
    return found


def check_visible(conn: AnyConnection, s: Settings) -> None:
    """Raise `PreflightError` when the owner can't see every row of the host's tables."""
    statements: list[str] = []
    if problems := visibility(conn, s, statements):
        raise PreflightError(problems, statements)
