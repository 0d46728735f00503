"""Adds a territory to a database that is migrated already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.database.connection import mapped_errors, rows
from leadprotect.errors import InvalidRequest, PreflightError, SettingsError
from leadprotect.migration.locks import LOCK_TIMEOUT_MS
from leadprotect.settings import Settings, check_territory_code, current, ident, literal, render, table

if TYPE_CHECKING:
    from decimal import Decimal

    import psycopg


def add_territory(
    conn: psycopg.Connection[Any],
    code: str,
    *,
    name: str | None = None,
    currency: str | None = None,
    legal_framework: str | None = None,
    vat_rate: Decimal | None = None,
) -> None:
    """Add a territory with its role, policies and backfill, in one transaction of `conn`.

    `vat_rate` in percent, valid from today. Needs the rights of who runs the migration, and takes
    ACCESS EXCLUSIVE on the host's leads for milliseconds when contract is applied.
    Raises `InvalidRequest` when the code is no code or is known already, `PreflightError` with what a
    DBA can run where the login may not create the role.
    """
    s = current()
    try:
        check_territory_code(code)
    except SettingsError as error:
        raise InvalidRequest(str(error)) from None
    with mapped_errors(), conn.transaction():
        conn.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_MS}ms'")
        known = f"SELECT code FROM {ident(s.schema)}.territories WHERE lower(code) = lower(%s)"
        if rows(conn, known, (code,)):
            message = f"territory: {code!r} is known already"
            raise InvalidRequest(message)
        _create_role(conn, s.role(code))
        conn.execute(f"SET LOCAL ROLE {ident(s.role('owner'))}")
        conn.execute(
            f"INSERT INTO {ident(s.schema)}.territories (code, name, currency, legal_framework) "
            "VALUES (%s, %s, %s, %s)",
            (code, name or code, currency, legal_framework),
        )
        if vat_rate is not None:
            conn.execute(
                f"INSERT INTO {ident(s.schema)}.territory_vat_rates (territory, rate, valid_from) "
                "VALUES (%s, %s, current_date)",
                (code, vat_rate),
            )
        conn.execute(render(_OUR_TABLES, s))
        conn.execute("RESET ROLE")
        _protect_host(conn, s, code)


def _create_role(conn: psycopg.Connection[Any], role: str) -> None:
    """Roles are cluster-wide: another database, or a DBA, may have made it."""
    if rows(conn, "SELECT FROM pg_catalog.pg_roles WHERE rolname = %s", (role,)):
        return
    create = f"CREATE ROLE {ident(role)} NOLOGIN"
    me, allowed = rows(
        conn,
        "SELECT rolname::text, rolsuper OR rolcreaterole FROM pg_catalog.pg_roles WHERE rolname = current_user",
    )[0]
    if not allowed:
        raise PreflightError([f"role {me} may not create roles, and {role} is missing"], [f"{create};"])
    conn.execute(create)


# every table of ours that carries a territory gets the policy of the new one
_OUR_TABLES = """
    DO $do$
    DECLARE
      target regclass;
    BEGIN
      FOR target IN
        SELECT c.oid FROM pg_catalog.pg_class AS c
        WHERE c.relnamespace = {schema_name}::regnamespace AND c.relkind IN ('r', 'p')
      LOOP
        PERFORM {schema}.secure_table(target);
      END LOOP;
      IF pg_catalog.to_regclass('{schema}.backfill_jobs') IS NOT NULL THEN
        INSERT INTO {schema}.backfill_jobs (territory)
        SELECT code FROM {schema}.territories ON CONFLICT (territory) DO NOTHING;
      END IF;
    END
    $do$
    """


def _protect_host(conn: psycopg.Connection[Any], s: Settings, code: str) -> None:
    """After contract: the policy of the new territory on the host's leads, as the revision made the others."""
    leads, column = table(s.leads_table), ident(s.territory_column)
    query = "SELECT polname FROM pg_catalog.pg_policy WHERE polrelid = %s::regclass"
    standing = {found[0] for found in rows(conn, query, (leads,))}
    if f"{s.schema}_floor" not in standing:
        return
    border = ident(s.role(code))
    inside = f"pg_catalog.current_setting({literal(s.territory_guc)}, true)"
    conn.execute(
        f"CREATE POLICY {ident(f'{s.schema}_territory_{code.lower()}')} ON {leads} TO {border} "
        f"USING ({column} = {literal(code)} AND (SELECT {inside} = {literal(code)}))"
    )
    codes = rows(conn, f"SELECT code FROM {ident(s.schema)}.territories ORDER BY code")
    bound = ", ".join(ident(s.role(name)) for name in ("app", *(found[0] for found in codes)))
    for verb in ("update", "delete"):
        conn.execute(f"ALTER POLICY {ident(f'{s.schema}_{verb}')} ON {leads} TO {bound}")
