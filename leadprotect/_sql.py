"""Runs a statement on whatever connection the caller owns, and maps errors by SQLSTATE."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.rows import tuple_row
from sqlalchemy import exc
from sqlalchemy.engine import Connection

from leadprotect.errors import (
    ConnectionUnusable,
    GateClosed,
    InvalidRequest,
    LeadProtectError,
    LockUnavailable,
    ProtectionUnavailable,
    SettingsError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy.orm import Session

    from leadprotect.settings import Settings

    AnyConnection = Connection | Session | psycopg.Connection[Any]

# class of SQLSTATE -> our class; https://www.postgresql.org/docs/current/errcodes-appendix.html
_CLASSES: dict[str, tuple[type[LeadProtectError], str]] = {
    "3F000": (ProtectionUnavailable, "leadprotect is not installed in this database, or was rolled back"),
    "42883": (ProtectionUnavailable, "leadprotect is not installed in this database, or was rolled back"),
    "42P01": (ProtectionUnavailable, "leadprotect is not installed in this database, or was rolled back"),
    "42501": (ProtectionUnavailable, "the login lacks the role for this call"),
    "25006": (ConnectionUnusable, "this is a read replica, or a read-only transaction; recording needs the primary"),
    "25P02": (ConnectionUnusable, "the transaction has failed before; roll it back first"),
    "40P01": (LockUnavailable, "a deadlock was resolved at our cost; roll back and try again"),
    "55P03": (LockUnavailable, "a lock could not be had in time; roll back and try again"),
    "LP409": (GateClosed, "contract was refused"),
    "LP422": (InvalidRequest, "the request can't be right"),
}


def connect(settings: Settings, *, autocommit: bool = True) -> psycopg.Connection[Any]:
    """A connection of our own to the settings' database.

    Raises `SettingsError` without a URL, `ConnectionUnusable` when the server can't be reached.
    """
    if not settings.database_url:
        message = "database_url is missing: set DATABASE_URL or the key in [leadprotect]"
        raise SettingsError(message)
    try:
        return psycopg.connect(settings.database_url, autocommit=autocommit, application_name="leadprotect")
    except psycopg.OperationalError as error:  # names host, port and user, never the password
        message = f"no connection to the database: {error}"
        raise ConnectionUnusable(message) from None


def rows(conn: AnyConnection, statement: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Execute `statement` (psycopg's ``%s`` style) in the caller's transaction and fetch all rows."""
    with mapped_errors():
        if isinstance(conn, psycopg.Connection):
            return conn.cursor(row_factory=tuple_row).execute(statement, params).fetchall()
        core = conn if isinstance(conn, Connection) else conn.connection()
        if core.dialect.driver not in ("psycopg", "psycopg_async"):
            message = f"the driver is {core.dialect.driver}; leadprotect needs psycopg 3: postgresql+psycopg://"
            raise InvalidRequest(message)
        return [tuple(found) for found in core.exec_driver_sql(statement, tuple(params))]


def row(conn: AnyConnection, statement: str, params: Sequence[Any] = ()) -> tuple[Any, ...]:
    """The same for a statement that returns exactly one row."""
    (found,) = rows(conn, statement, params)
    return found


def driver_connection(conn: AnyConnection) -> psycopg.Connection[Any] | psycopg.AsyncConnection[Any]:
    """The driver's connection below; of an async engine, the async one: ask it for facts only."""
    if isinstance(conn, psycopg.Connection):
        return conn
    core = conn if isinstance(conn, Connection) else conn.connection()
    return core.connection.driver_connection  # type: ignore[return-value]


@contextmanager
def mapped_errors() -> Iterator[None]:
    """Turn the driver's error into ours by its SQLSTATE; an error without one means no answer."""
    try:
        yield
    except exc.DBAPIError as error:
        raise _mapped(error.orig) from error
    except psycopg.Error as error:
        raise _mapped(error) from error
    except (exc.PendingRollbackError, exc.ResourceClosedError) as error:
        message = "the transaction has failed before, or the connection is closed; roll it back first"
        raise ConnectionUnusable(message) from error


def _mapped(error: BaseException | None) -> LeadProtectError:
    state = getattr(error, "sqlstate", None)
    if state in _CLASSES:
        cls, text = _CLASSES[state]
        diag = error.diag if isinstance(error, psycopg.Error) else None
        primary = diag.message_primary if diag else None
        # what to do stands in the hints of our own errors
        hint = diag.message_hint if diag and state.startswith("LP") else None
        return cls(". ".join(filter(None, (f"{text}: {primary}" if primary else text, hint))))
    return ConnectionUnusable(f"the database gave no answer (SQLSTATE {state or 'none'})")
