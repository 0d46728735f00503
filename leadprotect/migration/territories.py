"""Adds a territory to a database that is migrated already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from leadprotect.database.connection import mapped_errors, rows
from leadprotect.errors import InvalidRequest, PreflightError, ProtectionUnavailable, SettingsError
from leadprotect.migration.locks import LOCK_TIMEOUT_MS
from leadprotect.preflight.names_taken import taken_roles
from leadprotect.settings import Settings, check_territory_code, current, ident, literal, render
from leadprotect.settings.names import ROLE_COMMENT

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
    """Add a territory with its role and its backfill, in one transaction of `conn`: the border knows it by its rows.

    `vat_rate` in percent, valid from today. Needs the rights of who runs the migration; takes no lock on
    the host's tables. Raises `InvalidRequest` when the code is no code or is known already,
    `PreflightError` with what a DBA can run where the login may not create the role, or somebody's role
    has its name.
    """
    s = current()
    try:
        check_territory_code(code)
    except SettingsError as error:
        raise InvalidRequest(str(error)) from None
    with mapped_errors(), conn.transaction():
        conn.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_MS}ms'")
        known = render("SELECT code FROM {schema}.territories WHERE lower(code) = lower(%s)", s)
        if found := rows(conn, known, (code,)):
            message = f"territory: {code!r} is known already"
            if found[0][0] != code:
                message += f" as {found[0][0]!r}: two that differ in case alone would have one role"
            raise InvalidRequest(message)
        _check_spelling(conn, s, code)
        _create_role(conn, s.role(code))
        conn.execute(render("SET LOCAL ROLE {owner}", s))
        conn.execute(
            render(
                "INSERT INTO {schema}.territories (code, name, currency, legal_framework) VALUES (%s, %s, %s, %s)", s
            ),
            (code, name or code, currency, legal_framework),
        )
        if vat_rate is not None:
            conn.execute(
                render(
                    "INSERT INTO {schema}.territory_vat_rates (territory, rate, valid_from) "
                    "VALUES (%s, %s, current_date)",
                    s,
                ),
                (code, vat_rate),
            )
        _register(conn, s)
        conn.execute("RESET ROLE")


def _check_spelling(conn: psycopg.Connection[Any], s: Settings, code: str) -> None:
    """Refuse a code that the leads write in another case: none of them would be in the territory."""
    query = render(
        "SELECT {territory_of_l}::text, {territory_of_l}::text = %s FROM {leads} AS l "
        "WHERE lower({territory_of_l}::text) = lower(%s) ORDER BY 2 DESC, 1 LIMIT 1",
        s,
    )
    try:
        with conn.transaction():
            written = rows(conn, query, (code, code))
    except ProtectionUnavailable:
        return  # who may not read the leads adds a territory as he writes it
    if written and not written[0][1]:
        carried = written[0][0]
        message = f"territory: the leads carry {carried!r}, not {code!r}: leadprotect territory add {carried}"
        raise InvalidRequest(message)


def _create_role(conn: psycopg.Connection[Any], role: str) -> None:
    """Roles are cluster-wide: another database, or a DBA, may have made it."""
    statements: list[str] = []
    if problems := taken_roles(conn, (role,), statements):
        raise PreflightError(problems, statements)
    if rows(conn, "SELECT FROM pg_catalog.pg_roles WHERE rolname = %s", (role,)):
        return
    create = [f"CREATE ROLE {ident(role)} NOLOGIN", f"COMMENT ON ROLE {ident(role)} IS {literal(ROLE_COMMENT)}"]
    me, allowed = rows(
        conn,
        "SELECT rolname::text, rolsuper OR rolcreaterole FROM pg_catalog.pg_roles WHERE rolname = current_user",
    )[0]
    if not allowed:
        raise PreflightError(
            [f"role {me} may not create roles, and {role} is missing"], [f"{statement};" for statement in create]
        )
    for statement in create:
        conn.execute(statement)


def _register(conn: psycopg.Connection[Any], s: Settings) -> None:
    """Its code in the list that the border knows, and its backfill."""
    conn.execute(render("SELECT {schema}.publish_territories()", s))
    if rows(conn, "SELECT to_regclass(%s)", (render("{schema}.backfill_jobs", s),)) != [(None,)]:
        conn.execute(
            render(
                "INSERT INTO {schema}.backfill_jobs (territory) "
                "SELECT code FROM {schema}.territories ON CONFLICT (territory) DO NOTHING",
                s,
            )
        )
