"""Objects of our names that are somebody else's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect._rights import missing_owner, one, relation
from leadprotect.settings import Settings, ident

if TYPE_CHECKING:
    import psycopg


def strangers(conn: psycopg.Connection[Any], s: Settings, statements: list[str]) -> list[str]:
    found = []
    in_schema = """
        SELECT relname::text FROM pg_class WHERE relnamespace = to_regnamespace(%(schema)s) AND relkind <> 'i'
        UNION SELECT proname::text FROM pg_proc WHERE pronamespace = to_regnamespace(%(schema)s)
        UNION SELECT typname::text FROM pg_type
          WHERE typnamespace = to_regnamespace(%(schema)s) AND typtype IN ('e', 'd')
        ORDER BY 1 LIMIT 10
        """
    for (name,) in conn.execute(in_schema, {"schema": ident(s.schema)}).fetchall():
        found.append(
            f"{s.schema}.{name} exists, but no revision of leadprotect is applied: it is not ours; "
            "rename it, or choose another name with the key schema"
        )
    for host, suffix in ((s.leads_table, "leads"), (s.activities_table, "activities")):
        schema, name = host.split(".", 1)[0], f"ix_{s.schema}_{suffix}"
        if relation(conn, schema, name):
            found.append(
                f"{schema}.{name} exists, but no revision of leadprotect is applied: it is not ours; rename it"
            )
    owner = one(
        conn,
        "SELECT r.rolname FROM pg_namespace AS n JOIN pg_roles AS r ON r.oid = n.nspowner "
        "WHERE n.oid = to_regnamespace(%s)",
        ident(s.schema),
    )
    if owner and owner != s.role("owner"):
        found.append(f"schema {s.schema} exists and belongs to {owner}, not to {s.role('owner')}")
        statements += missing_owner(conn, s)
        statements.append(f"ALTER SCHEMA {ident(s.schema)} OWNER TO {ident(s.role('owner'))};")
    return found + _powers(conn, s, statements) + _on_host(conn, s)


def _powers(conn: psycopg.Connection[Any], s: Settings, statements: list[str]) -> list[str]:
    """Roles are cluster-wide: one of our names may be somebody's."""
    powers = (
        "SELECT rolname FROM pg_roles WHERE rolname = ANY (%s) "
        "AND (rolcanlogin OR rolsuper OR rolbypassrls OR rolcreaterole OR rolreplication) ORDER BY rolname"
    )
    found = []
    for (role,) in conn.execute(powers, (list(s.roles),)).fetchall():
        found.append(f"role {role} exists with powers that it must not have (login, superuser, bypassrls, createrole)")
        statements.append(f"ALTER ROLE {ident(role)} NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOREPLICATION;")
    return found


def _on_host(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    query = """
        SELECT 'trigger ' || tgname FROM pg_trigger
        WHERE tgrelid IN (%(leads)s, %(activities)s)
          AND NOT tgisinternal AND starts_with(tgname::text, %(prefix)s)
        UNION ALL
        SELECT 'policy ' || polname FROM pg_policy
        WHERE polrelid = %(leads)s AND starts_with(polname::text, %(prefix)s)
        ORDER BY 1
        """
    names = {
        "leads": relation(conn, *s.leads_table.split(".", 1)),
        "activities": relation(conn, *s.activities_table.split(".", 1)),
        "prefix": f"{s.schema}_",
    }
    return [
        f"{row[0]} exists on the host's tables, but no revision of leadprotect is applied: rename it"
        for row in conn.execute(query, names).fetchall()
    ]
