"""Our tables beside their policies and guards: what fills a row by itself, what rewrites it, who owns them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.doctor import present
from leadprotect.doctor.finding import Fault, apart, check
from leadprotect.doctor.shipped import shipped
from leadprotect.settings import Settings, ident

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

_RELATION = {"v": "VIEW", "m": "MATERIALIZED VIEW", "S": "SEQUENCE", "f": "FOREIGN TABLE"}


@check(
    "danger",
    "Login, time and number of the evidence are what a default gives, and a NULL passes comparisons.",
    needs="text",
)
def column_changed(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A column of a table of ours with another default than the shipped one, or that may be NULL now."""
    wanted = shipped(s).tables
    for one in present.tables(conn, s):
        expected = wanted.get(one.shipped_as, {}).get("columns", {})
        for name, (required, default) in one.columns.items():
            if name not in expected:
                continue
            alter = f"ALTER TABLE {ident(s.schema, one.name)} ALTER COLUMN {ident(name)}"
            must, given = expected[name]
            if default != given:
                said = f"column {name} has the default {default or 'NULL'}, not {given or 'NULL'}"
                again = f"SET DEFAULT {_default(given, s)};" if given else "DROP DEFAULT;"
                yield Fault(f"{s.schema}.{one.name}", said, f"{alter} {again}")
            if must and not required:
                yield Fault(f"{s.schema}.{one.name}", f"column {name} may be NULL", f"{alter} SET NOT NULL;")


def _default(given: str, s: Settings) -> str:
    """What `neutral` made of an expression, as this schema has it."""
    called = given.replace("'leadprotect.", "'" + ident(s.schema).replace("'", "''") + ".")
    return called.replace("leadprotect . ", f"{ident(s.schema)}.")


@check("danger", "A row of the evidence or of the owners is written elsewhere, or nowhere, without an error.")
def rule_on_ours(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A rewrite rule on a table of ours, which makes none."""
    query = """
        SELECT c.relname::text, r.rulename::text FROM pg_rewrite AS r JOIN pg_class AS c ON c.oid = r.ev_class
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = %s AND c.relkind IN ('r', 'p') AND (n.nspname, c.relname) <> (%s, %s) ORDER BY 1, 2
        """
    for name, rule in conn.execute(query, (s.schema, s.version_table_schema, s.version_table)).fetchall():
        mends = f"DROP RULE {ident(rule)} ON {ident(s.schema, name)};"
        yield Fault(f"{s.schema}.{name}", f"rule {rule} is not leadprotect's", mends)


@check("danger", "Its owner can switch its row security off, drop its guards and change its rows.")
def table_owner(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A table, partition, view or sequence of ours that does not belong to our owner."""
    for one in present.tables(conn, s):
        if one.owner != s.role("owner"):
            kind = _RELATION.get(one.kind, "TABLE")
            mends = f"ALTER {kind} {ident(s.schema, one.name)} OWNER TO {ident(s.role('owner'))};"
            yield Fault(f"{s.schema}.{one.name}", f"it belongs to {one.owner}", mends)


@check("danger", "Its rows are lost in a crash, and no standby and no physical backup has them.")
def table_unlogged(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A table of ours that is UNLOGGED."""
    for one in present.tables(conn, s):
        if one.unlogged:
            mends = f"ALTER TABLE {ident(s.schema, one.name)} SET LOGGED;"
            yield Fault(f"{s.schema}.{one.name}", "it is UNLOGGED", mends)


@check(
    "danger", "What lies there has no row security, no guard and another owner: it is read and changed by its own name."
)
def partition_outside(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """A partition or child of a table of ours that stands in another schema."""
    query = """
        SELECT i.inhparent::regclass::text, i.inhrelid::regclass::text, k.relispartition
        FROM pg_inherits AS i JOIN pg_class AS c ON c.oid = i.inhparent JOIN pg_class AS k ON k.oid = i.inhrelid
        JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE n.nspname = %s AND c.relkind IN ('r', 'p') AND k.relnamespace <> c.relnamespace ORDER BY 1, 2
        """
    for parent, child, partition in conn.execute(query, (s.schema,)).fetchall():
        yield Fault(parent, f"{child} holds rows of it", apart(parent, child, partition=partition))
