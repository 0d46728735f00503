"""Does the hub show what each server has? Its numbers and newest hashes beside those of the servers themselves."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.access.context import declaring
from leadprotect.audit.reach import reach
from leadprotect.database.connection import connect
from leadprotect.database.statements import row, rows
from leadprotect.errors import LeadProtectError, PreflightError
from leadprotect.fleet.hub import MARK, WITHOUT_TERRITORY, hub_faults, hub_mark, hub_schema, open_mappings, spokes
from leadprotect.settings import ident, literal, render

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadprotect.fleet.hub import Connection
    from leadprotect.settings import Settings
    from leadprotect.settings.databases import TerritoryDatabase

_TRIES = 5
"""How often a number is asked for that grows while it is asked for."""

SAME, DIFFERS, NOT_JUDGED = "same", "differs", "not judged"

_HERE = {
    "attempts": "SELECT count(*)::text FROM {schema}.lead_access_audit{part} WHERE territory = {code}",
    "owners": "SELECT count(*)::text FROM {schema}.user_lead_assignments{part} WHERE territory = {code}",
    "newest seal": (
        "SELECT number || ' ' || pg_catalog.encode(hash, 'hex') FROM {schema}.lead_access_audit_seals{part} "
        "WHERE territory = {code} ORDER BY number DESC LIMIT 1"
    ),
}
"""What is compared of a territory -> how the hub and the server are asked for it; {code} is a parameter.

A partition of the hub is asked itself: the server counts then, where from the whole table each row would come.
"""


@dataclass(frozen=True)
class HubNumber:
    """A number of a territory, or of what has none, as the hub and the server say it; `detail` where they differ."""

    territory: str | None
    database: str
    what: str
    hub: str | None
    server: str | None
    verdict: str
    detail: str


@dataclass(frozen=True)
class HubVerified:
    """All of them; `verdict` is the worst, `open` are user mappings that let more than an auditor through."""

    numbers: tuple[HubNumber, ...]
    open: tuple[str, ...]
    verdict: str


def verify_hub(conn: Connection, s: Settings) -> HubVerified:
    """Compare what the hub shows this login with what each server says to the login of the settings.

    For auditors, on a connection in autocommit. A server that grows meanwhile is asked again; one that can't be
    reached, and a territory whose role the login does not hold there, is not judged. Raises `PreflightError` where
    there is no hub.
    """
    if not (hub_mark(conn, s) or "").startswith(MARK):
        raise PreflightError(
            [f"there is no hub in this database: leadprotect hub create --in URL makes {hub_schema(s)}"]
        )
    if faults := hub_faults(conn, s, spokes(s)):
        raise PreflightError([f"{', '.join(faults)}: not as leadprotect made it; leadprotect hub create puts it right"])
    loose = [*open_mappings(conn, s)]
    found = tuple(number for one in s.databases for number in _of_database(conn, s, one, loose))
    verdicts = {number.verdict for number in found} | ({DIFFERS} if loose else set())
    worst = next(verdict for verdict in (DIFFERS, NOT_JUDGED, SAME) if verdict in verdicts)
    return HubVerified(found, tuple(loose), worst)


def _of_database(hub: Connection, s: Settings, one: TerritoryDatabase, loose: list[str]) -> Iterator[HubNumber]:
    there = replace(s, database_url=one.url, territories=one.territories, databases=(one,))
    try:
        with connect(there) as server:
            loose += _unbound(hub, server, s, one)
            readable = reach(server).inside
            for code in (*one.territories, None):
                if code is not None and code not in readable:
                    why = f"the login does not hold the role of {code} there"
                    yield from (HubNumber(code, one.name, what, None, None, NOT_JUDGED, why) for what in _HERE)
                    continue
                for what in _HERE if code else ("attempts",):
                    yield _compared(hub, server, s, one, code, what)
    except (LeadProtectError, psycopg.Error) as error:
        why = " ".join(str(error).split())
        yield HubNumber(None, one.name, "server", None, None, NOT_JUDGED, why)


def _unbound(hub: Connection, server: Connection, s: Settings, one: TerritoryDatabase) -> Iterator[str]:
    """Mappings of this login to somebody there whom row security does not bind: no border is left to him."""
    names = [spoke.server for spoke in spokes(s) if spoke.territory in one.territories]
    mine = """
        SELECT u.srvname::text, coalesce(o.option_value, u.usename::text), u.usename::text
        FROM pg_user_mappings AS u LEFT JOIN LATERAL pg_options_to_table(u.umoptions) AS o ON o.option_name = 'user'
        WHERE u.usename = current_user AND u.srvname = ANY (%s) ORDER BY 1
        """
    free = "SELECT 1 FROM pg_roles AS r WHERE r.rolname = %s AND (r.rolsuper OR r.rolbypassrls)"
    for name, login, auditor in hub.execute(mine, (names,)).fetchall():
        if rows(server, free, (login,)):
            yield (
                f"{ident(auditor)} is {ident(login)} behind {ident(name)}, whom row security does not bind; map to a "
                f"login that it binds: ALTER USER MAPPING FOR {ident(auditor)} SERVER {ident(name)} "
                f"OPTIONS (SET user {literal(auditor)});"
            )


def _compared(
    hub: Connection, server: Connection, s: Settings, one: TerritoryDatabase, code: str | None, what: str
) -> HubNumber:
    before: str | None = None
    for _ in range(_TRIES):
        try:
            before = _by_hub(hub, s, one, code, what)
            said = _by_server(server, s, code, what)
            after = _by_hub(hub, s, one, code, what)
        except psycopg.errors.UndefinedObject as error:
            why = f"{error.diag.message_primary}: leadprotect hub create --auditor LOGIN prints the statement"
            return HubNumber(code, one.name, what, None, None, NOT_JUDGED, why)
        except psycopg.Error as error:
            return HubNumber(code, one.name, what, None, None, NOT_JUDGED, " ".join(str(error).split()))
        if before == said == after:
            return HubNumber(code, one.name, what, after, said, SAME, "")
        if before == after:
            return HubNumber(code, one.name, what, after, said, DIFFERS, _why(after))
    return HubNumber(code, one.name, what, before, said, NOT_JUDGED, "it changes while it is asked for: try again")


def _why(shown: str | None) -> str:
    if shown in {None, "0"}:
        return "the hub shows nothing: does the login of the user mapping hold leadprotect's roles there?"
    return "is it the same server and database, and does the login of the user mapping see all of it?"


def _by_hub(hub: Connection, s: Settings, one: TerritoryDatabase, code: str | None, what: str) -> Any:
    if code is None:
        view = ident(hub_schema(s), WITHOUT_TERRITORY)
        found = hub.execute(f"SELECT count(*)::text FROM {view} WHERE database = %s".encode(), (one.name,)).fetchall()
    else:
        (part,) = (f"_{spoke.suffix}" for spoke in spokes(s) if spoke.territory == code)
        query = _HERE[what].replace("{schema}", ident(hub_schema(s))).replace("{part}", part).replace("{code}", "%s")
        found = hub.execute(query.encode(), (code,)).fetchall()
    return found[0][0] if found else None


def _by_server(server: Connection, s: Settings, code: str | None, what: str) -> Any:
    if code is None:
        (number,) = row(
            server, render("SELECT count(*)::text FROM {schema}.lead_access_audit WHERE territory IS NULL", s)
        )
        return number
    with server.transaction(), declaring(server, "", code):
        found = rows(server, render(_HERE[what].replace("{part}", "").replace("{code}", "%s"), s), (code,))
    return found[0][0] if found else None
