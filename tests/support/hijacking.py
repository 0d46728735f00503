"""Operators, functions and types in the path that fit better than PostgreSQL's own: who calls one is hijacked."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg

import leadprotect

if TYPE_CHECKING:
    from tests.support.database import Database

PACKAGE = Path(leadprotect.__file__).parent

TYPES = (
    *("oid", "regclass", "regnamespace", "regrole", "regtype", "name", "text", "varchar", "uuid", "bigint"),
    # a driver sends a number as the smallest type that holds it
    *(
        "smallint",
        "integer",
        "boolean",
        "timestamptz",
        "timestamp",
        "date",
        "interval",
        "xid8",
        '"char"',
        "bytea",
        "float8",
    ),
    *("text[]", "name[]", "oid[]", "bigint[]", "jsonb", "numeric"),
)
FEW = ("name", "text", "varchar", "bigint", "integer", "uuid", "oid", "regclass")
OPERATORS = ("=", "<>", "<", ">", "<=", ">=", "~", "!~", "~~", "||", "@>", "+", "-")

_PLANT = """
CREATE SEQUENCE public.hijacked;
GRANT ALL ON SEQUENCE public.hijacked TO PUBLIC;
DO $plant$
DECLARE
  body CONSTANT text := $$ LANGUAGE plpgsql AS
    'BEGIN PERFORM pg_catalog.nextval(''public.hijacked''::pg_catalog.regclass);
     RAISE EXCEPTION ''hijacked as %%'', CURRENT_USER; END' $$;
  l text; r text; op text; f text;
BEGIN
  FOREACH l IN ARRAY %(types)s::text[] LOOP
    FOREACH r IN ARRAY %(types)s::text[] LOOP
      EXECUTE format('CREATE FUNCTION public.hijack(%%s, %%s) RETURNS boolean', l, r) || body;
      FOREACH op IN ARRAY %(operators)s::text[] LOOP
        CONTINUE WHEN NOT %(shadow)s AND to_regoperator(format('pg_catalog.%%s(%%s,%%s)', op, l, r)) IS NOT NULL;
        EXECUTE format('CREATE OPERATOR public.%%s (LEFTARG = %%s, RIGHTARG = %%s, FUNCTION = public.hijack)',
                       op, l, r);
      END LOOP;
    END LOOP;
    FOREACH f IN ARRAY %(of_one)s::text[] LOOP
      CONTINUE WHEN NOT %(shadow)s AND to_regprocedure(format('pg_catalog.%%I(%%s)', f, l)) IS NOT NULL;
      EXECUTE format('CREATE FUNCTION public.%%I(%%s) RETURNS text', f, l) || body;
    END LOOP;
  END LOOP;
  FOREACH l IN ARRAY %(few)s::text[] LOOP
    FOREACH r IN ARRAY %(few)s::text[] LOOP
      FOREACH f IN ARRAY %(of_two)s::text[] LOOP
        CONTINUE WHEN NOT %(shadow)s AND to_regprocedure(format('pg_catalog.%%I(%%s,%%s)', f, l, r)) IS NOT NULL;
        EXECUTE format('CREATE FUNCTION public.%%I(%%s, %%s) RETURNS text', f, l, r) || body;
      END LOOP;
    END LOOP;
  END LOOP;
END $plant$;
"""
_TYPES = """
CREATE FUNCTION public.hijack_value(value anyelement) RETURNS boolean LANGUAGE plpgsql AS
$$ BEGIN PERFORM nextval('public.hijacked'); RAISE EXCEPTION 'hijacked by a type'; END $$;
CREATE DOMAIN public.uuid AS pg_catalog.uuid CHECK (public.hijack_value(VALUE));
CREATE DOMAIN public.text AS pg_catalog.text CHECK (public.hijack_value(VALUE));
CREATE DOMAIN public.date AS pg_catalog.date CHECK (public.hijack_value(VALUE));
CREATE DOMAIN public.timestamptz AS pg_catalog.timestamptz CHECK (public.hijack_value(VALUE));
"""


_TAKING = """
SELECT DISTINCT proname FROM pg_proc
WHERE provariadic <> 0 OR %(number)s BETWEEN pronargs - pronargdefaults AND pronargs
"""
"""What can be called with so many arguments: a function planted for others could be called by nobody."""


def plant(database: Database, *, shadow: bool = False) -> None:
    """Plant them in `public`; with `shadow` also those that PostgreSQL has itself, for a path that names it last."""
    with honest(database) as conn:
        values: dict[str, Any] = {"types": list(TYPES), "few": list(FEW), "operators": list(OPERATORS)}
        for key, number in (("of_one", 1), ("of_two", 2)):
            taking = {name for (name,) in conn.execute(_TAKING, {"number": number})}
            values[key] = sorted(called_in_sql() & taking)
        script = psycopg.ClientCursor(conn).mogrify(_PLANT, values | {"shadow": shadow})
        conn.execute(script)
        if shadow:
            conn.execute(_TYPES)
        conn.execute("GRANT USAGE ON SCHEMA public TO PUBLIC")


def hijacked(database: Database) -> bool:
    """Whether anybody has called one of them."""
    with honest(database) as conn:
        return conn.execute("SELECT is_called FROM public.hijacked").fetchone() == (True,)


def honest(database: Database) -> psycopg.Connection[Any]:
    """A connection of the test itself, which calls none of them."""
    return psycopg.connect(database.url, options="-c search_path=pg_catalog", autocommit=True)


@cache
def called_in_sql() -> frozenset[str]:
    """Every name that a text of the package calls."""
    found: set[str] = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found |= set(re.findall(r"([a-z_][a-z0-9_]*)\(", node.value))
    return frozenset(found)
