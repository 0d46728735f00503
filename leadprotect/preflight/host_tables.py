"""The shape of the host's tables: each finding names the key of the settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.database.catalog import one, relation
from leadprotect.database.statements import row, rows
from leadprotect.errors import PreflightError
from leadprotect.preflight.activities import BELOW, activities
from leadprotect.preflight.columns import IDS, TEXTS, columns_of, unfit
from leadprotect.settings import ident, literal, render, table
from leadprotect.settings.names import CHILD_POLICIES, HOST_POLICIES, territory_columns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from leadprotect.database.drivers import AnyConnection
    from leadprotect.settings import Settings

_NO_INDEX = "an index can't be built on it CONCURRENTLY"
_NOT_ORDINARY = {
    "p": "a partition is a table of its own: who reads it by its name meets neither row security nor triggers of "
    "the parent, and an index can't be built on the parent CONCURRENTLY",
}


def host(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    """Findings about the two tables that the settings name: columns, types, inheritance, unique id, kinds."""
    leads: dict[str, tuple[str, tuple[str, ...] | None, str]] = {
        "lead_id_column": (s.lead_id_column, IDS[s.lead_id_type], "lead_id_type"),
    }
    if not s.territory_expression:
        leads["territory_column"] = (s.territory_column, TEXTS, "territory_column")
    if s.owner_column:
        # everything is a text, and an integer is a bigint
        named = None if s.user_id_type == "text" else IDS[s.user_id_type]
        wider = (*(named or ()), "integer") if s.user_id_type == "bigint" else named
        leads["owner_column"] = (s.owner_column, wider, "owner_column")
    found = _columns(conn, "leads_table", s.leads_table, leads)
    found += activities(conn, s)
    for child in s.lead_tables:
        wanted = {"lead_tables": (child.column, IDS[s.lead_id_type], "lead_tables")}
        found += _columns(conn, "lead_tables", child.table, wanted)
    found += _relatives(conn, s)
    if s.territory_expression and relation(conn, *s.leads_table.split(".", 1)):
        found += _expression(conn, s)
    if found := found or _unwritable(conn, s):
        return found
    unique = """
        SELECT count(*) FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = %s AND i.indisunique AND i.indisvalid AND i.indnkeyatts = 1
          AND i.indpred IS NULL AND a.attname = %s
        """
    if not one(conn, unique, relation(conn, *s.leads_table.split(".", 1)), s.lead_id_column):
        found.append(f"lead_id_column: {s.leads_table}.{s.lead_id_column} has no unique index of its own")
    required = "SELECT attnotnull FROM pg_attribute WHERE attrelid = %s AND attname = %s"
    if not one(conn, required, relation(conn, *s.leads_table.split(".", 1)), s.lead_id_column):
        found.append(
            f"lead_id_column: {s.leads_table}.{s.lead_id_column} may be NULL, and a lead without an id is nobody's: "
            + render("ALTER TABLE {leads} ALTER COLUMN {lead_id} SET NOT NULL", s)
        )
    return found + _unindexed(conn, s)


def _unwritable(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    """What keeps contract from writing the owner into the lead's own column."""
    if not s.owner_column:
        return []
    where = f"owner_column: {s.leads_table}.{s.owner_column}"
    found = []
    if s.owner_column in territory_columns(s):
        found.append(f"{where} is read by territory_expression: a lead would move with its owner; name another column")
    query = "SELECT attgenerated <> '' OR attidentity <> '' FROM pg_attribute WHERE attrelid = %s AND attname = %s"
    if one(conn, query, relation(conn, *s.leads_table.split(".", 1)), s.owner_column):
        found.append(f"{where} is generated, and contract writes owners there: name a column that can be written")
    return found


def _expression(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    """What the server says against it: columns, type, and whether an index can hold it."""
    key, oid = "territory_expression", relation(conn, *s.leads_table.split(".", 1))
    known = columns_of(conn, oid)
    read = territory_columns(s)
    if missing := [name for name in read if name not in known]:
        has = ", ".join(sorted(known))
        return [f"{key}: {s.leads_table} has no column {', '.join(missing)}; it has {has}"]
    if found := [one for name in read for one in unfit(key, f"{s.leads_table}.{name}", known[name], None, "")]:
        return found
    raw = f"SELECT nullif(({s.territory_expression})::text, '') FROM {table(s.leads_table)} AS l"
    ours = render("SELECT {territory_of_l} FROM {leads} AS l", s)
    plans: list[Any] = []
    try:
        with conn.transaction(force_rollback=True):
            explained = [f"EXPLAIN (VERBOSE, COSTS OFF) {query}".encode() for query in (raw, ours)]
            plans += [conn.execute(query).fetchall() for query in explained]
            conn.execute(render("CREATE TEMP TABLE leadprotect_probe (LIKE {leads})", s).encode())
            conn.execute(render("CREATE INDEX ON pg_temp.leadprotect_probe ({territory_key})", s).encode())
    except (psycopg.errors.InsufficientPrivilege, psycopg.errors.ReadOnlySqlTransaction):
        pass  # who may make no temporary table is told by the index, or only looks
    except psycopg.Error as error:
        return [f"{key}: {error.diag.message_primary}: it must be an immutable expression of text over one row"]
    if plans[:1] != plans[1:]:
        what = "is read otherwise by the server: write columns, texts and functions only"
        return [f"{key}: {s.territory_expression} {what}"]
    return []


def _columns(
    conn: psycopg.Connection[Any], key: str, name: str, wanted: Mapping[str, tuple[str, tuple[str, ...] | None, str]]
) -> list[str]:
    oid = relation(conn, *name.split(".", 1))
    kind = one(conn, "SELECT relkind FROM pg_class WHERE oid = %s", oid)
    if kind is None:
        return [f"{key}: there is no table {name}"]
    if kind != "r":
        return [f"{key}: {name} is not an ordinary table (relkind {kind!r}); {_NOT_ORDINARY.get(kind, _NO_INDEX)}"]
    columns = columns_of(conn, oid)
    found = []
    for column_key, (column, allowed, type_key) in wanted.items():
        if column not in columns:
            found.append(f"{column_key}: {name} has no column {column}; it has {', '.join(sorted(columns))}")
        else:
            found += unfit(column_key, f"{name}.{column}", columns[column], allowed, type_key)
    return found


def _relatives(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    """Row security of a table doesn't bind who reaches its rows through a parent or a child."""
    query = """
        SELECT CASE inhparent WHEN %(oid)s THEN inhrelid ELSE inhparent END::regclass::text FROM pg_inherits
        WHERE %(oid)s IN (inhparent, inhrelid) ORDER BY 1
        """
    found = []
    for key, name in (("leads_table", s.leads_table), *(("lead_tables", child.table) for child in s.lead_tables)):
        relatives = conn.execute(query, {"oid": relation(conn, *name.split(".", 1))}).fetchall()
        if relatives:
            found.append(
                f"{key}: {name} shares its rows by inheritance with {', '.join(other for (other,) in relatives)}, "
                "where they would not be protected: ALTER TABLE ... NO INHERIT ... (a partition: DETACH PARTITION ...)"
            )
    return found


def _unindexed(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    """Whoever edits a lead looks for its rows, and a lead that is deleted takes them along: not for rows of none."""
    query = """
        SELECT count(*) FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = %s AND i.indisvalid AND a.attname = %s
          AND coalesce(pg_get_expr(i.indpred, i.indrelid) = format('(%%I IS NOT NULL)', a.attname), true)
        """
    return [
        f"lead_tables: {child.table} has no index that begins with {child.column}: "
        f"CREATE INDEX CONCURRENTLY ON {table(child.table)} ({ident(child.column)});"
        for child in s.lead_tables
        if not one(conn, query, relation(conn, *child.table.split(".", 1)), child.column)
    ]


# what binds whom: https://www.postgresql.org/docs/current/ddl-rowsecurity.html
_QUERY = """
    SELECT coalesce(p.opened, false), coalesce(p.binding, '{}')
    FROM pg_catalog.pg_class AS c
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    LEFT JOIN pg_catalog.pg_roles AS o ON o.rolname = %s
    CROSS JOIN LATERAL (
      SELECT bool_or(q.polpermissive AND q.condition IN ('true', %s)) AS opened,
             array_agg(q.polname::text ORDER BY q.polname)
               FILTER (WHERE NOT q.polpermissive AND q.condition <> 'true' AND q.polname <> ALL (%s)) AS binding
      FROM (
        SELECT polname, polpermissive, pg_catalog.pg_get_expr(polqual, polrelid) AS condition
        FROM pg_catalog.pg_policy
        WHERE polrelid = c.oid AND polcmd IN ('r', '*') AND EXISTS (
          SELECT FROM unnest(polroles) AS bound
          WHERE bound = 0 OR coalesce(pg_catalog.pg_has_role(o.oid, bound, 'USAGE'), false))) AS q) AS p
    WHERE n.nspname = %s AND c.relname = %s AND c.relrowsecurity AND NOT coalesce(
      o.rolsuper OR o.rolbypassrls
      OR (NOT c.relforcerowsecurity AND pg_catalog.pg_has_role(o.oid, c.relowner, 'USAGE')), false)
    """


def visibility(conn: AnyConnection, s: Settings, statements: list[str]) -> list[str]:
    """Host tables that the reader of our functions can't see whole; what opens them is added to `statements`."""
    hidden = hidden_rows(conn, s)
    statements += [one.statement for one in hidden if one.statement]
    found = [f"{one.key}: {one.what}{f': {one.by_hand}' if one.by_hand else ''}" for one in hidden]
    known = "SELECT coalesce(has_function_privilege(to_regprocedure(%s), 'EXECUTE'), false)"
    if not row(conn, known, (f"{ident(s.schema)}.unreadable()",))[0]:
        return found + _refused_to_reader(conn, s, _read(s), statements)
    return found or _unreadable(conn, s, statements)


def _read(s: Settings) -> dict[str, str]:
    """The host tables that our reader reads itself, each with the key that names it."""
    below = {one.base_table for one in s.activities if one.base_table}
    return {host: key for host, key in s.host_tables.items() if host not in below}


@dataclass(frozen=True)
class HiddenRows:
    """`key` is the setting that names the table; either a `statement` opens it, or somebody decides, `by_hand`."""

    key: str
    what: str
    statement: str | None = None
    by_hand: str | None = None


def hidden_rows(conn: AnyConnection, s: Settings) -> list[HiddenRows]:
    """Host tables of which row security hides rows from our reader, or from the owner of a view that it reads."""
    found = []
    reader = s.role("reader")
    inside = f"(CURRENT_USER = {literal(reader)}::name)"
    ours = [s.role(policy) for policy in (*HOST_POLICIES, *CHILD_POLICIES)]
    for host, key in _read(s).items():
        for opened, binding in rows(conn, _QUERY, (reader, inside, ours, *host.split(".", 1))):
            if not opened:
                what = f"{host} has row-level security, and no policy lets {reader} see every row"
                # a name of its own: whatever begins like our schema is dropped or refused as ours; and a
                # condition that no member of the role meets
                opens = (
                    f"CREATE POLICY {ident(f'read_for_{reader}')} ON {table(host)} "
                    f"FOR SELECT TO {ident(reader)} USING (current_user = {literal(reader)});"
                )
                found.append(HiddenRows(key, f"{what}: leads without an owner would look like none", opens))
            for policy in binding or ():
                what = f"the restrictive policy {policy} on {host} hides rows from {reader}, which must see them all"
                narrows = f"ALTER POLICY {ident(policy)} ON {table(host)} TO the roles of your application"
                found.append(HiddenRows(key, what, by_hand=narrows))
    for source in s.activities:
        if source.base_table:
            found += _narrowed(conn, source.table, source.key("table"))
    return found


def _narrowed(conn: AnyConnection, view: str, key: str) -> list[HiddenRows]:
    """A view reads as its owner, and what row security hides from him no derivation sees."""
    found = []
    for owner, schema, name in rows(conn, BELOW, (relation(conn, *view.split(".", 1)),)):
        for opened, binding in rows(conn, _QUERY, (owner, "true", [], schema, name)):
            if binding or not opened:
                what = (
                    f"{view} reads {schema}.{name} as its owner {owner}, from whom row-level security "
                    "hides rows: leads without an owner would look like none. Name the table itself and a condition, "
                    f"or give {view} an owner that sees every row"
                )
                found.append(HiddenRows(key, what))
    return found


# A policy for everybody binds our reader too, whatever else lets it see every row: what its condition names, the reader
# must be allowed to use. What functions do inside, the catalog does not tell.
_BINDING = """
    SELECT p.polname::text, asked.what, {narrowing_of_p}
    FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_policy AS p ON p.polrelid = c.oid AND p.polcmd IN ('r', '*') AND p.polroles = '{0}'
    CROSS JOIN (SELECT coalesce(
      (SELECT rolname FROM pg_catalog.pg_roles WHERE rolname = %s), 'public') AS role) AS reader
    CROSS JOIN LATERAL (
      SELECT string_agg(DISTINCT CASE d.refclassid
               WHEN 'pg_catalog.pg_proc'::regclass THEN d.refobjid::regprocedure::text
               ELSE d.refobjid::regclass::text END, ', ') AS what
      FROM pg_catalog.pg_depend AS d
      WHERE d.classid = 'pg_catalog.pg_policy'::regclass AND d.objid = p.oid AND d.refobjid <> c.oid
        AND CASE d.refclassid
          WHEN 'pg_catalog.pg_proc'::regclass THEN NOT has_function_privilege(reader.role, d.refobjid, 'EXECUTE')
          WHEN 'pg_catalog.pg_class'::regclass THEN
            NOT has_table_privilege(reader.role, d.refobjid, 'SELECT')
            AND NOT (d.refobjsubid > 0
              AND has_column_privilege(reader.role, d.refobjid, d.refobjsubid::smallint, 'SELECT'))
            AND NOT (d.refobjsubid = 0 AND has_any_column_privilege(reader.role, d.refobjid, 'SELECT'))
          ELSE false END) AS asked
    WHERE n.nspname = %s AND c.relname = %s AND c.relrowsecurity AND asked.what IS NOT NULL
    ORDER BY 1
    """


def _refused_to_reader(conn: AnyConnection, s: Settings, read: Mapping[str, str], statements: list[str]) -> list[str]:
    """Policies that will fail where the reader reads, told from the catalog before there is anything to try."""
    found = []
    reader, binding = s.role("reader"), render(_BINDING, s)
    for host, key in read.items():
        for policy, asked, remedy in rows(conn, binding, (reader, *host.split(".", 1))):
            found.append(
                f"{key}: policy {policy} of {host} is for everybody, so it binds {reader} too, which may not use "
                f"what it asks: {asked}"
            )
            statements.append(remedy)
    return found


def _unreadable(conn: AnyConnection, s: Settings, statements: list[str]) -> list[str]:
    """Host tables that the reader can't read, because a policy fails for it; asked of the database once it can tell."""
    failing = rows(conn, render("SELECT detail, remedy FROM {schema}.unreadable()", s))
    statements += [statement for _, remedy in failing for statement in (remedy or "").splitlines()]
    return [detail for detail, _ in failing]


def check_visible(conn: AnyConnection, s: Settings) -> None:
    """Raise `PreflightError` when our functions can't see every row of the host's tables."""
    statements: list[str] = []
    if problems := visibility(conn, s, statements):
        raise PreflightError(problems, statements)
