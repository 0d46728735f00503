"""What the migrating role may do, and the statements that a DBA runs where it may not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.database.catalog import one, relation
from leadprotect.settings import Settings, ident, literal, table
from leadprotect.settings.names import ROLE_COMMENT
from leadprotect.settings.sources import schemas_read

if TYPE_CHECKING:
    import psycopg

_HOLDS = {"owner": "leadprotect's objects", "reader": "the functions that read the host's tables"}
_MAY_LEND = "has_schema_privilege(%s, 'CREATE WITH GRANT OPTION')"
_SET_OPTION = 160000  # from here on a membership without SET or INHERIT exists, and CREATEROLE alone can't grant
# What a member of the owner could do by SET ROLE. A superuser needs no table to be his, so the migrating role takes it;
# of any other owner it may be what his services reach it by.
_MAY_MORE = """
    SELECT bool_or(r.rolsuper OR r.rolbypassrls OR r.rolcreaterole OR r.rolreplication OR r.rolname = ANY (%s))
    FROM pg_roles AS r WHERE pg_has_role(%s::name, r.oid, 'MEMBER')
    """
_DATA_ROLES = (
    "pg_read_all_data", "pg_write_all_data", "pg_maintain", "pg_read_server_files", "pg_write_server_files",
    "pg_execute_server_program",
)  # fmt: skip


def rights(conn: psycopg.Connection[Any], s: Settings, statements: list[str]) -> list[str]:
    """Problems of the migrating role; what a DBA can run against them is added to `statements`."""
    found = _versions(conn, s, statements)
    for role in s.exempt_roles:
        if not one(conn, "SELECT to_regrole(%s)::oid", ident(role)):
            found.append(f"exempt_roles: there is no role {role}")
    if one(conn, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        return found
    found += _roles(conn, s, statements) + _tables(conn, s, statements) + _schemas(conn, s, statements)
    me, database = str(one(conn, "SELECT current_user")), str(one(conn, "SELECT current_database()"))
    if not one(conn, "SELECT has_database_privilege(current_database(), 'CREATE')"):
        found.append(f"role {me} may not create the schema {s.schema} in database {database}")
        statements.append(f"GRANT CREATE ON DATABASE {ident(database)} TO {ident(me)};")
    return found


def missing_role(conn: psycopg.Connection[Any], s: Settings, office: str) -> list[str]:
    """What a DBA runs before a statement that names the owner or the reader; nothing when there is one."""
    return [] if one(conn, "SELECT to_regrole(%s)::oid", ident(s.role(office))) else _acting_for(conn, s, office)


def _versions(conn: psycopg.Connection[Any], s: Settings, statements: list[str]) -> list[str]:
    """In a schema of the host, our owner creates the table with rights that the migrating role lends him."""
    if s.version_table_schema == s.schema:
        return []
    if not one(conn, "SELECT to_regnamespace(%s)::oid", ident(s.version_table_schema)):
        statements.append(f"CREATE SCHEMA {ident(s.version_table_schema)};")
        return [f"version_table_schema: there is no schema {s.version_table_schema}"]
    if relation(conn, s.version_table_schema, s.version_table):
        return []
    asked = "SELECT coalesce(has_schema_privilege(to_regrole(%s)::oid, %s, 'CREATE'), false) OR " + _MAY_LEND
    if not one(conn, asked, ident(s.role("owner")), s.version_table_schema, s.version_table_schema):
        me = str(one(conn, "SELECT current_user"))
        schema = ident(s.version_table_schema)
        statements.append(f"GRANT USAGE, CREATE ON SCHEMA {schema} TO {ident(me)} WITH GRANT OPTION;")
        return [f"version_table_schema: role {me} may not create {s.version_table} in {s.version_table_schema}"]
    return []


def _roles(conn: psycopg.Connection[Any], s: Settings, statements: list[str]) -> list[str]:
    found = []
    me, creates, inherits = conn.execute(
        "SELECT current_user::text, rolcreaterole, rolinherit FROM pg_roles WHERE rolname = current_user"
    ).fetchall()[0]
    existing = {
        row[0] for row in conn.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY (%s)", (list(s.roles),))
    }
    missing = [role for role in s.roles if role not in existing]
    if missing and not creates:
        found.append(f"role {me} may not create roles, and these are missing: {', '.join(missing)}")
        statements += [
            f"{statement} {ident(role)} {rest};"
            for role in missing
            for statement, rest in (("CREATE ROLE", "NOLOGIN"), ("COMMENT ON ROLE", f"IS {literal(ROLE_COMMENT)}"))
        ]
    modern = conn.info.server_version >= _SET_OPTION
    for office, holds in _HOLDS.items():
        role, usable, grants = s.role(office), False, creates
        if role in existing:
            usable = one(conn, "SELECT pg_has_role(%s, 'USAGE')", role)
            if modern:
                usable = usable and one(conn, "SELECT pg_has_role(%s, 'SET')", role)
                grants = creates and one(conn, "SELECT pg_has_role(%s, 'MEMBER WITH ADMIN OPTION')", role)
        if not usable and not (grants and inherits):
            found.append(f"role {me} does not act with the rights of {role}, which owns {holds}")
            statements += _acting_for(conn, s, office)
    return found


def _tables(conn: psycopg.Connection[Any], s: Settings, statements: list[str]) -> list[str]:
    found = []
    me, inherits, modern = conn.execute(
        "SELECT current_user::text, rolinherit, current_setting('server_version_num')::int >= %s "
        "FROM pg_roles WHERE rolname = current_user",
        (_SET_OPTION,),
    ).fetchall()[0]
    children = [(child.table, "lead_tables") for child in s.lead_tables]
    for name, key in (*s.host_tables.items(), *children):
        oid = relation(conn, *name.split(".", 1))
        owner = one(conn, "SELECT pg_get_userbyid(relowner)::text FROM pg_class WHERE oid = %s", oid)
        if owner and not one(conn, "SELECT pg_has_role(%s::text, 'USAGE')", owner):
            found.append(f"{key}: role {me} does not own {name} and can't create triggers and indexes on it")
            if one(conn, "SELECT rolsuper FROM pg_roles WHERE rolname = %s", owner):
                statements.append(f"ALTER TABLE {table(name)} OWNER TO {ident(me)};")
                continue
            if one(conn, _MAY_MORE, [*_DATA_ROLES], owner):
                found[-1] += f"; its owner {owner} may do more than own it, as a member could, too: migrate as {owner}"
                continue
            statements.append(f"GRANT {ident(owner)} TO {ident(me)}{' WITH INHERIT TRUE' if modern else ''};")
            if not modern and not inherits:
                statements.append(f"ALTER ROLE {ident(me)} INHERIT;")
    return found


def _schemas(conn: psycopg.Connection[Any], s: Settings, statements: list[str]) -> list[str]:
    """An index lives in the schema of its table, and leadprotect_owner must reach the table there."""
    found = []
    me, ours = str(one(conn, "SELECT current_user")), [s.role(office) for office in _HOLDS]
    keys = {child.table.split(".", 1)[0]: "lead_tables" for child in s.lead_tables}
    keys |= schemas_read(s)
    indexed = {name.split(".", 1)[0]: key for name, key in reversed(s.host_tables.items())}
    keys |= indexed
    for schema, key in keys.items():
        if not one(conn, "SELECT to_regnamespace(%s)::oid", ident(schema)):
            continue
        if schema in indexed and not one(conn, "SELECT has_schema_privilege(%s, 'CREATE')", schema):
            found.append(f"{key}: role {me} may not create an index in schema {schema}")
            statements.append(f"GRANT CREATE ON SCHEMA {ident(schema)} TO {ident(me)};")
        reaches = (
            "SELECT count(*) = 2 FROM pg_roles WHERE rolname = ANY (%s) AND has_schema_privilege(oid, %s, 'USAGE')"
        )
        if not one(conn, "SELECT has_schema_privilege(%s, 'USAGE')", schema) or not (
            one(conn, reaches, ours, schema)
            or one(conn, "SELECT has_schema_privilege('public', %s, 'USAGE')", schema)
            or one(conn, "SELECT has_schema_privilege(%s, 'USAGE WITH GRANT OPTION')", schema)
        ):
            found.append(f"{key}: role {me} may not use schema {schema}, or not let {' and '.join(ours)} use it")
            statements.append(f"GRANT USAGE ON SCHEMA {ident(schema)} TO {ident(me)} WITH GRANT OPTION;")
    return found


def _acting_for(conn: psycopg.Connection[Any], s: Settings, office: str) -> list[str]:
    """The role exists, and the migrating role acts for it: a role that a DBA makes admits nobody else.

    A membership opens nothing of the host: no policy of ours holds for a member, see `settings.names.inside`.
    """
    role = s.role(office)
    me, superuser, inherits = conn.execute(
        "SELECT rolname::text, rolsuper, rolinherit FROM pg_roles WHERE rolname = current_user"
    ).fetchall()[0]
    exists = one(conn, "SELECT to_regrole(%s)::oid", ident(role))
    statements = [] if exists else [f"CREATE ROLE {ident(role)} NOLOGIN;"]
    if superuser:
        return statements
    modern = conn.info.server_version >= _SET_OPTION
    statements.append(f"GRANT {ident(role)} TO {ident(me)}{' WITH INHERIT TRUE, SET TRUE' if modern else ''};")
    if not modern and not inherits:
        statements.append(f"ALTER ROLE {ident(me)} INHERIT;")
    return statements
