"""The tables that owners are derived from: their shape, and what the settings say of a row of them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.database.catalog import one, relation
from leadprotect.preflight.columns import IDS, TEXTS, columns_of, unfit
from leadprotect.settings import Activities, Settings, ident, literal, table
from leadprotect.settings.activities import is_expression

if TYPE_CHECKING:
    from collections.abc import Iterator

# text would order them by its characters, and the newest activity makes the owner
_TIMES = ("timestamp with time zone", "timestamp without time zone", "date")
# what a server says of an expression that no index takes: https://www.postgresql.org/docs/current/errcodes-appendix.html
_NO_INDEX = ("42P17", "0A000")

# the tables that a view reads, those of the views below it included, and who reads them
BELOW = """
    WITH RECURSIVE below AS (
      SELECT %s::oid AS view
      UNION SELECT d.refobjid FROM below AS b JOIN pg_catalog.pg_rewrite AS r ON r.ev_class = b.view
      JOIN pg_catalog.pg_depend AS d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid
        AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid <> r.ev_class)
    SELECT DISTINCT pg_catalog.pg_get_userbyid(v.relowner)::text, n.nspname::text, c.relname::text
    FROM below AS b JOIN pg_catalog.pg_class AS v ON v.oid = b.view AND v.relkind = 'v'
    JOIN pg_catalog.pg_rewrite AS r ON r.ev_class = v.oid
    JOIN pg_catalog.pg_depend AS d ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.objid = r.oid
      AND d.refclassid = 'pg_catalog.pg_class'::regclass
    JOIN pg_catalog.pg_class AS c ON c.oid = d.refobjid AND c.relkind IN ('r', 'p')
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    ORDER BY 2, 3
    """


def activities(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    """Findings about the tables of activities: kind of table, columns, types, kinds, conditions."""
    found = []
    for source in s.activities:
        problems = _columns(conn, s, source)
        found += problems or [*_relatives(conn, source), *_kinds(conn, source), *_expressions(conn, s, source)]
    return found or (_alike(conn, s) if s.activities else [])


def _columns(conn: psycopg.Connection[Any], s: Settings, source: Activities) -> list[str]:
    oid = relation(conn, *source.table.split(".", 1))
    kind = one(conn, "SELECT relkind::text FROM pg_class WHERE oid = %s", oid)
    if kind is None:
        return [f"{source.key('table')}: there is no table {source.table}"]
    if kind == "v" and not source.base_table:
        return [
            (
                f"{source.key('table')}: {source.table} is a view, on which no index and no trigger can stand: "
                f"name the table whose rows it shows: {source.key('base_table')} = {_shown(conn, oid) or 'schema.name'}"
            )
        ]
    if source.base_table:
        return _view(conn, s, source, kind) or _fitting(conn, s, source, oid)
    if kind not in "rp":
        return [f"{source.key('table')}: {source.table} is no table that an index can be built on (relkind {kind!r})"]
    return _fitting(conn, s, source, oid)


def _shown(conn: psycopg.Connection[Any], view: int | None) -> str | None:
    """The table that a view shows, where it reads but one."""
    tables = {f"{schema}.{name}" for _, schema, name in conn.execute(BELOW, (view,)).fetchall()}
    return tables.pop() if len(tables) == 1 else None


def _view(conn: psycopg.Connection[Any], s: Settings, source: Activities, kind: str) -> list[str]:
    """A view that is read, above the table on which trigger and index stand: ids and leads are the table's."""
    key, where = source.key("base_table"), source.base_table
    if kind != "v":
        return [f"{key}: {source.table} is no view: leave {key} out"]
    view, base = (relation(conn, *name.split(".", 1)) for name in (source.table, where))
    standing = one(conn, "SELECT relkind::text FROM pg_class WHERE oid = %s", base)
    if standing is None or standing not in "rp":
        return [f"{key}: there is no table {where} that an index and a trigger can stand on"]
    if one(conn, "SELECT 'security_invoker=true' = ANY (reloptions) FROM pg_class WHERE oid = %s", view):
        return [
            (
                f"{source.key('table')}: {source.table} reads as whoever asks (security_invoker), and "
                f"{s.role('reader')} may not read {where}: name the table itself, and a condition"
            )
        ]
    if where not in {f"{schema}.{name}" for _, schema, name in conn.execute(BELOW, (view,)).fetchall()}:
        return [f"{key}: {source.table} does not read {where}"]
    found, there = columns_of(conn, base), columns_of(conn, view)
    for field in ("id_column", "lead_id_column"):
        name = getattr(source, field)
        if name not in found:
            return [f"{source.key(field)}: {where} has no column {name}, by which a row is found in {source.table}"]
        if name in there and found[name].base != there[name].base:
            kinds = f"{found[name].base}, and in {source.table} {there[name].base}"
            return [f"{source.key(field)}: {where}.{name} is {kinds}: a row of the one must be found in the other"]
    return []


def _fitting(conn: psycopg.Connection[Any], s: Settings, source: Activities, oid: int | None) -> list[str]:
    columns = columns_of(conn, oid)
    found = []
    allowed: dict[str, tuple[tuple[str, ...] | None, str]] = {
        "id_column": (None, ""),
        "lead_id_column": (IDS[s.lead_id_type], "lead_id_type"),
        "user_id_column": (IDS[s.user_id_type], "user_id_type"),
        "kind_column": (None, ""),
        "at_column": (_TIMES, source.key("at_column")),
    }
    for field, column in source.columns.items():
        fits, key = allowed[field]
        if column not in columns:
            having = ", ".join(sorted(columns))
            if "(" in column and field in ("lead_id_column", "at_column"):
                having += f"; an expression stands in parentheses: {source.key(field)} = ({column})"
            found.append(f"{source.key(field)}: {source.table} has no column {column}; it has {having}")
            continue
        unfitting = unfit(source.key(field), f"{source.table}.{column}", columns[column], fits, key)
        if unfitting and field == "lead_id_column":
            unfitting[0] += f"; another type is cast: {source.key(field)} = {column}::{s.lead_id_type}"
        found += unfitting
    return found


def _relatives(conn: psycopg.Connection[Any], source: Activities) -> list[str]:
    """A child by inheritance has rows without our trigger; a partition has all that its parent has."""
    query = """
        SELECT i.inhrelid::regclass::text FROM pg_inherits AS i JOIN pg_class AS p ON p.oid = i.inhparent
        WHERE p.oid = %s AND p.relkind <> 'p' ORDER BY 1
        """
    found = conn.execute(query, (relation(conn, *source.stands_on.split(".", 1)),)).fetchall()
    return [
        (
            f"{source.key('base_table' if source.base_table else 'table')}: {source.stands_on} shares its rows by "
            f"inheritance with {', '.join(name for (name,) in found)}, "
            "where they would not be seen: ALTER TABLE ... NO INHERIT ..."
        )
    ] * bool(found)


def _kinds(conn: psycopg.Connection[Any], source: Activities) -> list[str]:
    """The kinds are written into an index: they must be values of the column's type that it may hold."""
    if not source.kind_column:
        return []
    where = f"{source.table}.{source.kind_column}"
    column = """
        SELECT format_type(a.atttypid, NULL), b.typtype::text, b.typcategory::text, b.typname::text, ARRAY(
                 SELECT wanted FROM unnest(%s::text[]) AS wanted
                 WHERE NOT EXISTS (SELECT FROM pg_enum AS e WHERE e.enumtypid = b.oid AND e.enumlabel = wanted))
        FROM pg_attribute AS a JOIN pg_type AS t ON t.oid = a.atttypid
        JOIN pg_type AS b ON b.oid = coalesce(nullif(t.typbasetype, 0), t.oid)
        WHERE a.attrelid = %s AND a.attname = %s
        """
    oid = relation(conn, *source.table.split(".", 1))
    row = conn.execute(column, (list(source.qualifying_kinds), oid, source.kind_column)).fetchone()
    kind, typtype, category, base, foreign = row or ("", "", "S", "", [])
    if base == "citext":
        kinds = ", ".join(literal(one.lower()) for one in source.qualifying_kinds)
        return [
            (
                f"{source.key('kind_column')}: {where} is citext, which leadprotect would compare by case: "
                f"leave it empty, and write "
                f"{source.key('condition')} = lower({ident(source.kind_column)}::text) IN ({kinds})"
            )
        ]
    if category == "S" and columns_of(conn, oid)[source.kind_column].base not in (*TEXTS, "character", "name"):
        return [
            f"{source.key('kind_column')}: {where} is {kind}, which compares in its own way; expected text or an enum"
        ]
    if typtype == "e" and foreign:
        return [f"{source.key('qualifying_kinds')}: {', '.join(foreign)} is no label of the enum in {where}"]
    if typtype != "e" and category != "S":
        return [f"{source.key('kind_column')}: {where} is {kind}, expected text or an enum"]
    return _excluded(conn, source, oid, kind)


def _excluded(conn: psycopg.Connection[Any], source: Activities, oid: int | None, kind: str) -> list[str]:
    """Kinds that a CHECK of the column, or of a domain below it, leaves out; nothing of the host's is called for it."""
    checks = """
        WITH RECURSIVE below (oid) AS (
          SELECT atttypid FROM pg_attribute WHERE attrelid = %(oid)s AND attname = %(column)s
          UNION ALL SELECT t.typbasetype FROM below JOIN pg_type AS t ON t.oid = below.oid WHERE t.typtype = 'd')
        SELECT c.conname::text, c.contypid <> 0, pg_get_expr(c.conbin, c.conrelid)
        FROM pg_constraint AS c JOIN pg_attribute AS a ON a.attrelid = %(oid)s AND a.attname = %(column)s
        WHERE c.contype = 'c' AND (c.conrelid = a.attrelid AND c.conkey = ARRAY[a.attnum]
               OR c.contypid IN (SELECT oid FROM below))
          AND NOT EXISTS (
            SELECT FROM pg_depend AS d WHERE d.classid = 'pg_constraint'::regclass AND d.objid = c.oid
              AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass))
        ORDER BY 1
        """
    found = []
    for name, of_domain, condition in conn.execute(checks, {"oid": oid, "column": source.kind_column}).fetchall():
        column = "VALUE" if of_domain else ident(source.kind_column)
        said = condition.replace("VALUE", ident("VALUE")) if of_domain else condition
        typed = "text" if of_domain else kind
        left_out = [
            wanted
            for wanted in source.qualifying_kinds
            if one(
                conn,
                f"SELECT NOT ({said}) FROM (SELECT {literal(wanted)}::{typed} AS "
                f"{ident('VALUE') if of_domain else column}) AS v",
            )
        ]
        if left_out:
            found.append(
                f"{source.key('qualifying_kinds')}: the constraint {name} lets no row of {source.table} have "
                f"{source.kind_column} {', '.join(left_out)}: correct the setting, or the constraint"
            )
    return found


def _expressions(conn: psycopg.Connection[Any], s: Settings, source: Activities) -> list[str]:
    """What the settings say in SQL: parsed by the server and never run, then built as an index of no row."""
    found = []
    if source.condition:
        found += _refused(
            conn, source, "condition", f"SELECT FROM {table(source.table)} AS v WHERE ({source.condition})"
        )
    if is_expression(source.lead_id_column):
        asked = f"SELECT ({source.lead_id_column}) FROM {table(source.table)} AS v"
        found += _refused(conn, source, "lead_id_column", asked, "lead_id_type", of_type=IDS[s.lead_id_type])
    if is_expression(source.at_column):
        asked, key = f"SELECT ({source.at_column}) FROM {table(source.table)} AS v", source.key("at_column")
        found += _refused(conn, source, "at_column", asked, key, of_type=_TIMES[:1])
    return found or _unindexable(conn, source)


def _refused(
    conn: psycopg.Connection[Any],
    source: Activities,
    field: str,
    asked: str,
    type_key: str = "",
    of_type: tuple[str, ...] = (),
) -> list[str]:
    """Why the server does not take it: to prepare is to parse, nothing is planned and no function is called."""
    said = getattr(source, field)
    with _undone(conn):
        prepared = conn.pgconn.prepare(b"leadprotect_check", asked.encode())
        if prepared.status != psycopg.pq.ExecStatus.COMMAND_OK:
            why = (prepared.error_field(psycopg.pq.DiagnosticField.MESSAGE_PRIMARY) or b"").decode("utf-8", "replace")
            return [
                (
                    f"{source.key(field)}: {said!r} says nothing of a row of {source.table}: {why}. "
                    "Columns are named bare, mixed case in double quotes; functions with their schema"
                )
            ]
        described = conn.pgconn.describe_prepared(b"leadprotect_check")
        oid = described.ftype(0) if of_type else 0
        conn.execute("DEALLOCATE leadprotect_check")
        kind = one(conn, "SELECT format_type(%s, NULL)", oid) if of_type else None
    if of_type and kind not in of_type:
        return [f"{type_key}: {said!r} of {source.table} is {kind}, expected {' or '.join(of_type)}"]
    return []


def _unindexable(conn: psycopg.Connection[Any], source: Activities) -> list[str]:
    """What no index takes would make one owner today and another tomorrow: now(), a setting, a random number."""
    able = """
        SELECT has_database_privilege(current_database(), 'TEMP') AND current_setting('transaction_read_only') = 'off'
          AND NOT pg_is_in_recovery()
        """
    said = {field: getattr(source, field) for field in ("condition", "lead_id_column", "at_column")}
    asked = {
        "condition": f"({ident(source.id_column)}) WHERE ({said['condition']})" if said["condition"] else "",
    } | {field: f"(({said[field]}))" if is_expression(said[field]) else "" for field in ("lead_id_column", "at_column")}
    if not any(asked.values()) or not one(conn, able):
        return []
    for field, shape in asked.items():
        if not shape:
            continue
        try:
            with _undone(conn):
                conn.execute(f"CREATE TEMP TABLE leadprotect_check (LIKE {table(source.table)} INCLUDING GENERATED)")
                conn.execute(f"CREATE INDEX ON pg_temp.leadprotect_check {shape}")
        except psycopg.Error as error:
            if error.sqlstate in _NO_INDEX:
                return [
                    (
                        f"{source.key(field)}: {said[field]!r} can't be in an index ({error.diag.message_primary}): "
                        f"it must say the same of a row at any time and for anybody{_of_enums(conn, source)}"
                    )
                ]
    return []


def _of_enums(conn: psycopg.Connection[Any], source: Activities) -> str:
    """The text of a label may change, the label itself is compared as it is."""
    columns = columns_of(conn, relation(conn, *source.table.split(".", 1)))
    enums = [name for name in source.words if name in columns and columns[name].labels]
    named = ", ".join(map(ident, enums))
    return f"; {named}: an enum is compared as it is, without ::text" if enums else ""


def _alike(conn: psycopg.Connection[Any], s: Settings) -> list[str]:
    """Of several tables one activity is the newest: their times are compared, and no catalog tells a zone."""
    named = {source: columns_of(conn, relation(conn, *source.table.split(".", 1))) for source in s.activities}
    times = {source: columns[source.at_column] for source, columns in named.items() if source.at_column in columns}
    zoned = len(times) < len(named) or any(time.base == _TIMES[0] for time in times.values())
    found = []
    for source, time in times.items() if len(named) > 1 else ():
        key, name, where = source.key("at_column"), ident(source.at_column), f"{source.table}.{source.at_column}"
        moment = {_TIMES[0]: f"{name}::timestamptz", "date": f"({name}::timestamp AT TIME ZONE 'Etc/UTC')"}
        local = f"({name} AT TIME ZONE 'Etc/UTC')"
        written = f"{key} = {moment.get(time.base, local)}"
        if time.type != time.base:
            found.append(f"{key}: {where} is {time.type}, a domain; of several tables times are compared: {written}")
        elif zoned and time.base != _TIMES[0]:
            found.append(
                f"{key}: {where} is {time.base}, and another table has {_TIMES[0]}; "
                f"say in which zone it is written: {written}"
            )
    return found


@contextmanager
def _undone(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """Whatever the block does is rolled back, whether the caller is in a transaction or not."""
    with conn.transaction(force_rollback=True):
        yield
