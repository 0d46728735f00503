"""What would stop a way down half-way: asked before its first step, each finding with its remedy."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from leadprotect.database.catalog import one, relation
from leadprotect.database.statements import as_role
from leadprotect.errors import PreflightError
from leadprotect.preflight import standing
from leadprotect.preflight.leftovers import foreign_quarantine
from leadprotect.preflight.names_taken import taken_triggers
from leadprotect.settings import KEYS, Settings, ident, table
from leadprotect.settings.names import territory_columns

if TYPE_CHECKING:
    import psycopg

# what hangs on an object of ours and is none itself; our tables are moved, and what hangs on them moves along
_DEPENDANTS = """
    WITH ours AS (
      SELECT 'pg_class'::regclass AS class, c.oid, c.relname::text AS name FROM pg_class AS c
      WHERE c.relnamespace = to_regnamespace(%(schema)s) AND c.relkind IN ('r', 'p', 'v', 'm', 'S')
      UNION ALL
      SELECT 'pg_proc'::regclass, oid, proname FROM pg_proc WHERE pronamespace = to_regnamespace(%(schema)s)
      UNION ALL
      SELECT 'pg_type'::regclass, oid, typname FROM pg_type WHERE typnamespace = to_regnamespace(%(schema)s)),
    hanging AS (
      -- a view hangs on what it reads by its rule
      SELECT DISTINCT ours.name, coalesce(r.ev_class, d.objid) AS oid,
             CASE WHEN r.oid IS NULL THEN d.classid ELSE 'pg_class'::regclass END AS class,
             CASE WHEN r.oid IS NULL THEN d.objsubid ELSE 0 END AS part
      FROM ours JOIN pg_depend AS d ON d.refclassid = ours.class AND d.refobjid = ours.oid AND d.deptype IN ('n', 'a')
      LEFT JOIN pg_rewrite AS r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid)
    SELECT h.name, i.type, i.identity, coalesce(t.tgname, p.polname)::text
    FROM hanging AS h CROSS JOIN LATERAL pg_identify_object(h.class, h.oid, h.part) AS i
    LEFT JOIN pg_trigger AS t ON h.class = 'pg_trigger'::regclass AND t.oid = h.oid
    LEFT JOIN pg_policy AS p ON h.class = 'pg_policy'::regclass AND p.oid = h.oid
    LEFT JOIN pg_attrdef AS a ON h.class = 'pg_attrdef'::regclass AND a.oid = h.oid
    LEFT JOIN pg_constraint AS k ON h.class = 'pg_constraint'::regclass AND k.oid = h.oid
    LEFT JOIN pg_class AS c ON c.oid = coalesce(t.tgrelid, p.polrelid, a.adrelid, k.conrelid)
    LEFT JOIN pg_namespace AS on_table ON on_table.oid = c.relnamespace
    WHERE coalesce(i.schema, quote_ident(on_table.nspname), '') NOT IN (quote_ident(%(name)s), quote_ident(%(kept)s))
    ORDER BY i.type, i.identity
    """
_DROPS = {
    "view": "DROP VIEW {0};",
    "materialized view": "DROP MATERIALIZED VIEW {0};",
    "function": "DROP FUNCTION {0};",
    "policy": "DROP POLICY {0};",
    "trigger": "DROP TRIGGER {0};",
}
_STRANGERS = """
    SELECT kind, name, pg_get_userbyid(owner)::text FROM (
      SELECT 'table or view', relname::text, relowner FROM pg_class
      WHERE relnamespace = to_regnamespace(%(schema)s) AND relkind NOT IN ('i', 'I', 't')
      UNION SELECT 'function', proname::text, proowner FROM pg_proc WHERE pronamespace = to_regnamespace(%(schema)s)
      UNION SELECT 'type', typname::text, typowner FROM pg_type
        WHERE typnamespace = to_regnamespace(%(schema)s) AND typtype IN ('e', 'd')) AS found (kind, name, owner)
    WHERE pg_get_userbyid(owner) <> ALL (%(owners)s) ORDER BY 2 LIMIT 10
    """


def check_way_down(conn: psycopg.Connection[Any], s: Settings, script: str) -> None:
    """Raise `PreflightError` where `script`, the statements of the way down, would fail after some of them."""
    if standing.taken_away(conn, s):
        raise PreflightError([standing.TAKEN_AWAY])
    statements: list[str] = []
    problems = _dependants(conn, s, script, statements) + _strangers(conn, s, script) + _renamed(conn, s, script)
    problems += _renamed_children(conn, s, script)
    problems += [
        f"trigger {name} on the host's tables is not leadprotect's, and the way down needs its name: rename it"
        for name in taken_triggers(conn, s)
        if ident(name) in script
    ]
    if ident(s.quarantine) in script:
        problems += foreign_quarantine(conn, s, statements)
    if problems:
        raise PreflightError(problems, list(dict.fromkeys(statements)))


def _dependants(conn: psycopg.Connection[Any], s: Settings, script: str, statements: list[str]) -> list[str]:
    found = []
    names = {"schema": ident(s.schema), "name": s.schema, "kept": s.quarantine}
    for ours, kind, identity, own_name in conn.execute(_DEPENDANTS, names).fetchall():
        if not _dropped(script, s, ours):
            continue
        if own_name and own_name.startswith(f"{s.schema}_"):
            continue  # ours: who is not us was refused under that name on the way up
        found.append(f"{kind} {identity} depends on {s.schema}.{ours}, which the way down drops: drop it first")
        if kind in _DROPS:
            statements.append(_DROPS[kind].format(identity.replace(" on ", " ON ", 1) if own_name else identity))
    return found


def _dropped(script: str, s: Settings, name: str) -> bool:
    """Whether the script drops the object, by itself or in a list."""
    quoted = rf"{re.escape(ident(s.schema))}\.(?:{re.escape(name)}|{re.escape(ident(name))})(?!\w)"
    return re.search(rf"\bDROP\s+[A-Z][^;]*{quoted}", script) is not None


def _strangers(conn: psycopg.Connection[Any], s: Settings, script: str) -> list[str]:
    """Objects of others in our schema, which is dropped at the end."""
    if not re.search(rf"\bDROP SCHEMA {re.escape(ident(s.schema))}", script):
        return []
    found = conn.execute(
        _STRANGERS, {"schema": ident(s.schema), "owners": [s.role("owner"), s.role("reader")]}
    ).fetchall()
    return [
        f"{kind} {s.schema}.{name} belongs to {owner}, not to {s.role('owner')}, and the schema is dropped at the end: "
        "move it to another schema"
        for kind, name, owner in found
    ]


def _renamed_children(conn: psycopg.Connection[Any], s: Settings, script: str) -> list[str]:
    """Tables that contract protected under another name: their flags are remembered by that."""
    if not _dropped(script, s, "child_edit"):
        return []
    query = """
        SELECT DISTINCT n.nspname::text, c.relname::text FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
        JOIN pg_class AS c ON c.oid = t.tgrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE p.pronamespace = to_regnamespace(%s)
          AND p.proname IN ('child_edit', 'child_edits', 'child_move', 'child_truncate')
        """
    standing = {ident(*found) for found in conn.execute(query, (ident(s.schema),)).fetchall()}
    with as_role(conn, s.role("owner")):
        kept = conn.execute(f"SELECT host_table FROM {ident(s.schema)}.lead_table_row_security").fetchall()
    return [
        f"lead_tables: {name} had another name when it was protected: rename it back for the way down"
        for name in sorted(standing - {name for (name,) in kept})
    ]


def _renamed(conn: psycopg.Connection[Any], s: Settings, script: str) -> list[str]:
    """Host tables and columns that the script names and the database does not have any more."""
    leads = {
        key: getattr(s, key) for key in KEYS if key.startswith(("lead_", "territory_")) and key.endswith("_column")
    }
    if s.territory_expression:
        del leads["territory_column"]
    hosts = [("leads_table", s.leads_table, leads)]
    if s.territory_expression:
        hosts += [("leads_table", s.leads_table, {"territory_expression": column}) for column in territory_columns(s)]
    for one_source in s.activities:
        columns = {one_source.key(field): column for field, column in one_source.columns.items()}
        hosts.append((one_source.key("table"), one_source.table, columns))
    found = []
    for key, name, columns in hosts:
        if table(name) not in script:
            continue
        oid = relation(conn, *name.split(".", 1))
        if oid is None:
            found.append(
                f"{key}: there is no table {name} any more, and the way down gives it back its triggers and flags: "
                "rename it back, or name it as it is called now"
            )
            continue
        for column_key, wanted in columns.items():
            query = "SELECT true FROM pg_attribute WHERE attrelid = %s AND attname = %s AND NOT attisdropped"
            if ident(wanted) in script and not one(conn, query, oid, wanted):
                found.append(
                    f"{column_key}: {name} has no column {wanted} any more: rename it back for the way down, or write "
                    "its new name into the settings"
                )
    return found
