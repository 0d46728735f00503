"""Whether the settings are those with which the database was migrated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadprotect.database.statements import rows
from leadprotect.errors import SettingsError

if TYPE_CHECKING:
    from leadprotect.database.drivers import AnyConnection
    from leadprotect.settings import Settings

# two tables of the first revision: a host may have one of such a name, but hardly both
_SCHEMAS = """
    SELECT n.nspname::text FROM pg_catalog.pg_namespace AS n
    WHERE 2 = (
      SELECT count(*) FROM pg_catalog.pg_class AS c
      WHERE c.relnamespace = n.oid AND c.relname IN ('territories', 'revision_undo'))
      AND (n.nspname = %s OR n.nspname !~ '_quarantine$')
    ORDER BY 1
    """
_TYPES = """
    SELECT a.attname || '_type', pg_catalog.format_type(a.atttypid, NULL)
    FROM pg_catalog.pg_attribute AS a
    JOIN pg_catalog.pg_class AS c ON c.oid = a.attrelid
    JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = %s AND c.relname = 'user_lead_assignments' AND a.attname IN ('lead_id', 'user_id')
    ORDER BY 1
    """


def check_installed(conn: AnyConnection, s: Settings, *, applied: bool) -> None:
    """Raise `SettingsError`, naming the key, for a schema or an id type that the migration did not have.

    The functions in the database hold the names and types of their settings. `applied` means that a
    revision is: then a database without leadprotect is refused, too.
    """
    installed = [name for (name,) in rows(conn, _SCHEMAS, (s.schema,))]
    if s.schema not in installed and (installed or applied):
        where = f"it is in {' and '.join(installed)}" if installed else "nor does any other schema"
        raise SettingsError(f"schema: {s.schema} does not hold the leadprotect of this database, {where}")
    for key, kind in rows(conn, _TYPES, (s.schema,)):
        if kind != getattr(s, key):
            raise SettingsError(
                f"{key}: the setting says {getattr(s, key)}, but this database was migrated with {kind}: put it back. "
                "To change it: alembic downgrade base, leadprotect purge, and upgrade with the new value"
            )
