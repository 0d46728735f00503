"""Keys, constraints and indexes: what our tables rest on, and what row security makes useless."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.doctor import present
from leadprotect.doctor.finding import Fault, check
from leadprotect.doctor.shipped import shipped
from leadprotect.settings import Settings, ident, render, table

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg


@check("danger", "Two owners of one lead, a decision without its index, evidence that repeats itself.", needs="text")
def key_missing(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A primary key, unique, foreign or checking constraint that was shipped and is gone from a table of ours."""
    wanted = shipped(s).tables
    for one in present.tables(conn, s):
        if present.MONTH.fullmatch(one.name):  # the server keeps those of a partition
            continue
        for constraint in wanted.get(one.name, {}).get("constraints", ()):
            if constraint not in one.constraints:
                where, said = f"{s.schema}.{one.name}", constraint.split(" ", 1)[1]
                yield Fault(where, f"it has lost {said}", f"# ALTER TABLE {ident(s.schema, one.name)} ADD {said}")


@check("warning", "What it promises of the rows that were there before is not known.")
def constraint_not_validated(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A constraint of a table of ours that is not validated."""
    query = """
        SELECT c.relname::text, k.conname::text FROM pg_constraint AS k JOIN pg_class AS c ON c.oid = k.conrelid
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = %s AND NOT k.convalidated ORDER BY 1, 2
        """
    for name, constraint in conn.execute(query, (s.schema,)).fetchall():
        mends = f"ALTER TABLE {ident(s.schema, name)} VALIDATE CONSTRAINT {ident(constraint)};"
        yield Fault(f"{s.schema}.{name}", f"{constraint} is not validated", mends)


@check("warning", "No query uses it, and each write pays for it; of a unique one, nothing is kept unique.")
def index_invalid(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """An invalid index on a table of ours, or on the host's leads or activities: what a cancelled build left."""
    query = """
        SELECT i.indexrelid::regclass::text, i.indrelid::regclass::text FROM pg_index AS i
        JOIN pg_class AS c ON c.oid = i.indrelid JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE NOT i.indisvalid AND (n.nspname = %s OR c.oid = ANY (%s)) ORDER BY 1
        """
    host = list(present.host_tables(conn, s).values())
    for index, where in conn.execute(query, (s.schema, host)).fetchall():
        yield Fault(where, f"index {index} is invalid", f"REINDEX INDEX CONCURRENTLY {index};")


@check("note", "Such a search reads every row that the border admits, and filters then.", needs="enforced")
def index_not_leakproof(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """An index of the leads whose operators or expressions are not leakproof: row security keeps queries from it."""
    # as lost_searches() has it, which names what helps as well, for whoever may ask the gate
    query = """
        SELECT i.indexrelid::regclass::text FROM pg_index AS i JOIN pg_class AS c ON c.oid = i.indexrelid
        WHERE i.indrelid = %s AND i.indisvalid AND c.relname <> {leads_index_name} AND EXISTS (
          SELECT FROM generate_series(0, i.indnkeyatts - 1) AS part (place)
          JOIN pg_opclass AS k ON k.oid = i.indclass[part.place]
          WHERE i.indkey[part.place] = 0 OR k.opcname LIKE '%%pattern_ops' OR NOT (
            SELECT coalesce(bool_or(f.proleakproof), false)
                   AND coalesce(bool_and(f.proleakproof) FILTER (WHERE a.amoprighttype = a.amoplefttype), true)
            FROM pg_amop AS a JOIN pg_operator AS op ON op.oid = a.amopopr JOIN pg_proc AS f ON f.oid = op.oprcode
            WHERE a.amopfamily = k.opcfamily AND a.amoplefttype = k.opcintype))
        ORDER BY 1
        """
    for (index,) in conn.execute(render(query, s), (present.leads(conn, s),)).fetchall():
        yield Fault(s.leads_table, f"index {index} does not serve whoever row security binds", None)


@check(
    "note",
    "An INSERT tells that a lead of some territory has the value, and its ON CONFLICT compares with that lead.",
    needs="enforced",
)
def unique_over_territories(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A unique key of the leads that holds neither their id nor their territory: it reaches over the border."""
    query = """
        SELECT i.indexrelid::regclass::text, quote_ident(k.conname),
               CASE WHEN i.indexprs IS NULL AND i.indpred IS NULL THEN
                 (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY c.place)
                  FROM unnest(i.indkey::smallint[]) WITH ORDINALITY AS c (number, place)
                  JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = c.number
                  WHERE c.place <= i.indnkeyatts) END
        FROM pg_index AS i
        LEFT JOIN pg_constraint AS k ON k.conindid = i.indexrelid AND k.contype IN ('p', 'u')
        WHERE i.indrelid = %s AND i.indisunique AND NOT EXISTS (
          SELECT FROM pg_attribute AS a
          WHERE a.attrelid = i.indrelid AND a.attname IN ({lead_id_column_name}, {territory_column_names})
            AND a.attnum = ANY (i.indkey::smallint[]))
        ORDER BY 1
        """
    leads = table(s.leads_table)
    for index, constraint, columns in conn.execute(render(query, s), (present.leads(conn, s),)).fetchall():
        mends = None
        if columns and s.territory_column:
            key = f"({ident(s.territory_column)}, {columns})"
            mends = f"DROP INDEX {index}; CREATE UNIQUE INDEX ON {leads} {key};"
            if constraint:
                mends = f"ALTER TABLE {leads} DROP CONSTRAINT {constraint}, ADD UNIQUE {key};"
        yield Fault(s.leads_table, f"{index} keeps a value unique over all territories", mends)


@check("danger", "A lead without an id is nobody's, and two leads with one id share their owner.", needs="schema")
def lead_id_open(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """The id of the leads may be NULL, or has no unique index of its own any more."""
    query = """
        SELECT a.attnotnull, EXISTS (
                 SELECT FROM pg_index AS i WHERE i.indrelid = a.attrelid AND i.indisunique AND i.indisvalid
                 AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum AND i.indpred IS NULL)
        FROM pg_attribute AS a WHERE a.attrelid = %s AND a.attname = %s AND NOT a.attisdropped
        """
    column = ident(s.lead_id_column)
    for required, unique in conn.execute(query, (present.leads(conn, s), s.lead_id_column)).fetchall():
        if not required:
            mends = f"ALTER TABLE {table(s.leads_table)} ALTER COLUMN {column} SET NOT NULL;"
            yield Fault(f"{s.leads_table}.{s.lead_id_column}", "it may be NULL", mends)
        if not unique:
            mends = f"CREATE UNIQUE INDEX CONCURRENTLY ON {table(s.leads_table)} ({column});"
            yield Fault(f"{s.leads_table}.{s.lead_id_column}", "it has no unique index of its own", mends)
