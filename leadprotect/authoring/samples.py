"""Two rows in each empty table, so that a downgrade has something to lose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.authoring.schemas import tables_in
from leadprotect.settings import ident

if TYPE_CHECKING:
    from collections.abc import Iterable

ROWS = 2
_PASSES = 4  # a row that names another's needs that one first

_COLUMNS = """
SELECT a.attname, pg_catalog.format_type(a.atttypid, NULL), t.typtype::text, t.typcategory::text, a.attnotnull,
       k.confrelid::pg_catalog.regclass::text,
       (SELECT f.attname FROM pg_catalog.pg_attribute AS f
        WHERE f.attrelid = k.confrelid AND f.attnum = k.confkey[pg_catalog.array_position(k.conkey, a.attnum)])
FROM pg_catalog.pg_attribute AS a JOIN pg_catalog.pg_type AS t ON t.oid = a.atttypid
LEFT JOIN pg_catalog.pg_constraint AS k
  ON k.conrelid = a.attrelid AND k.contype = 'f' AND a.attnum = ANY (k.conkey)
WHERE a.attrelid = pg_catalog.to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped
  AND NOT a.atthasdef AND a.attidentity = '' AND a.attgenerated = ''
ORDER BY a.attnum
"""
_VALUES = {
    "uuid": "pg_catalog.gen_random_uuid()",
    "jsonb": "'{}'::jsonb",
    "json": "'{}'::json",
    "bytea": "''::bytea",
    "inet": "'127.0.0.1'::inet",
    "interval": "interval '1 day'",
}
_BY_CATEGORY = {"N": "{n}", "B": "true", "D": "pg_catalog.now()::{type}", "S": "'s{n}'::{type}", "A": "'{{}}'::{type}"}


def fill_samples(conn: psycopg.Connection[Any], schemas: Iterable[str], *, but: str) -> None:
    """Fill what the types alone can fill; a table with a CHECK of its own may stay empty. `conn` in autocommit."""
    wanted = {(schema, name) for schema, name in tables_in(conn, schemas) if name != but}
    for _ in range(_PASSES):
        wanted = {one for one in wanted if not _filled(conn, *one)}


def _filled(conn: psycopg.Connection[Any], schema: str, name: str) -> bool:
    """Whether it has rows now."""
    place = ident(schema, name)
    if conn.execute(f"SELECT EXISTS (SELECT FROM {place})").fetchone() == (True,):
        return True
    columns = conn.execute(_COLUMNS, (place,)).fetchall()
    try:
        with conn.transaction():
            for number in range(1, ROWS + 1):
                values = {ident(column[0]): _value(column, number) for column in columns}
                given = f"({', '.join(values)}) VALUES ({', '.join(values.values())})" if values else "DEFAULT VALUES"
                conn.execute(f"INSERT INTO {place} {given}")
    except psycopg.Error:
        return False
    return True


def _value(column: tuple[Any, ...], number: int) -> str:
    """A value of the column's type, as SQL; of a foreign key, what is there already."""
    _, kind, typtype, category, required, other, key = column
    if other and key:
        return f"(SELECT {ident(key)} FROM {other} ORDER BY 1 LIMIT 1 OFFSET {number - 1})"
    if typtype == "e":
        return f"(pg_catalog.enum_range(NULL::{kind}))[1]"
    if known := _VALUES.get(kind) or _BY_CATEGORY.get(category):
        return known.format(n=number, type=kind) if "{" in known and kind not in _VALUES else known
    return "NULL" if not required else f"''::{kind}"
