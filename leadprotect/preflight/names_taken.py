"""Objects of our names that are somebody else's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.database.catalog import one, relation
from leadprotect.preflight.rights import missing_owner
from leadprotect.settings import Settings, ident

if TYPE_CHECKING:
    import psycopg


# what the revisions create on the host's tables, without the prefix of our schema
_TRIGGERS = ("transition", "territory", "forget", "note_writes", "audit_edit", "refuse_move", "refuse_truncate")
_POLICIES = ("owner", "unprotected", "floor", "update", "delete", "exempt")


def strangers(conn: psycopg.Connection[Any], s: Settings, statements: list[str]) -> list[str]:
    """On a database without a revision nothing of our names is ours."""
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


def later_strangers(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    """On a database with a revision, what is in the way of those to come: ours belong to our owner, or lead to it."""
    in_schema = """
        SELECT name, pg_get_userbyid(owner)::text FROM (
          SELECT relname::text AS name, relowner AS owner FROM pg_class
          WHERE relnamespace = to_regnamespace(%(schema)s) AND relkind <> 'i'
          UNION SELECT proname::text, proowner FROM pg_proc WHERE pronamespace = to_regnamespace(%(schema)s)
          UNION SELECT typname::text, typowner FROM pg_type
            WHERE typnamespace = to_regnamespace(%(schema)s) AND typtype IN ('e', 'd')) AS ours
        WHERE pg_get_userbyid(owner) <> %(owner)s ORDER BY 1 LIMIT 10
        """
    found = [
        f"{s.schema}.{name} belongs to {owner}, not to {s.role('owner')}: it is not ours; move it to another schema"
        for name, owner in conn.execute(in_schema, {"schema": ident(s.schema), "owner": s.role("owner")}).fetchall()
    ]
    return found + _indexes(conn, s) + _later_on_host(conn, s)


def _indexes(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    """An index of our name on other columns would be taken for ours, or dropped as a broken one."""
    activities = [s.activity_lead_id_column, s.activity_at_column, s.activity_id_column, s.activity_user_id_column]
    query = """
        SELECT EXISTS (
          SELECT FROM pg_index AS i
          WHERE i.indexrelid = %s AND i.indrelid = %s AND NOT i.indisunique AND (i.indpred IS NULL) = %s
            AND %s::text[] = ARRAY(
              SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY AS k (number, place)
              LEFT JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.number ORDER BY k.place))
        """
    found = []
    for table, suffix, whole, columns in (
        (s.leads_table, "leads", True, [s.territory_column, s.lead_id_column]),
        (s.activities_table, "activities", False, activities),
    ):
        schema, host = table.split(".", 1)
        oid = relation(conn, schema, f"ix_{s.schema}_{suffix}")
        if oid and not one(conn, query, oid, relation(conn, schema, host), whole, columns):
            found.append(f"{schema}.ix_{s.schema}_{suffix} exists and is not the index of leadprotect: rename it")
    return found


def _later_on_host(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    query = """
        SELECT 'trigger ' || tgname FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
        WHERE tgrelid IN (%(leads)s, %(activities)s) AND tgname = ANY (%(triggers)s)
          AND p.pronamespace <> to_regnamespace(%(schema)s)
        UNION ALL
        SELECT 'policy ' || polname FROM pg_policy
        WHERE polrelid = %(leads)s AND NOT %(enforced)s
          AND (polname = ANY (%(policies)s) OR starts_with(polname::text, %(territory)s))
        ORDER BY 1
        """
    names = {
        "leads": relation(conn, *s.leads_table.split(".", 1)),
        "activities": relation(conn, *s.activities_table.split(".", 1)),
        "schema": ident(s.schema),
        "enforced": relation(conn, s.schema, "host_row_security") is not None,
        "triggers": [s.role(name) for name in _TRIGGERS],
        "policies": [s.role(name) for name in _POLICIES],
        "territory": s.role("territory_"),
    }
    return [
        f"{row[0]} exists on the host's tables and is not leadprotect's: rename it"
        for row in conn.execute(query, names).fetchall()
    ]
