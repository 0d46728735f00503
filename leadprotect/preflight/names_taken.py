"""Objects of our names that are somebody else's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.database.catalog import one, relation
from leadprotect.database.memberships import revokes
from leadprotect.preflight.rights import missing_role
from leadprotect.settings import Settings, ident, literal, render
from leadprotect.settings.names import (
    CHILD_POLICIES,
    CHILD_TRIGGERS,
    HOST_POLICIES,
    ROLE_COMMENT,
    SHADOW_CHILD_TRIGGERS,
    SHADOW_TRIGGERS,
    host_indexes,
    trigger_names,
)
from leadprotect.settings.sources import indexed

if TYPE_CHECKING:
    from collections.abc import Sequence

    import psycopg


def strangers(conn: psycopg.Connection[Any], s: Settings, statements: list[str]) -> list[str]:
    """On a database without a revision nothing of our names is ours."""
    found = []
    in_schema = """
        SELECT relname::text FROM pg_class
        WHERE relnamespace = to_regnamespace(%(schema)s) AND relkind <> 'i' AND relname IS DISTINCT FROM %(versions)s
        UNION SELECT proname::text FROM pg_proc WHERE pronamespace = to_regnamespace(%(schema)s)
        UNION SELECT typname::text FROM pg_type
          WHERE typnamespace = to_regnamespace(%(schema)s) AND typtype IN ('e', 'd')
        ORDER BY 1 LIMIT 10
        """
    # an empty version table of ours is what an interrupted command left
    versions = s.version_table if s.version_table_schema == s.schema else None
    for (name,) in conn.execute(in_schema, {"schema": ident(s.schema), "versions": versions}).fetchall():
        found.append(
            f"{s.schema}.{name} exists, but no revision of leadprotect is applied: it is not ours; "
            "rename it, or choose another name with the key schema"
        )
    for name, host in host_indexes(s).items():
        schema = host.split(".", 1)[0]
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
        statements += missing_role(conn, s, "owner")
        statements.append(render("ALTER SCHEMA {schema} OWNER TO {owner};", s))
    return found + taken_roles(conn, s.roles, statements) + _on_host(conn, s)


def taken_roles(conn: psycopg.Connection[Any], names: Sequence[str], statements: list[str]) -> list[str]:
    """Roles are cluster-wide: one of our names may be somebody's. It is taken over only when it is harmless."""
    query = """
        SELECT r.rolname::text,
               ARRAY(SELECT m.rolname::text FROM pg_auth_members AS g JOIN pg_roles AS m ON m.oid = g.member
                     WHERE g.roleid = r.oid AND NOT m.rolsuper AND m.rolname <> current_user ORDER BY 1),
               shobj_description(r.oid, 'pg_authid') IS NOT DISTINCT FROM %s
        FROM pg_roles AS r WHERE r.rolname = ANY (%s) ORDER BY 1
        """
    found = empowered_roles(conn, names, statements)
    for role, members, ours in conn.execute(query, (ROLE_COMMENT, list(names))).fetchall():
        if members and not ours:
            found.append(
                f"role {role} exists, no migration of leadprotect made it, and it has members: {', '.join(members)}. "
                "If they are meant to have its rights, a DBA says so by the role's comment"
            )
            statements += [statement for member in members for statement in revokes(conn, role, member)]
            statements.append(f"-- or: COMMENT ON ROLE {ident(role)} IS {literal(ROLE_COMMENT)};")
    return found


def empowered_roles(conn: psycopg.Connection[Any], names: Sequence[str], statements: list[str]) -> list[str]:
    """Roles of ours with a login, powers, or groups: a role that is to be a name for rights has none of its own."""
    query = """
        SELECT r.rolname::text,
               r.rolcanlogin OR r.rolsuper OR r.rolbypassrls OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication,
               ARRAY(SELECT b.rolname::text FROM pg_auth_members AS g JOIN pg_roles AS b ON b.oid = g.roleid
                     WHERE g.member = r.oid ORDER BY 1)
        FROM pg_roles AS r WHERE r.rolname = ANY (%s) ORDER BY 1
        """
    found = []
    for role, powers, groups in conn.execute(query, (list(names),)).fetchall():
        if powers:
            found.append(
                f"role {role} exists with powers that it must not have (login, superuser, bypassrls, createrole)"
            )
            statements.append(
                f"ALTER ROLE {ident(role)} NOLOGIN NOSUPERUSER NOBYPASSRLS NOCREATEROLE NOCREATEDB NOREPLICATION;"
            )
        if groups:
            found.append(
                f"role {role} exists as a member of {', '.join(groups)}, so it has rights that it must not have"
            )
            statements += [statement for group in groups for statement in revokes(conn, group, role)]
    return found


def _on_host(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    query = """
        SELECT 'trigger ' || tgname FROM pg_trigger
        WHERE tgrelid = ANY (%(tables)s)
          AND NOT tgisinternal AND starts_with(tgname::text, %(prefix)s)
        UNION ALL
        SELECT 'policy ' || polname FROM pg_policy
        WHERE polrelid = ANY (%(tables)s) AND starts_with(polname::text, %(prefix)s)
        ORDER BY 1
        """
    hosts = (*s.host_tables, *(child.table for child in s.lead_tables))
    names = {"tables": [relation(conn, *name.split(".", 1)) for name in hosts], "prefix": f"{s.schema}_"}
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
        WHERE pg_get_userbyid(owner) <> ALL (%(owners)s) ORDER BY 1 LIMIT 10
        """
    owners = [s.role("owner"), s.role("reader")]
    found = [
        f"{s.schema}.{name} belongs to {owner}, not to {s.role('owner')}: it is not ours; move it to another schema"
        for name, owner in conn.execute(in_schema, {"schema": ident(s.schema), "owners": owners}).fetchall()
    ]
    return found + _indexes(conn, s) + _later_on_host(conn, s)


def _indexes(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    """An index of our name on other columns would be taken for ours, or dropped as a broken one."""
    query = """
        SELECT EXISTS (
          SELECT FROM pg_index AS i
          WHERE i.indexrelid = %s AND i.indrelid = %s AND NOT i.indisunique AND (i.indpred IS NULL) = %s
            AND %s::text[] = ARRAY(
              SELECT a.attname::text FROM unnest(i.indkey) WITH ORDINALITY AS k (number, place)
              LEFT JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = k.number ORDER BY k.place))
        """
    found = []
    wanted: list[tuple[bool, list[str | None]]] = [(True, [s.territory_column or None, s.lead_id_column])]
    wanted += [(bool(source.base_table), [*indexed(source)]) for source in s.activities]
    for (index, table), (whole, columns) in zip(host_indexes(s).items(), wanted, strict=True):
        schema, host = table.split(".", 1)
        oid = relation(conn, schema, index)
        if oid and not one(conn, query, oid, relation(conn, schema, host), whole, columns):
            found.append(f"{schema}.{index} exists and is not the index of leadprotect: rename it")
    return found


def _later_on_host(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    query = """
        SELECT polname::text FROM pg_policy
        WHERE polrelid = %(leads)s AND NOT %(enforced)s AND polname = ANY (%(policies)s) ORDER BY 1
        """
    names = {
        "leads": relation(conn, *s.leads_table.split(".", 1)),
        "enforced": relation(conn, s.schema, "host_row_security") is not None,
        "policies": [s.role(name) for name in HOST_POLICIES],
    }
    return [
        f"trigger {name} exists on the host's tables and is not leadprotect's: rename it"
        for name in taken_triggers(conn, s)
    ] + [
        f"policy {name} exists on the host's tables and is not leadprotect's: rename it"
        for (name,) in [*conn.execute(query, names).fetchall(), *_on_children(conn, s)]
    ]


def _on_children(conn: psycopg.Connection[Any], s: Settings) -> list[tuple[str]]:
    """Policies by our names on the tables of leads that contract has not come to yet."""
    made = relation(conn, s.schema, "lead_table_row_security")
    tables = [] if made else [relation(conn, *child.table.split(".", 1)) for child in s.lead_tables]
    query = "SELECT polname::text FROM pg_policy WHERE polrelid = ANY (%s) AND polname = ANY (%s) ORDER BY 1"
    return conn.execute(query, (tables, [s.role(name) for name in CHILD_POLICIES])).fetchall()


def taken_triggers(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    """Triggers of the host by names of ours: they call no function of ours, and the way up or down would meet them."""
    query = """
        SELECT t.tgname::text FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
        WHERE t.tgrelid = ANY (%(tables)s) AND t.tgname = ANY (%(triggers)s)
          AND p.pronamespace <> to_regnamespace(%(schema)s) ORDER BY 1
        """
    hosts = (*s.host_tables, *(child.table for child in s.lead_tables))
    names = {
        "tables": [relation(conn, *name.split(".", 1)) for name in hosts],
        "schema": ident(s.schema),
        "triggers": [
            *trigger_names(s),
            *(s.role(name) for name in (*CHILD_TRIGGERS.values(), *SHADOW_TRIGGERS, *SHADOW_CHILD_TRIGGERS)),
        ],
    }
    return [name for (name,) in conn.execute(query, names).fetchall()]
