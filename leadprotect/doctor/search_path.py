"""What somebody put, or could put, before the names of the server's own catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.database.privileges import Object, revoking
from leadprotect.doctor.finding import Fault, check
from leadprotect.settings import Settings, ident

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

# schemas that a session of this database looks through without being told: the configured paths
_PATHS = """
    SELECT n.oid, n.nspname::text, n.nspowner FROM pg_namespace AS n
    WHERE n.nspname !~ '^pg_' AND n.nspname IN (
      SELECT btrim(name, ' "') FROM unnest(
        string_to_array((SELECT reset_val FROM pg_settings WHERE name = 'search_path'), ',')
        || ARRAY(SELECT unnest(string_to_array(substr(setting, 13), ','))
                 FROM pg_db_role_setting AS d, unnest(d.setconfig) AS setting
                 WHERE setting ~ '^search_path=' AND d.setdatabase IN (
                   0, (SELECT oid FROM pg_database WHERE datname = current_database())))) AS name
      UNION ALL SELECT 'public')
    """


@check("danger", "Whoever creates there puts his own function or operator before the server's, and a DBA runs it.")
def search_path_open(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A schema of the search path in which others than its owner may create: PUBLIC, or a role (a warning)."""
    del s
    query = f"""
        SELECT DISTINCT n.oid, p.nspname, coalesce(r.rolname::text, 'PUBLIC')
        FROM ({_PATHS}) AS p JOIN pg_namespace AS n ON n.oid = p.oid
        CROSS JOIN LATERAL aclexplode(n.nspacl) AS acl LEFT JOIN pg_roles AS r ON r.oid = acl.grantee
        WHERE acl.privilege_type = 'CREATE' AND acl.grantee <> n.nspowner ORDER BY 2, 3
        """
    for oid, schema, role in conn.execute(query.encode()).fetchall():
        public = role == "PUBLIC"
        yield Fault(
            f"schema {schema}",
            f"{'every login' if public else f'role {role}'} may create in it",
            revoking(conn, Object("schema", oid, f"SCHEMA {ident(schema)}"), role, "CREATE"),
            None if public else "warning",
        )


@check("danger", "It fits better than the server's own, so whoever writes the operator runs its function instead.")
def operator_shadows(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """An operator on a search path, of no extension, with the name of one of the server's and types of the server's."""
    del s
    query = f"""
        SELECT p.nspname, o.oprname::text, coalesce(nullif(o.oprleft, 0)::regtype::text, 'NONE'),
               o.oprright::regtype::text
        FROM pg_operator AS o JOIN ({_PATHS}) AS p ON p.oid = o.oprnamespace
        WHERE EXISTS (SELECT FROM pg_operator AS b
                      WHERE b.oprname = o.oprname AND b.oprnamespace = 'pg_catalog'::regnamespace)
          AND NOT EXISTS (SELECT FROM pg_type AS t WHERE t.oid IN (o.oprleft, o.oprright)
                          AND t.typnamespace <> 'pg_catalog'::regnamespace)
          AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_operator'::regclass AND d.objid = o.oid
                          AND d.deptype = 'e')
        ORDER BY 1, 2, 3
        """
    for schema, name, left, right in conn.execute(query.encode()).fetchall():
        label = f"{ident(schema)}.{name} ({left}, {right})"
        yield Fault(f"operator {label}", f"it stands before the server's own {name}", f"DROP OPERATOR {label};")


@check("warning", "A call by its bare name runs it with the rights of whoever calls.")
def function_shadows(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A function on a search path, of no extension, with the name of one of the server's and types of the server's."""
    del s
    query = f"""
        WITH f AS MATERIALIZED (  -- of thousands a few, if any: their arguments are looked up last
          SELECT f.oid, f.proname, f.prokind, f.proargtypes
          FROM pg_proc AS f JOIN ({_PATHS}) AS p ON p.oid = f.pronamespace)
        SELECT f.oid::regprocedure::text, f.proname::text, f.prokind::text FROM f
        WHERE EXISTS (SELECT FROM pg_proc AS b
                      WHERE b.proname = f.proname AND b.pronamespace = 'pg_catalog'::regnamespace)
          AND NOT EXISTS (SELECT FROM unnest(f.proargtypes) AS a JOIN pg_type AS t ON t.oid = a
                          WHERE t.typnamespace <> 'pg_catalog'::regnamespace)
          AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_proc'::regclass AND d.objid = f.oid
                          AND d.deptype = 'e')
        ORDER BY 1
        """
    for signature, name, kind in conn.execute(query.encode()).fetchall():
        what = {"a": "AGGREGATE", "p": "PROCEDURE"}.get(kind, "FUNCTION")
        yield Fault(f"function {signature}", f"it bears the name of the server's {name}", f"DROP {what} {signature};")
