"""Who may do what with our tables, and who will be able to with those to come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect import phases
from leadprotect.database.privileges import Object, revoking
from leadprotect.doctor import present
from leadprotect.doctor.finding import Fault, check
from leadprotect.doctor.likeness import real_role
from leadprotect.doctor.shipped import shipped
from leadprotect.doctor.versions import applied
from leadprotect.settings import Settings, ident, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

WITH_OPTION = " WITH GRANT OPTION"


@check(
    "danger",
    "Nobody writes our tables but our functions; who reads more than shipped may see more than he should.",
    needs="text",
)
def table_grants(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A privilege on a table, view or sequence of ours that was not shipped; a warning where a shipped one is gone."""
    wanted, complete = shipped(s).tables, not phases.pending(applied(conn, s))
    for one in present.tables(conn, s):
        expected = {(role, verb) for role, verb in wanted.get(one.shipped_as, {}).get("grants", ())}
        what = f"{'SEQUENCE' if one.kind == 'S' else 'TABLE'} {ident(s.schema, one.name)}"
        on = Object("relation", one.oid, what)
        for role, verb in sorted(one.grants - expected):
            plain = verb.removesuffix(WITH_OPTION)
            mends = revoking(conn, on, real_role(role, s), plain, option=(role, plain) in expected)
            yield Fault(f"{s.schema}.{one.name}", f"{role} has {verb}", mends)
        held = {(role, verb.removesuffix(WITH_OPTION)) for role, verb in one.grants}
        for role, verb in sorted(expected - held) if complete else ():
            mends = f"GRANT {verb} ON {what} TO {_who(role, s)};"
            yield Fault(f"{s.schema}.{one.name}", f"{role} lacks {verb}", mends, "warning")


@check("danger", "A grant on a column is a grant: what it shows or changes is not said by the table's privileges.")
def column_grants(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A privilege on a single column of a table of ours: none was shipped."""
    query = """
        SELECT DISTINCT c.oid, c.relname::text, a.attname::text, coalesce(r.rolname::text, 'PUBLIC'), acl.privilege_type
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace JOIN pg_attribute AS a ON a.attrelid = c.oid
        CROSS JOIN LATERAL aclexplode(a.attacl) AS acl LEFT JOIN pg_roles AS r ON r.oid = acl.grantee
        WHERE n.nspname = %s AND acl.grantee <> c.relowner AND (n.nspname, c.relname) <> (%s, %s)
        ORDER BY 2, 3, 4, 5
        """
    values = (s.schema, s.version_table_schema, s.version_table)
    for oid, name, column, role, verb in conn.execute(query, values).fetchall():
        mends = revoking(conn, Object("column", oid, ident(s.schema, name), column), role, verb)
        yield Fault(f"{s.schema}.{name}.{column}", f"{role} has {verb}", mends)


@check("danger", "Whoever creates in our schema puts his own beside ours, to be called with our names.")
def schema_open(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A role other than our owner that may create in our schema; or the schema of another owner."""
    query = """
        SELECT n.oid, pg_get_userbyid(n.nspowner)::text, ARRAY(
                 SELECT DISTINCT coalesce(r.rolname::text, 'PUBLIC') FROM aclexplode(n.nspacl) AS acl
                 LEFT JOIN pg_roles AS r ON r.oid = acl.grantee
                 WHERE acl.privilege_type = 'CREATE' AND acl.grantee <> n.nspowner ORDER BY 1)
        FROM pg_namespace AS n WHERE n.nspname = %s
        """
    for oid, owner, roles in conn.execute(query, (s.schema,)).fetchall():
        if owner != s.role("owner"):
            mends = f"ALTER SCHEMA {ident(s.schema)} OWNER TO {ident(s.role('owner'))};"
            yield Fault(f"schema {s.schema}", f"it belongs to {owner}", mends)
        for role in roles:
            mends = revoking(conn, Object("schema", oid, f"SCHEMA {ident(s.schema)}"), role, "CREATE")
            yield Fault(f"schema {s.schema}", f"{role} may create in it", mends)


@check("warning", "What a later release makes would be theirs, too.")
def default_privileges(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """Default privileges on what our owner or reader makes, or what is made in our schema, for others."""
    query = """
        SELECT pg_get_userbyid(d.defaclrole)::text, n.nspname::text, d.defaclobjtype::text,
               coalesce(r.rolname::text, 'PUBLIC'), string_agg(DISTINCT acl.privilege_type, ', ')
        FROM pg_default_acl AS d LEFT JOIN pg_namespace AS n ON n.oid = d.defaclnamespace
        CROSS JOIN LATERAL aclexplode(d.defaclacl) AS acl LEFT JOIN pg_roles AS r ON r.oid = acl.grantee
        WHERE (pg_get_userbyid(d.defaclrole) = ANY (%(ours)s) OR n.nspname = %(schema)s) AND acl.grantee <> d.defaclrole
          AND NOT (n.oid IS NULL AND EXISTS (
            SELECT FROM aclexplode(acldefault(
              CASE d.defaclobjtype WHEN 'S' THEN 's' ELSE d.defaclobjtype END, d.defaclrole)) AS usual
            WHERE (usual.grantee, usual.privilege_type) = (acl.grantee, acl.privilege_type)))
        GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
        """
    kinds = {"r": "TABLES", "S": "SEQUENCES", "f": "FUNCTIONS", "T": "TYPES", "n": "SCHEMAS"}
    values = {"ours": [s.role("owner"), s.role("reader")], "schema": s.schema}
    for owner, schema, kind, role, verbs in conn.execute(query, values).fetchall():
        inside = f" IN SCHEMA {ident(schema)}" if schema else ""
        what = kinds.get(kind, "TABLES")
        mends = f"ALTER DEFAULT PRIVILEGES FOR ROLE {ident(owner)}{inside} REVOKE ALL ON {what} FROM {_who(role, s)};"
        yield Fault(f"role {owner}", f"{role} gets {verbs} on the {what.lower()} that it makes{inside}", mends)


@check("warning", "A trigger or a key of theirs runs in the edits of everybody else.")
def leads_dangerous_grants(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """TRIGGER or REFERENCES on the leads or lead_tables for others than their owner, by name or through PUBLIC."""
    query = """
        SELECT given.attname, coalesce(r.rolname::text, 'PUBLIC'), array_agg(DISTINCT acl.privilege_type)
        FROM (
          SELECT NULL, c.relowner, c.relacl FROM pg_class AS c WHERE c.oid = %(table)s
          UNION ALL SELECT a.attname::text, c.relowner, a.attacl
          FROM pg_class AS c JOIN pg_attribute AS a ON a.attrelid = c.oid WHERE c.oid = %(table)s
        ) AS given (attname, relowner, list)
        CROSS JOIN LATERAL aclexplode(given.list) AS acl LEFT JOIN pg_roles AS r ON r.oid = acl.grantee
        WHERE acl.grantee <> given.relowner AND acl.privilege_type IN ('TRIGGER', 'REFERENCES')
          AND coalesce(NOT r.rolsuper, true) GROUP BY 1, 2 ORDER BY 1 NULLS FIRST, 2
        """
    children = [(child.table, oid) for child, oid in present.children(conn, s)]
    for host, oid in [(s.leads_table, present.leads(conn, s)), *children]:
        for column, role, verbs in conn.execute(query, {"table": oid}).fetchall():
            on = Object("column" if column else "relation", oid or 0, table(host), column)
            where = f"{host}.{column}" if column else host
            yield Fault(where, f"{role} has {', '.join(verbs)}", revoking(conn, on, role, *verbs))


def _who(role: str, s: Settings) -> str:
    """A role as SQL; of a neutral name, the role of ours that bears it."""
    real = real_role(role, s)
    return real if real == "PUBLIC" else ident(real)
