"""Whether the version table is ours and nobody else's: asked of the catalog before anything is executed on it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from leadprotect.database.catalog import one
from leadprotect.database.privileges import Object, revoking
from leadprotect.database.statements import rows
from leadprotect.errors import PreflightError
from leadprotect.preflight.rights import rights
from leadprotect.settings import Settings, ident

if TYPE_CHECKING:
    import psycopg

    from leadprotect.database.drivers import AnyConnection

_REVISION = re.compile(r"[a-z0-9_]+")
_KINDS = {"v": "a view", "m": "a materialized view", "f": "a foreign table", "p": "a partitioned table"}
_TABLE = """
    SELECT c.oid, c.relkind::text, c.relpersistence::text, pg_catalog.pg_get_userbyid(c.relowner)::text,
           EXISTS (SELECT FROM pg_catalog.pg_inherits AS i WHERE c.oid IN (i.inhrelid, i.inhparent)),
           c.relrowsecurity OR c.relforcerowsecurity
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relname = %s
    """
_RESTORED = """
    SELECT FROM pg_catalog.pg_roles AS r
    WHERE r.rolname = %s AND (r.rolsuper OR EXISTS (
        SELECT FROM pg_catalog.pg_class AS l JOIN pg_catalog.pg_namespace AS n ON n.oid = l.relnamespace
        WHERE n.nspname = %s AND l.relname = %s AND l.relowner = r.oid))
      AND EXISTS (
        SELECT FROM pg_catalog.pg_class AS u JOIN pg_catalog.pg_namespace AS n ON n.oid = u.relnamespace
        WHERE n.nspname = %s AND u.relname = 'revision_undo' AND u.relkind = 'r')
    """
# what makes the server run somebody's code, or keep something else than what Alembic wrote
_SHAPE = """
    SELECT 'column ' || a.attname || ' ' || pg_catalog.format_type(a.atttypid, a.atttypmod)
           || CASE WHEN a.attnotnull THEN '' ELSE ' NULL' END
           || CASE WHEN a.atthasdef OR a.attidentity <> '' THEN ' with a default' ELSE '' END
           || CASE WHEN a.attcollation <> t.typcollation THEN ' with a collation' ELSE '' END
    FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
    WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT 'constraint ' || k.conname FROM pg_catalog.pg_constraint AS k
    WHERE k.conrelid = %s AND k.contype NOT IN ('p', 'n')
    UNION ALL
    SELECT 'index ' || i.indexrelid::regclass::text FROM pg_catalog.pg_index AS i
    WHERE i.indrelid = %s AND NOT i.indisprimary
    """
_COLUMN = "column version_num character varying(32)"
_HANGING = """
    SELECT 'trigger', t.tgname::text FROM pg_catalog.pg_trigger AS t WHERE t.tgrelid = %s
    UNION ALL
    SELECT 'rule', r.rulename::text FROM pg_catalog.pg_rewrite AS r WHERE r.ev_class = %s
    UNION ALL
    SELECT 'policy', p.polname::text FROM pg_catalog.pg_policy AS p WHERE p.polrelid = %s
    ORDER BY 1, 2
    """
_GRANTS = """
    SELECT coalesce(r.rolname::text, 'PUBLIC'), pg_catalog.string_agg(DISTINCT acl.privilege_type, ', '),
           pg_catalog.array_agg(DISTINCT given.attname)
    FROM (
      SELECT NULL, c.relowner, c.relacl FROM pg_catalog.pg_class AS c WHERE c.oid = %s
      UNION ALL
      SELECT a.attname::text, c.relowner, a.attacl
      FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid
      WHERE c.oid = %s) AS given (attname, owner, list)
    CROSS JOIN LATERAL pg_catalog.aclexplode(given.list) AS acl
    LEFT JOIN pg_catalog.pg_roles AS r ON r.oid = acl.grantee
    WHERE acl.grantee <> given.owner
      AND NOT (r.rolname IS NOT DISTINCT FROM %s AND acl.privilege_type = 'SELECT' AND NOT acl.is_grantable)
    GROUP BY 1 ORDER BY 1
    """


def read_versions(conn: AnyConnection, s: Settings, *, ours: bool) -> tuple[str, ...] | None:
    """The revisions in the version table, after `check_version_table`; None without a table."""
    if not check_version_table(conn, s, ours=ours):
        return None
    name = ident(s.version_table_schema, s.version_table)
    found = tuple(version for (version,) in rows(conn, f"SELECT version_num FROM {name}"))
    strange = [version for version in found if not _REVISION.fullmatch(version)]
    if ours and strange:
        wrote = "somebody else wrote it; put back what was applied"
        raise PreflightError([f"{_label(s)} holds {strange[0]!r}, which names no revision: {wrote}"])
    return found


def revision(conn: AnyConnection, s: Settings) -> str | None:
    """The revision of ours that is applied; None at the base. Raises `PreflightError` when the table is not ours."""
    # elsewhere it may be the table of a host whose own Alembic knows our folder
    ours = s.version_table_schema == s.schema
    found = read_versions(conn, s, ours=ours) or ()
    return next((version for version in found if version.startswith("lp_")), None)


def check_version_table(conn: AnyConnection, s: Settings, *, ours: bool) -> bool:
    """Whether there is a version table.

    Raises `PreflightError` when code of somebody else could run in it, or somebody else could write it.
    Without `ours` it may be the table of a host's own Alembic, which has another owner and other grants.
    """
    found = rows(conn, _TABLE, (s.version_table_schema, s.version_table))
    if not found:
        return False
    oid, kind, persistence, owner, inherits, secured = found[0]
    problems: list[str] = []
    statements: list[str] = []
    if kind != "r" or persistence != "p" or inherits:
        what = _KINDS.get(kind, "no table") if kind != "r" else "a table that inherits, or is not kept"
        problems.append(f"{_label(s)} is {what}, not the version table of Alembic")
    elif ours and owner != s.role("owner") and not _shape(conn, s, oid) and _restored(conn, s, owner):
        said = f"{_label(s)} belongs to {owner}, not to {s.role('owner')}: it was restored without its owner"
        raise PreflightError(
            [f"{said}, as by pg_restore -O; leadprotect repair puts back the rest"],
            [f"ALTER TABLE {_name(s)} OWNER TO {ident(s.role('owner'))};"],
        )
    elif ours and owner != s.role("owner"):
        problems.append(
            f"{_label(s)} exists and belongs to {owner}, not to {s.role('owner')}: leadprotect did not make it"
        )
    elif ours:
        problems += _shape(conn, s, oid)
    if problems:
        renamed = [f"{problem}; rename it, or choose another name by version_table" for problem in problems]
        raise PreflightError(renamed, [_rename(s, kind)])
    problems = _hanging(conn, s, oid, statements)
    if secured:
        problems.append(f"row security is on for {_label(s)}: Alembic would not see what is applied")
        statements.append(f"ALTER TABLE {_name(s)} DISABLE ROW LEVEL SECURITY, NO FORCE ROW LEVEL SECURITY;")
    if ours:
        problems += _grants(conn, s, oid, statements)
    if problems:
        raise PreflightError(problems, statements)
    return True


def check_may_write(conn: psycopg.Connection[Any], s: Settings) -> None:
    """Raise `PreflightError`, with what a DBA runs, where the migrating role does not act for the table's owner."""
    if not one(conn, "SELECT pg_catalog.pg_has_role(%s, 'USAGE')", s.role("owner")):
        statements: list[str] = []
        problems = rights(conn, s, statements)
        raise PreflightError(problems, list(dict.fromkeys(statements)))


def _restored(conn: AnyConnection, s: Settings, owner: str) -> bool:
    """Whether a superuser or who migrates has it beside other tables of ours, so that no stranger made it."""
    return bool(rows(conn, _RESTORED, (owner, *s.leads_table.split(".", 1), s.version_table_schema)))


def _shape(conn: AnyConnection, s: Settings, oid: int) -> list[str]:
    found = {part for (part,) in rows(conn, _SHAPE, (oid, oid, oid))}
    if found == {_COLUMN}:
        return []
    differs = ", ".join(sorted(found - {_COLUMN})) or "no column version_num"
    return [f"{_label(s)} is not the version table that leadprotect makes: it has {differs}"]


def _hanging(conn: AnyConnection, s: Settings, oid: int, statements: list[str]) -> list[str]:
    found = rows(conn, _HANGING, (oid, oid, oid))
    statements += [f"DROP {kind.upper()} {ident(name)} ON {_name(s)};" for kind, name in found]
    return [
        f"{kind} {name} on {_label(s)} is not leadprotect's, and would run in the migration" for kind, name in found
    ]


def _grants(conn: AnyConnection, s: Settings, oid: int, statements: list[str]) -> list[str]:
    found = rows(conn, _GRANTS, (oid, oid, s.role("operator")))
    for role, _, columns in found:
        for column in columns:
            on = Object("column" if column else "relation", oid, _name(s), column)
            statements.append(revoking(conn, on, role))
        if role == s.role("operator"):
            statements.append(f"GRANT SELECT ON {_name(s)} TO {ident(role)};")
    return [f"role {role} has {verbs} on {_label(s)}: it could say what is applied" for role, verbs, _ in found]


def _name(s: Settings) -> str:
    return ident(s.version_table_schema, s.version_table)


def _label(s: Settings) -> str:
    return f"{s.version_table_schema}.{s.version_table}"


def _rename(s: Settings, kind: str) -> str:
    what = {"v": "VIEW", "m": "MATERIALIZED VIEW", "f": "FOREIGN TABLE", "S": "SEQUENCE", "i": "INDEX"}.get(
        kind, "TABLE"
    )
    return f"ALTER {what} {_name(s)} RENAME TO {ident(s.version_table[:50] + '_of_others')};"
