"""What stands in a database, as far as the settings depend on it: read only, and a sample of the rows."""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.settings import ident, table

if TYPE_CHECKING:
    from collections.abc import Iterator

LONGEST_S = 10
SAMPLED = 200_000
"""Rows of a table that are looked at; what only later ones hold is not proposed."""
_MOST = 40

_TABLES = """
WITH RECURSIVE kinds AS (
  SELECT t.oid, t.oid AS base FROM pg_catalog.pg_type AS t WHERE t.typtype <> 'd'
  UNION ALL
  SELECT t.oid, k.base FROM pg_catalog.pg_type AS t JOIN kinds AS k ON k.oid = t.typbasetype WHERE t.typtype = 'd')
SELECT n.nspname, c.relname, c.relkind::text, c.relrowsecurity, c.relforcerowsecurity,
       pg_catalog.pg_get_userbyid(c.relowner)::text, greatest(c.reltuples, 0)::bigint,
       pg_catalog.has_table_privilege(c.oid, 'SELECT'), pg_catalog.row_security_active(c.oid),
       (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(
                 a.attname, pg_catalog.format_type(b.oid, NULL), b.typtype, a.attnotnull) ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute AS a JOIN kinds AS k ON k.oid = a.atttypid
        JOIN pg_catalog.pg_type AS b ON b.oid = k.base
        WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
       (SELECT pg_catalog.array_agg(a.attname::text ORDER BY i.indisprimary DESC, a.attnum)
        FROM pg_catalog.pg_index AS i JOIN pg_catalog.pg_attribute AS a
          ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = c.oid AND i.indisunique AND i.indnkeyatts = 1 AND i.indpred IS NULL AND i.indisvalid),
       (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(fn.nspname || '.' || f.relname, a.attname))
        FROM pg_catalog.pg_constraint AS k JOIN pg_catalog.pg_class AS f ON f.oid = k.confrelid
        JOIN pg_catalog.pg_namespace AS fn ON fn.oid = f.relnamespace
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = k.conkey[1]
        WHERE k.conrelid = c.oid AND k.contype = 'f' AND pg_catalog.cardinality(k.conkey) = 1),
       (SELECT pg_catalog.array_agg(a.attname::text) FROM pg_catalog.pg_constraint AS k
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = k.conkey[1]
        WHERE k.conrelid = c.oid AND k.contype = 'f' AND pg_catalog.cardinality(k.conkey) = 1 AND k.confdeltype = 'c'),
       (SELECT pg_catalog.array_agg(a.attname::text) FROM pg_catalog.pg_index AS i
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = c.oid AND i.indisvalid
          AND coalesce(
            pg_catalog.pg_get_expr(i.indpred, i.indrelid) = pg_catalog.format('(%%I IS NOT NULL)', a.attname), true)),
       (SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(p.polname,
                 pg_catalog.concat_ws(' ', pg_catalog.pg_get_expr(p.polqual, p.polrelid),
                                      pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid))))
        FROM pg_catalog.pg_policy AS p WHERE p.polrelid = c.oid)
FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v') AND NOT c.relispartition AND n.nspname !~ '^pg_'
  AND n.nspname <> 'information_schema' AND n.nspname <> ALL (%s)
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d WHERE d.objid = c.oid AND d.deptype = 'e')
ORDER BY 1, 2
"""


# what policies ask, and what the functions say that they call; not of the server's own, nor of extensions
_CODE = """
SELECT pg_catalog.concat_ws(' ', pg_catalog.pg_get_expr(p.polqual, p.polrelid),
                            pg_catalog.pg_get_expr(p.polwithcheck, p.polrelid))
FROM pg_catalog.pg_policy AS p
UNION ALL
SELECT p.prosrc FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND p.prosrc ~ 'current_setting' AND p.prosrc ~ '->>'
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d WHERE d.objid = p.oid AND d.deptype = 'e')
"""
_CLAIM = re.compile(
    r"current_setting\(\s*'(?P<setting>[\w.]+)'[^)]*\)(?:(?!current_setting).){0,60}?->>\s*'(?P<field>\w+)'",
    re.DOTALL,
)


@dataclass(frozen=True)
class HostColumn:
    """`type` is that below domains; an enum is told by `is_enum`."""

    name: str
    type: str
    is_enum: bool
    required: bool


@dataclass(frozen=True)
class HostTable:
    """A table or view; `keys` are columns unique alone, the primary one first; `refers` tells column -> table.

    `cascades` are those of `refers` whose rows go with what they refer to, `indexed` columns that an index begins with.
    `binding` says whether its row security binds who looks, and hides rows.
    """

    name: str
    kind: str
    row_security: bool
    forced: bool
    owner: str
    rows: int
    readable: bool
    binding: bool
    columns: dict[str, HostColumn]
    keys: tuple[str, ...]
    refers: dict[str, str]
    cascades: frozenset[str]
    indexed: frozenset[str]
    policies: dict[str, str]

    @property
    def plain(self) -> str:
        """Its name without the schema."""
        return self.name.partition(".")[2]


@contextmanager
def read_only(conn: psycopg.Connection[Any]) -> Iterator[None]:
    """A transaction that can't write, and whose statements end."""
    with conn.transaction():
        conn.execute("SET TRANSACTION READ ONLY")
        conn.execute(f"SET LOCAL statement_timeout = '{LONGEST_S}s'")
        yield


def tables_of(conn: psycopg.Connection[Any], *, but: tuple[str, ...]) -> list[HostTable]:
    """Every table and view that is the host's; `but` names our schemas. Extensions' own are left out."""
    return [_table(*row) for row in conn.execute(_TABLES, (list(but),)).fetchall()]


def values_of(conn: psycopg.Connection[Any], of: HostTable, column: str) -> dict[str, int] | None:
    """The values of a column with how often a sample holds them, the most frequent first; None where it can't be read.

    None, too, where there are more than a person would call a list.
    """
    return values_told(conn, of, ident(column))


def values_told(conn: psycopg.Connection[Any], of: HostTable, expression: str) -> dict[str, int] | None:
    """What an expression of the person's own says of the rows, as `values_of`; None where it can't be evaluated."""
    query = (
        f"SELECT v::text, count(*) FROM (SELECT ({expression}) AS v FROM {table(of.name)} LIMIT {SAMPLED}) AS s "
        f"WHERE v IS NOT NULL GROUP BY 1 ORDER BY 2 DESC, 1 LIMIT {_MOST + 1}"
    )
    found = _looked_up(conn, query)
    return dict(found) if found is not None and len(found) <= _MOST else None


def by_few_values(conn: psycopg.Connection[Any], of: HostTable, columns: list[str]) -> list[str]:
    """The columns in an order in which those with a few different values come first, as ANALYZE counted them."""
    query = "SELECT attname::text, n_distinct FROM pg_catalog.pg_stats WHERE (schemaname, tablename) = (%s, %s)"
    counted = dict(conn.execute(query, of.name.split(".", 1)).fetchall())
    return sorted(columns, key=lambda name: not 1 < counted.get(name, 0) <= _MOST)


def meant_by(conn: psycopg.Connection[Any], of: HostTable, column: str, code: str) -> list[tuple[str, str, int]] | None:
    """What a column refers to: each id in use, the code of that row, and how often; the most frequent first.

    None where it can't be read, or where there are more than a person would call a list.
    """
    key = conn.execute(
        """
        SELECT a.attname::text FROM pg_catalog.pg_constraint AS k
        JOIN pg_catalog.pg_attribute AS a ON a.attrelid = k.confrelid AND a.attnum = k.confkey[1]
        JOIN pg_catalog.pg_attribute AS b ON b.attrelid = k.conrelid AND b.attnum = k.conkey[1]
        WHERE k.contype = 'f' AND k.conrelid = pg_catalog.to_regclass(%s) AND b.attname = %s
          AND pg_catalog.cardinality(k.conkey) = 1
        """,
        (table(of.name), column),
    ).fetchall()
    query = (
        f"SELECT p.{ident(key[0][0])}::text, p.{ident(code)}::text, count(*) "
        f"FROM (SELECT {ident(column)} AS v FROM {table(of.name)} LIMIT {SAMPLED}) AS s "
        f"JOIN {table(of.refers[column])} AS p ON p.{ident(key[0][0])} = s.v "
        f"WHERE p.{ident(code)} IS NOT NULL GROUP BY 1, 2 ORDER BY 3 DESC, 2 LIMIT {_MOST + 1}"
    )
    found = _looked_up(conn, query)
    return [(key, value, count) for key, value, count in found] if found is not None and len(found) <= _MOST else None


def exempt_logins(conn: psycopg.Connection[Any], of: HostTable) -> list[str]:
    """Logins that read the table and that no row security binds, or that only read: reporting and backup."""
    query = """
        SELECT r.rolname::text FROM pg_catalog.pg_roles AS r
        WHERE r.rolcanlogin AND NOT r.rolsuper AND r.rolname <> %s
          AND pg_catalog.has_table_privilege(r.oid, pg_catalog.to_regclass(%s), 'SELECT')
          AND (r.rolbypassrls OR NOT pg_catalog.has_table_privilege(r.oid, pg_catalog.to_regclass(%s), 'UPDATE'))
        ORDER BY 1
        """
    return [name for (name,) in conn.execute(query, (of.owner, table(of.name), table(of.name))).fetchall()]


def claims_read(conn: psycopg.Connection[Any]) -> list[tuple[str, str]]:
    """The fields of settings in JSON that policies and functions of the host read: (setting, field), each once."""
    found = [
        (match["setting"], match["field"])
        for (text,) in conn.execute(_CODE).fetchall()
        for match in _CLAIM.finditer(text)
    ]
    return list(dict.fromkeys(found))


def changing(conn: psycopg.Connection[Any], of: HostTable) -> list[str]:
    """Functions of the host of several steps, that change rows of the table as whoever calls them."""
    query = """
        SELECT p.oid::regprocedure::text FROM pg_catalog.pg_proc AS p
        JOIN pg_catalog.pg_namespace AS n ON n.oid = p.pronamespace
        JOIN pg_catalog.pg_language AS g ON g.oid = p.prolang
        WHERE g.lanname = 'plpgsql' AND NOT p.prosecdef AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
          AND p.prosrc ~* %s
          AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend AS d WHERE d.objid = p.oid AND d.deptype = 'e')
        ORDER BY 1 LIMIT 5
        """
    schema, name = (re.escape(part) for part in of.name.split(".", 1))
    changes = rf'\m(update|delete\s+from|merge\s+into)\s+(only\s+)?("?{schema}"?\.)?"?{name}"?(\s|;|$)'
    return [signature for (signature,) in conn.execute(query, (changes,)).fetchall()]


def compared(conn: psycopg.Connection[Any], of: HostTable, column: str, other: str) -> tuple[int, int]:
    """Rows of a sample in which `other` alone says something, and in which both do and differ."""
    query = (
        f"SELECT count(*) FILTER (WHERE v = '' AND w <> ''), count(*) FILTER (WHERE v <> '' AND w <> '' AND v <> w) "
        f"FROM (SELECT coalesce({ident(column)}::text, '') AS v, coalesce({ident(other)}::text, '') AS w "
        f"FROM {table(of.name)} LIMIT {SAMPLED}) AS s"
    )
    ((alone, differ),) = _looked_up(conn, query) or [(0, 0)]
    return alone, differ


def _looked_up(conn: psycopg.Connection[Any], query: str) -> list[Any] | None:
    """None where it can't be read: no privilege, a policy that fails, or a table too large to be read in time."""
    try:
        with conn.transaction():
            return conn.execute(query.encode()).fetchall()
    except psycopg.Error:
        return None


def _table(*row: Any) -> HostTable:
    (
        schema,
        name,
        kind,
        secured,
        forced,
        owner,
        estimate,
        readable,
        binding,
        columns,
        keys,
        refers,
        cascades,
        indexed,
        policies,
    ) = row
    return HostTable(
        f"{schema}.{name}",
        kind,
        secured,
        forced,
        owner,
        estimate,
        readable,
        binding,
        {column[0]: HostColumn(column[0], column[1], column[2] == "e", column[3]) for column in columns or ()},
        tuple(dict.fromkeys(keys or ())),
        {column: target for target, column in refers or ()},
        frozenset(cascades or ()),
        frozenset(indexed or ()),
        dict(policies or ()),
    )
