"""What a DBA made by hand for us, and nobody but a DBA takes back: found by what it says of our roles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadprotect.database.memberships import revokes_whole
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.database.statements import own_names
from leadprotect.errors import RollbackError
from leadprotect.migration.roles import our_roles
from leadprotect.settings import Settings, current, ident, literal

if TYPE_CHECKING:
    import psycopg

# https://www.postgresql.org/docs/current/catalog-pg-shdepend.html
_DEPENDING = """
    SELECT d.deptype::text, r.rolname::text, i.type, i.identity, d.objid::bigint
    FROM pg_shdepend AS d JOIN pg_roles AS r ON d.refclassid = 'pg_authid'::regclass AND r.oid = d.refobjid
    CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, d.objsubid) AS i
    WHERE r.rolname = ANY (%s) AND d.deptype IN ('a', 'o', 'r')
      AND d.dbid IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
    ORDER BY d.deptype DESC, i.type, i.identity, r.rolname
    """
_POLICY = """
    SELECT p.polname::text, p.polrelid::regclass::text, ARRAY(
      SELECT quote_ident(r.rolname) FROM pg_roles AS r
      WHERE r.oid = ANY (p.polroles) AND r.rolname <> ALL (%s) ORDER BY 1)
    FROM pg_policy AS p WHERE p.oid = %s
    """
_SETTINGS = """
    SELECT r.rolname::text, coalesce(b.datname::text, '') FROM pg_db_role_setting AS s
    JOIN pg_roles AS r ON r.oid = s.setrole LEFT JOIN pg_database AS b ON b.oid = s.setdatabase
    WHERE r.rolname = ANY (%s) AND (s.setdatabase = 0 OR b.datname = current_database()) ORDER BY 1, 2
    """
_ELSEWHERE = """
    SELECT DISTINCT b.datname::text FROM pg_shdepend AS d JOIN pg_database AS b ON b.oid = d.dbid
    JOIN pg_roles AS r ON d.refclassid = 'pg_authid'::regclass AND r.oid = d.refobjid
    WHERE r.rolname = ANY (%s) AND b.datname <> current_database() ORDER BY 1
    """
_REVOKED = {"view": "TABLE", "materialized view": "TABLE", "foreign table": "TABLE", "procedure": "ROUTINE"}
_NAMED = ("table", "schema", "function", "database", "sequence", "type", "language", *_REVOKED)


@dataclass(frozen=True)
class Left:
    """Something that names a role of ours, and the statement by which a DBA takes it back."""

    what: str
    statement: str


def left_by_hand(conn: psycopg.Connection[Any], *, settings: Settings | None = None) -> list[Left]:
    """What names our roles after we are gone: policies, privileges, memberships, settings; at last the roles.

    Reads only. Raises `RollbackError` while our schema or its quarantine stands: until then they are needed.
    """
    s = settings or current()
    with mapped_errors(), conn.transaction(), own_names(conn):
        for schema in (s.schema, s.quarantine):
            if conn.execute("SELECT to_regnamespace(%s)", (ident(schema),)).fetchone() != (None,):
                raise RollbackError(
                    f"schema {schema} stands, and needs what was made for it: alembic downgrade base, leadprotect purge"
                )
        roles = our_roles(conn, s)
        names = [*roles.names, roles.backup]
        found = [_depending(conn, names, row) for row in conn.execute(_DEPENDING, (names,)).fetchall()]
        for role, database in conn.execute(_SETTINGS, (names,)).fetchall():
            where = f" IN DATABASE {ident(database)}" if database else ""
            found.append(Left(f"settings of role {role}", f"ALTER ROLE {ident(role)}{where} RESET ALL;"))
        elsewhere = [name for (name,) in conn.execute(_ELSEWHERE, (names,)).fetchall()]
        later = f"-- when they are out of {', '.join(map(literal, elsewhere))}: " if elsewhere else ""
        for one in roles.members:
            if one.member not in names:
                revoke = " ".join(revokes_whole(conn, one.role, one.member))
                found.append(Left(f"{one.member} is a member of {one.role}", later + revoke))
        return [*dict.fromkeys(found), *_roles(conn, names, elsewhere)]


def _depending(conn: psycopg.Connection[Any], names: list[str], row: tuple[Any, ...]) -> Left:
    kind, role, type_, identity, oid = row
    if kind == "r":
        policy, table, others = conn.execute(_POLICY.encode(), (names, oid)).fetchall()[0]
        statement = f"DROP POLICY {ident(policy)} ON {table};"
        if others:
            statement = f"ALTER POLICY {ident(policy)} ON {table} TO {', '.join(others)};"
        return Left(f"policy {policy} on {table} is for our roles", statement)
    if kind == "o":
        return Left(f"{type_} {identity} belongs to {role}", f"REASSIGN OWNED BY {ident(role)} TO CURRENT_USER;")
    statement = f"DROP OWNED BY {ident(role)};"  # no REVOKE names it
    if type_ in _NAMED:
        statement = f"REVOKE ALL ON {_REVOKED.get(type_, type_.upper())} {identity} FROM {ident(role)};"
    return Left(f"{role} has privileges on {type_} {identity}", statement)


def _roles(conn: psycopg.Connection[Any], names: list[str], elsewhere: list[str]) -> list[Left]:
    query = "SELECT rolname::text FROM pg_roles WHERE rolname = ANY (%s) ORDER BY 1"
    existing = [role for (role,) in conn.execute(query, (names,)).fetchall()]
    if not existing:
        return []
    if elsewhere:
        where = ", ".join(map(literal, elsewhere))
        return [Left(f"our roles, which other databases use: {where}", f"-- DROP ROLE when they are out of {where}")]
    return [Left("our roles", f"DROP ROLE {', '.join(map(ident, existing))};")]
