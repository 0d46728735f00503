"""Takes a privilege on an object away as it was given: by its owner, or by somebody to whom he gave the right to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from leadprotect.database.statements import rows
from leadprotect.settings import ident

if TYPE_CHECKING:
    from leadprotect.database.drivers import AnyConnection

PUBLIC = "PUBLIC"
# a column's list holds what was granted on the column alone; that of the table is another object
_LISTS = {
    "relation": "SELECT c.relowner, c.relacl FROM question AS q JOIN pg_catalog.pg_class AS c ON c.oid = q.oid",
    "column": "SELECT c.relowner, a.attacl FROM question AS q JOIN pg_catalog.pg_class AS c ON c.oid = q.oid "
    "JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = q.attname",
    "function": "SELECT p.proowner, coalesce(p.proacl, pg_catalog.acldefault('f', p.proowner)) "
    "FROM question AS q JOIN pg_catalog.pg_proc AS p ON p.oid = q.oid",
    "schema": "SELECT n.nspowner, n.nspacl FROM question AS q JOIN pg_catalog.pg_namespace AS n ON n.oid = q.oid",
    # what the first superuser grants for all of them
    "parameter": "SELECT 10::oid, p.paracl FROM question AS q JOIN pg_catalog.pg_parameter_acl AS p ON p.oid = q.oid",
}
# A REVOKE takes back what its own grantor gave, which for a superuser is the owner; what others gave goes with their
# right to: https://www.postgresql.org/docs/current/sql-revoke.html
_HELD = """
    WITH RECURSIVE question AS (SELECT %s::oid AS oid, %s::text AS attname, %s::text AS role, %s::text[] AS verbs),
    given AS (
      SELECT l.owner, acl.grantor, acl.grantee, acl.privilege_type::text AS verb, acl.is_grantable AS grantable
      FROM ({list}) AS l (owner, list) CROSS JOIN LATERAL pg_catalog.aclexplode(l.list) AS acl),
    asked AS (
      SELECT g.* FROM question AS q CROSS JOIN given AS g LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = g.grantee
      WHERE coalesce(r.rolname::text, 'PUBLIC') = q.role AND (q.verbs IS NULL OR g.verb = ANY (q.verbs))),
    above AS (
      SELECT a.verb, a.grantor AS role, a.owner FROM asked AS a WHERE a.grantor <> a.owner
      UNION SELECT above.verb, g.grantor, g.owner FROM above JOIN given AS g
        ON g.grantee = above.role AND g.verb = above.verb WHERE g.grantor <> g.owner)
    SELECT a.verb, NULL, a.grantable AND EXISTS (
             SELECT FROM given AS g WHERE g.grantor = a.grantee AND g.verb = a.verb), true
    FROM asked AS a WHERE a.grantor = a.owner
    UNION ALL
    SELECT above.verb, pg_catalog.pg_get_userbyid(above.role)::text, true, EXISTS (
             SELECT FROM given AS g
             WHERE g.grantee = above.role AND g.verb = above.verb AND g.grantor = g.owner AND g.grantable)
    FROM above WHERE NOT EXISTS (
      SELECT FROM given AS g
      WHERE g.grantee = above.role AND g.verb = above.verb AND g.grantable AND g.grantor <> g.owner)
      OR EXISTS (
      SELECT FROM given AS g
      WHERE g.grantee = above.role AND g.verb = above.verb AND g.grantable AND g.grantor = g.owner)
    ORDER BY 2 NULLS FIRST, 1
    """
# a REVOKE on the table takes what its own grantor gave of the columns
_COLUMNS = """
    SELECT a.attname::text, bool_or(acl.grantor <> c.relowner)
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid
    CROSS JOIN LATERAL pg_catalog.aclexplode(a.attacl) AS acl LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = acl.grantee
    WHERE c.oid = %s AND coalesce(r.rolname::text, 'PUBLIC') = %s
      AND coalesce(acl.privilege_type = ANY (%s::text[]), true)
    GROUP BY 1 ORDER BY 1
    """


@dataclass(frozen=True)
class Object:
    """What privileges are on: its place in the catalog, and its `name` as GRANT takes it (``SEQUENCE a.b``).

    `kind` is relation, column (then `column` is its name), function, schema or parameter.
    """

    kind: str
    oid: int
    name: str
    column: str | None = None


def revoking(conn: AnyConnection, on: Object, role: str, *verbs: str, option: bool = False) -> str:
    """What the owner or a superuser runs so that `role` no longer has these privileges, or any where none is named.

    Those of a relation reach over its columns, as REVOKE's do.

    `role` may be PUBLIC. With `option` it keeps them, and may no longer grant them.
    """
    query = _HELD.replace("{list}", _LISTS[on.kind])
    made: dict[str, list[str]] = {}
    for verb, giver, hanging, itself in rows(conn, query, (on.oid, on.column, role, list(verbs) or None)):
        what = f"{verb} ({ident(on.column)})" if on.column else verb
        whom = ident(giver) if giver else _who(role)
        tail = f" ON {on.name} FROM {whom}{' CASCADE' if hanging or option else ''};"
        if not giver:
            made.setdefault(("REVOKE GRANT OPTION FOR {}" if option else "REVOKE {}") + tail, []).append(what)
        elif itself:
            made.setdefault("REVOKE GRANT OPTION FOR {}" + tail, []).append(what)
        else:  # it granted this by a right that is gone, or is one to the whole table: only so it hangs on something
            lent = f"GRANT {{}} ON {on.name} TO {whom} WITH GRANT OPTION; "
            made.setdefault(lent + "REVOKE {}" + tail, []).append(what)
    statements = [text.replace("{}", ", ".join(whats)) for text, whats in made.items()]
    if on.kind == "relation":
        for column, passed_on in rows(conn, _COLUMNS, (on.oid, role, list(verbs) or None)):
            part = Object("column", on.oid, on.name, column)
            statements += [revoking(conn, part, role, *verbs)] if passed_on or not statements else []
    return " ".join(statements) or f"REVOKE {', '.join(verbs) or 'ALL'} ON {on.name} FROM {_who(role)};"


def _who(role: str) -> str:
    return role if role == PUBLIC else ident(role)
