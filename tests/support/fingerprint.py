"""What a schema is and what it holds, as text that two moments can be compared by."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.authoring.schemas import catalog, difference

if TYPE_CHECKING:
    import psycopg

    from leadprotect.settings import Settings

__all__ = ["contents", "difference", "fingerprint"]


def fingerprint(conn: psycopg.Connection[Any], settings: Settings, *, only: str | None = None) -> dict[str, str]:
    """Every object of our schema, of its quarantine and of the host's schemas -> its definition.

    `only` is "ours" (without the host) or "host". Without the version table, which comes and goes.
    """
    host = {settings.leads_table.split(".", 1)[0], settings.activities_table.split(".", 1)[0], "public"}
    ours = {settings.schema, settings.quarantine}
    schemas = {"ours": ours, "host": host, None: ours | host}[only]
    return catalog(conn, schemas, but=(settings.version_table_schema, settings.version_table))


def contents(conn: psycopg.Connection[Any], settings: Settings) -> dict[str, list[str]]:
    """Every table of our schema, of its quarantine and of the host -> its rows; and where sequences stand.

    Names come without the schema, so that rows are the same before and in the quarantine; without the
    time at which a backfill was registered, which begins anew when its job comes back, and without what says which
    revisions are applied and how they are undone.
    """
    schemas = [settings.schema, settings.quarantine]
    tables = """
        SELECT n.nspname, c.relname, c.relkind FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE (n.nspname = ANY (%s) AND c.relkind IN ('r', 'S') AND c.relname <> ALL (%s))
          OR c.oid IN (to_regclass(%s), to_regclass(%s))
        """
    names = (settings.leads_table, settings.activities_table)
    quoted = ['"' + '"."'.join(name.split(".", 1)) + '"' for name in names]
    found = {}
    for schema, name, kind in conn.execute(
        tables, (schemas, [settings.version_table, "revision_undo"], *quoted)
    ).fetchall():
        columns = {"backfill_jobs": "(to_jsonb(t) - 'registered_at')::text"}.get(name, "t::text")
        columns = "last_value::text" if kind == "S" else columns
        rows = conn.execute(f'SELECT {columns} FROM "{schema}"."{name}" AS t ORDER BY 1').fetchall()
        found[name] = [row[0] for row in rows]
    return found
