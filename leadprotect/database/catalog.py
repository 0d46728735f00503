"""Reads the catalog: one value, or the oid of a relation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.database.statements import row, rows
from leadprotect.settings import current, render

if TYPE_CHECKING:
    import psycopg

    from leadprotect.database.drivers import AnyConnection


def one(conn: psycopg.Connection[Any], query: str, *params: Any) -> Any:
    """The first value of the first row; None without a row."""
    found = conn.execute(query, params or None).fetchone()
    return found[0] if found else None


def relation(conn: AnyConnection, schema: str, name: str) -> int | None:
    """The oid of a table, view or index; a name cast to regclass would need the right to use its schema."""
    query = "SELECT c.oid FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace"
    found = rows(conn, query + " WHERE n.nspname = %s AND c.relname = %s", (schema, name))
    return int(found[0][0]) if found else None


def all_codes(conn: AnyConnection) -> list[str]:
    """Every territory of the database, also for a login whom the policies show none."""
    query = "SELECT t.code FROM pg_catalog.unnest({schema}.all_territories()) AS t (code) ORDER BY 1"
    return [code for (code,) in rows(conn, render(query, current()))]


def territory_role(conn: AnyConnection, code: str) -> str:
    """Name of a territory's role, unquoted, as the database says it."""
    return str(row(conn, render("SELECT {schema}.territory_role(%s::text)", current()), (code,))[0])
