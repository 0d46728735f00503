"""Territories of a database that is migrated already: what there is, one more, another code, one less."""

from __future__ import annotations

from dataclasses import dataclass
from shlex import quote
from typing import TYPE_CHECKING, Any

from leadprotect.database.catalog import all_codes, territory_role
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.database.statements import rows
from leadprotect.errors import InvalidRequest, PreflightError, ProtectionUnavailable, SettingsError
from leadprotect.migration.locks import LOCK_TIMEOUT_MS
from leadprotect.preflight.names_taken import taken_roles
from leadprotect.settings import Settings, current, ident, literal, render
from leadprotect.settings.codes import suffix_of
from leadprotect.settings.names import ROLE_COMMENT

if TYPE_CHECKING:
    from decimal import Decimal

    import psycopg


# every table of ours that names a territory, besides those that a territory is made of
_NAMING = """
SELECT c.relname::text FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'territory' AND NOT a.attisdropped
WHERE n.nspname = %s AND c.relkind IN ('r', 'p') AND NOT c.relispartition
  AND c.relname NOT IN ('territory_vat_rates', 'backfill_jobs') ORDER BY 1
"""
_LISTED = """
SELECT t.code, t.name, t.currency, t.legal_framework,
       (SELECT v.rate FROM {schema}.territory_vat_rates AS v WHERE v.territory = t.code
        AND v.valid_from <= current_date AND (v.valid_to IS NULL OR v.valid_to > current_date)),
       ARRAY(SELECT DISTINCT m.member::pg_catalog.regrole::text FROM pg_catalog.pg_auth_members AS m
             JOIN pg_catalog.pg_roles AS r ON r.oid = m.roleid
             WHERE r.rolname = {schema}.territory_role(t.code) ORDER BY 1),
       {schema}.territory_role(t.code)
FROM {schema}.territories AS t ORDER BY 1
"""


@dataclass(frozen=True)
class ListedTerritory:
    """A territory with its terms of today, its role, and who holds that; `vat_rate` in percent."""

    code: str
    name: str
    currency: str | None
    legal_framework: str | None
    vat_rate: Decimal | None
    role: str
    members: tuple[str, ...]


def list_territories(conn: psycopg.Connection[Any]) -> list[ListedTerritory]:
    """Every territory, by its code; raises `ProtectionUnavailable` where nothing is installed."""
    s = current()
    found = rows(conn, render(_LISTED, s))
    return [
        ListedTerritory(code, name, currency, law, rate, role, tuple(members))
        for code, name, currency, law, rate, members, role in found
    ]


def remove_territory(conn: psycopg.Connection[Any], code: str) -> None:
    """Take a territory away that nothing names, in one transaction of `conn`; its role stays, as roles do.

    Raises `InvalidRequest` where there is none, where it is the last one, and where leads, owners, rules or the
    audit name it: what was recorded there would be read by nobody any more.
    """
    s = current()
    with mapped_errors(), conn.transaction():
        conn.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_MS}ms'")
        known = all_codes(conn)
        _require_known(code, known)
        if len(known) == 1:
            raise InvalidRequest(f"territory: {code} is the last one, and leads need one to be in; add another first")
        _require_unnamed(conn, s, code, "removed")
        _delete(conn, s, code)
        conn.execute(render("SELECT {schema}.publish_territories()", s))
        conn.execute("RESET ROLE")


def rename_territory(conn: psycopg.Connection[Any], code: str, new: str, *, suffix: str | None = None) -> None:
    """Give a territory that nothing names yet another code, with its terms: a typing mistake of `territory add`.

    In one transaction of `conn`. Raises `InvalidRequest` as `remove_territory` does, and where `new` is no code, or
    taken; `PreflightError` as `add_territory` does. `suffix` as there.
    """
    s = current()
    with mapped_errors(), conn.transaction():
        known = all_codes(conn)
        _require_known(code, known)
        ending = _suffix(new, suffix)
        if territory_role(conn, code) == s.role(ending):
            raise InvalidRequest(f"territory: {code} and {new} would have one role; remove {code}, then add {new}")
        _require_unnamed(conn, s, code, "renamed")
        add_territory(conn, new, suffix=suffix)
        conn.execute(render("SET LOCAL ROLE {owner}", s))
        conn.execute(
            render(
                "UPDATE {schema}.territories AS t SET name = CASE o.name WHEN o.code THEN t.code ELSE o.name END, "
                "currency = o.currency, legal_framework = o.legal_framework "
                "FROM {schema}.territories AS o WHERE t.code = %s AND o.code = %s",
                s,
            ),
            (new, code),
        )
        conn.execute(
            render("UPDATE {schema}.territory_vat_rates SET territory = %s WHERE territory = %s", s), (new, code)
        )
        _delete(conn, s, code)
        conn.execute(render("SELECT {schema}.publish_territories()", s))
        conn.execute("RESET ROLE")


def _require_known(code: str, known: list[str]) -> None:
    if code not in known:
        raise InvalidRequest(f"territory: there is no {code!r}; known are {', '.join(known)}")


def _require_unnamed(conn: psycopg.Connection[Any], s: Settings, code: str, done: str) -> None:
    """Raise where a lead or a row of ours names the territory."""
    conn.execute(render("SET LOCAL ROLE {reader}", s))
    leads = "SELECT count(*) FROM (SELECT FROM {leads} AS l WHERE {territory_of_l}::text = %s LIMIT 1000) AS found"
    [(count,)] = rows(conn, render(leads, s), (code,))
    conn.execute(render("SET LOCAL ROLE {owner}", s))
    naming = [f"leads ({'1,000 or more' if count == 1000 else count})"] if count else []  # noqa: PLR2004 - the LIMIT
    for (name,) in rows(conn, _NAMING, (s.schema,)):
        found = f"SELECT EXISTS (SELECT FROM {ident(s.schema, name)} WHERE territory = %s)"
        if rows(conn, found, (code,)) == [(True,)]:
            naming.append(name)
    conn.execute("RESET ROLE")
    if naming:
        raise InvalidRequest(
            f"territory: {code} can't be {done}, because {', '.join(naming)} name it: what was decided and recorded "
            "there would be nobody's to read"
        )


def _delete(conn: psycopg.Connection[Any], s: Settings, code: str) -> None:
    """As the owner of our tables, which the session stays."""
    conn.execute(render("SET LOCAL ROLE {owner}", s))
    for table in (ident(s.schema, name) for name in ("backfill_jobs", "territory_vat_rates")):
        if rows(conn, "SELECT to_regclass(%s)", (table,)) != [(None,)]:
            conn.execute(f"DELETE FROM {table} WHERE territory = %s", (code,))
    conn.execute(render("DELETE FROM {schema}.territories WHERE code = %s", s), (code,))


def add_territory(
    conn: psycopg.Connection[Any],
    code: str,
    *,
    suffix: str | None = None,
    name: str | None = None,
    currency: str | None = None,
    legal_framework: str | None = None,
    vat_rate: Decimal | None = None,
) -> None:
    """Add a territory with its role and its backfill, in one transaction of `conn`: the border knows it by its rows.

    `suffix` is what the name of the role ends with, where the code is no plain word. `vat_rate` in percent, valid from
    today. Needs the rights of who runs the migration; takes no lock on
    the host's tables. Raises `InvalidRequest` when the code is no code or is known already,
    `PreflightError` with what a DBA can run where the login may not create the role, or somebody's role
    has its name.
    """
    s = current()
    ending = _suffix(code, suffix)
    with mapped_errors(), conn.transaction():
        conn.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_MS}ms'")
        _require_new(conn, s, code, ending)
        _check_spelling(conn, s, code)
        _create_role(conn, s.role(ending))
        conn.execute(render("SET LOCAL ROLE {owner}", s))
        conn.execute(
            render(
                "INSERT INTO {schema}.territories (code, name, currency, legal_framework, suffix) "
                "VALUES (%s, %s, %s, %s, %s)",
                s,
            ),
            (code, name or code, currency, legal_framework, ending if ending != code.lower() else None),
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


def _suffix(code: str, given: str | None) -> str:
    try:
        return suffix_of(code, given)
    except SettingsError as error:
        raise InvalidRequest(str(error)) from None


def _require_new(conn: psycopg.Connection[Any], s: Settings, code: str, suffix: str) -> None:
    """Raise where the code, or a role of this name, is another territory's."""
    known = render(
        "SELECT t.code FROM pg_catalog.jsonb_each_text({schema}.territory_roles()) AS t (code, role) "
        "WHERE t.code = %s OR t.role = pg_catalog.quote_ident(%s) ORDER BY t.code <> %s",
        s,
    )
    found = rows(conn, known, (code, s.role(suffix), code))
    if not found:
        return
    message = f"territory: {code!r} is known already"
    if found[0][0] != code:
        message += f" as {found[0][0]!r}: two that differ in case alone would have one role"
        if found[0][0].lower() != code.lower():
            message = f"territory: {found[0][0]!r} has the role {s.role(suffix)} already; give {code!r} another suffix"
    raise InvalidRequest(f"{message}; leadprotect territory list shows it")


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
        message = f"territory: the leads carry {carried!r}, not {code!r}: leadprotect territory add {quote(carried)}"
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
