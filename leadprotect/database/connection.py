"""Connects to the database of the settings, and says what helps where no server answers."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.conninfo import conninfo_to_dict

from leadprotect.database.opening import LOCK_TIMEOUT_MS, open_connection
from leadprotect.errors import ConnectionUnusable, LeadProtectError
from leadprotect.settings import current, url
from leadprotect.settings.databases import SECTION as DATABASES

if TYPE_CHECKING:
    from leadprotect.settings import Settings


def connect(
    settings: Settings, *, application: str = "leadprotect", lock_timeout: int = LOCK_TIMEOUT_MS
) -> psycopg.Connection[Any]:
    """A connection of our own to the settings' database, in autocommit; `lock_timeout` in milliseconds.

    `application` is its name in pg_stat_activity.

    Raises `SettingsError` without a URL, `ConnectionUnusable` when the server can't be reached, `PreflightError`
    through a pooler of transactions.
    """
    try:
        return open_connection(lambda: url(settings), application=application, lock_timeout=lock_timeout)
    except psycopg.OperationalError as error:  # names host, port and user, never the password
        raise no_connection(error) from None


def no_connection(error: psycopg.OperationalError) -> ConnectionUnusable:
    """The error of a server that could not be reached, with what to do about it."""
    return ConnectionUnusable(f"no connection to the database: {' '.join(str(error).split())}\n{_unreached(error)}")


def _unreached(error: psycopg.OperationalError) -> str:
    """What to do about it; libpq tells no SQLSTATE of a connection that was never made, and the text is not parsed."""
    failed = error.pgconn
    if failed is None:
        return "correct database_url: it names no server that could be asked"
    given = (
        (flag, value.decode())
        for flag, value in zip("hpUd", (failed.host, failed.port, failed.user, failed.db), strict=True)
        if value
    )
    same = " ".join(f"-{flag} {shlex.quote(value)}" for flag, value in given)
    key = _named(failed)
    cause = f"start the server, or correct host, port, name and login in {key}"
    if failed.needs_password:
        cause = "it asks for a password: set PGPASSWORD, or write it into ~/.pgpass"
    elif failed.used_password:
        cause = f"correct the password in ~/.pgpass, PGPASSWORD or {key}"
    return f"{cause}; what tries the same: psql {same}"


def _named(failed: psycopg.pq.abc.PGconn) -> str:
    """Where the server is named: in the section of the databases, if it is one of them."""
    try:
        for one in current.whole().databases:
            given: dict[str, Any] = {"host": "", "port": "5432", "dbname": ""}
            given |= conninfo_to_dict(one.url) if one.address else {}  # none where a function tells the URL
            if [failed.host, failed.port, failed.db] == [
                str(given[key]).encode() for key in ("host", "port", "dbname")
            ]:
                return f"[{DATABASES}] {one.territories[0]}"
    except LeadProtectError:  # settings that can't be read, of which somebody else tells
        pass
    return "DATABASE_URL"
