"""Whether a backfill can run here: asked before anything is written, one clear error each."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.backfilling.jobs import check_known, known_territories
from leadprotect.database import replication
from leadprotect.database.catalog import relation
from leadprotect.database.memberships import grants
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.database.statements import row, rows
from leadprotect.errors import BackfillError, InvalidRequest, ProtectionUnavailable
from leadprotect.preflight.columns import in_text
from leadprotect.preflight.host_tables import check_visible
from leadprotect.preflight.installed import check_installed
from leadprotect.settings import Settings, ident, render
from leadprotect.settings.names import host_indexes
from leadprotect.settings.sources import fingerprint

if TYPE_CHECKING:
    import psycopg

    from leadprotect.database.drivers import AnyConnection


def check_ready(conn: psycopg.Connection[Any], s: Settings, territories: tuple[str, ...], *, read_only: bool) -> None:
    """Raise `BackfillError`, or why a backfill can't run here.

    `SettingsError`: the settings are not those of the migration. `InvalidRequest`: the kinds and names
    changed. `PreflightError`: rows are hidden. `ProtectionUnavailable`: not migrated. `read_only` is for
    a dry run, which may run on a replica.
    """
    with mapped_errors():
        check_installed(conn, s, applied=False)
        _check_login(conn, s)
        check_known(territories, known_territories(conn, s))
        if not read_only:
            _check_writable(conn)
        check_settings(conn, s)
        check_visible(conn, s)


def missing_index(conn: AnyConnection, s: Settings) -> str | None:
    """The first index that a slice needs and that is missing or invalid: contract drops them."""
    missing = missing_indexes(conn, s)
    return ident(missing[0][1].split(".", 1)[0], missing[0][0]) if missing else None


def missing_indexes(conn: AnyConnection, s: Settings) -> list[tuple[str, str]]:
    """Our indexes on the host's tables that are missing or invalid: each with its table, both unquoted."""
    valid = "SELECT FROM pg_catalog.pg_index AS i WHERE i.indexrelid = %s AND i.indisvalid"
    return [
        (index, of)
        for index, of in host_indexes(s).items()
        if not rows(conn, valid, (relation(conn, of.split(".", 1)[0], index),))
    ]


def _check_login(conn: psycopg.Connection[Any], s: Settings) -> None:
    function = render("{schema}.backfill_start(text,text)", s)
    login, schema, exists = conn.execute(
        "SELECT current_user::text, to_regnamespace(%s) IS NOT NULL, "
        "EXISTS (SELECT FROM pg_catalog.pg_proc AS p "
        "WHERE p.pronamespace = to_regnamespace(%s) AND p.proname = 'backfill_start')",
        (ident(s.schema), ident(s.schema)),
    ).fetchall()[0]
    if not schema or not exists:
        raise ProtectionUnavailable(
            f"schema {s.schema} holds no backfill: not migrated yet, or rolled back. Run alembic upgrade head first"
        )
    allowed = conn.execute(
        "SELECT has_schema_privilege(%s, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE') "
        "FROM pg_catalog.pg_proc AS p "
        "WHERE p.pronamespace = to_regnamespace(%s) AND p.proname = 'backfill_start'",
        (s.schema, ident(s.schema)),
    ).fetchone()
    if allowed != (True,):
        grant = grants(conn, [s.role("operator")], login)
        raise BackfillError(f"login {login} may not call {function}. A DBA can run: {grant}")


def _check_writable(conn: psycopg.Connection[Any]) -> None:
    if standby := replication.standby(conn):
        named = f", {standby.primary}," if standby.primary else ""
        message = f"this server is a hot standby, it can't be written to: name the primary{named} in database_url"
        raise BackfillError(message)
    ((read_only,),) = conn.execute("SELECT current_setting('transaction_read_only')").fetchall()
    if read_only == "on":
        off = f"ALTER ROLE {ident(conn.info.user)} SET default_transaction_read_only = off;"
        raise BackfillError(f"this login's sessions are read-only: {off}")


def check_settings(conn: AnyConnection, s: Settings) -> None:
    """Raise `InvalidRequest` if the settings that decide who owns a lead are not those of the migration."""
    (ours,) = row(conn, render("SELECT {schema}.backfill_settings()", s))
    s = in_text(conn, s)
    if ours != fingerprint(s):
        raise InvalidRequest(
            f"the settings changed since the backfill was migrated: then {ours}; now {fingerprint(s)}. "
            "Put them back. To change them: alembic downgrade base with the old ones, which keeps every row, "
            "then alembic upgrade head with the new ones"
        )
