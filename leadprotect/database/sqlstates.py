"""Turns what the driver raises into an error of ours, by its SQLSTATE, with what helps."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psycopg
from psycopg.conninfo import conninfo_to_dict

from leadprotect.database.blockers import sqlstate
from leadprotect.database.drivers import driver_connection
from leadprotect.errors import (
    AuditUnavailable,
    ConnectionUnusable,
    GateClosed,
    InvalidRequest,
    LeadProtectError,
    LockUnavailable,
    ProtectionUnavailable,
)
from leadprotect.settings import current, url

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from leadprotect.database.drivers import AnyConnection

_ABSENT = "leadprotect is not installed in this database, or was rolled back; what brings it is: alembic upgrade head"
_NO_VALUE = (
    "a value is not of the type that the settings name for it (lead_id_type, user_id_type), or is no time that there is"
)
_NO_TEXT = (
    "the database holds text that is no UTF-8, as one in SQL_ASCII can: an answer can't be read; convert it to UTF8"
)
# class of SQLSTATE -> our class; https://www.postgresql.org/docs/current/errcodes-appendix.html
_CLASSES: dict[str, tuple[type[LeadProtectError], str]] = {
    "3F000": (ProtectionUnavailable, _ABSENT),
    "42703": (
        ProtectionUnavailable,
        "a column that leadprotect reads has another name, or is gone; leadprotect pin status says which",
    ),
    "42883": (ProtectionUnavailable, _ABSENT),
    "42P01": (ProtectionUnavailable, _ABSENT),
    "42501": (ProtectionUnavailable, "the login lacks the role for this call; leadprotect roles shows who holds which"),
    "22003": (InvalidRequest, _NO_VALUE),
    "22007": (InvalidRequest, _NO_VALUE),
    "22008": (InvalidRequest, _NO_VALUE),
    "22P02": (InvalidRequest, _NO_VALUE),
    "25006": (ConnectionUnusable, "this is a read replica, or a read-only transaction; recording needs the primary"),
    "22021": (ConnectionUnusable, _NO_TEXT),
    "22P05": (ConnectionUnusable, "the answer is not in the connection's client_encoding; use UTF8"),
    "25P02": (ConnectionUnusable, "the transaction has failed before; roll it back first"),
    "40001": (LockUnavailable, "another transaction was faster; roll back and try again"),
    "40P01": (LockUnavailable, "a deadlock was resolved at our cost; roll back and try again"),
    "55P03": (LockUnavailable, "a lock could not be had in time; roll back and try again"),
    "LP409": (GateClosed, "contract was refused"),
    "LP422": (InvalidRequest, "the request can't be right"),
}
# what a user can cause otherwise, and what helps
_CAUSED = {
    "26000": "a prepared statement is gone, as behind a pooler of transactions; use a pool in session mode",
    "40002": "a constraint refused it at commit; look at what was changed, and try again",
    "53100": "the server's disk is full; free some of it, and try again",
    "53200": "the server is out of memory; try again with less at once",
    "53300": "the server has no connection left; end one, or raise max_connections",
    "53400": "a limit of the server's configuration is reached; raise it, or try again with less at once",
    "55000": "the object is not in a state for this; try again, or ask leadprotect doctor",
    "55006": "the object is in use by another session; end that, or try again",
    "57014": "the statement was cancelled, by statement_timeout or by somebody; raise that, or try again",
    "57P01": "the server ended the session; connect anew",
    "57P02": "the server has crashed and comes back; connect anew",
    "57P04": "the database was dropped; correct DATABASE_URL",
    "57P03": "the server is starting or shutting down; try again in a moment",
    "25P04": "the transaction was longer than transaction_timeout; raise that, or do less in one",
    "57P05": "the session was idle for longer than idle_session_timeout; connect anew",
    "25P03": "the transaction was idle for longer than idle_in_transaction_session_timeout; connect anew",
}
_LOST = "the connection is closed, or was lost; connect anew"
_REFUSED = "23"
"""Class of what a constraint refuses; its message names the constraint, the values stand in the detail."""
# what keeps a record from being written: a constraint or a guard of the audit, a full disk, a missing partition
_UNRECORDED = ("23", "53", "54", "58", "XX", "42P01", "42703", "P0001")
_NO_PRIVILEGE = "42501"
_WITHOUT_ROW_SECURITY = "check_enable_rls"  # of the server: the code is the same, and its text is translated
_READ_ONLY = "25006"
_NO_SUCH_NAME = ("3F000", "42883", "42P01")
_MISSING_INSIDE = "what a function calls is not there (leadprotect doctor looks for the cause)"


def mapped_errors(*, recording: bool = False) -> AbstractContextManager[None]:
    """Turn the driver's error into ours by its SQLSTATE; an error without one means no answer."""
    return _RECORDING if recording else _ASKING


@dataclass(frozen=True)
class _Mapping:
    """No generator: a block of every statement would spend more on that than on all else."""

    recording: bool

    def __enter__(self) -> None:
        """Nothing is to do before an error comes."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if error is None:
            return
        if isinstance(error, _of_alchemy("DBAPIError")):
            raise _mapped(getattr(error, "orig", None), recording=self.recording) from error
        if isinstance(error, psycopg.Error):
            raise _mapped(error, recording=self.recording) from error
        if isinstance(error, UnicodeEncodeError):
            message = f"{error.object[error.start : error.end]!r} is not in the connection's client_encoding; use UTF8"
            raise InvalidRequest(message) from error
        if isinstance(error, UnicodeDecodeError):
            raise ConnectionUnusable(_NO_TEXT) from error
        if isinstance(error, _of_alchemy("PendingRollbackError", "ResourceClosedError")):
            message = "the transaction has failed before, or the connection is closed; roll it back first"
            raise ConnectionUnusable(message) from error


_ASKING, _RECORDING = _Mapping(recording=False), _Mapping(recording=True)


def of_driver(error: BaseException | None) -> bool:
    """Whether the server or the driver raised it, itself or through SQLAlchemy."""
    return isinstance(error, (psycopg.Error, *_of_alchemy("DBAPIError")))


def _of_alchemy(*names: str) -> tuple[type[Exception], ...]:
    """Errors of SQLAlchemy; none where nobody has loaded it, so that none of them can have been raised."""
    loaded = sys.modules.get("sqlalchemy.exc")
    return tuple(getattr(loaded, name) for name in names) if loaded else ()


def _mapped(error: BaseException | None, *, recording: bool) -> LeadProtectError:
    state = getattr(error, "sqlstate", None)
    diag = error.diag if isinstance(error, psycopg.Error) else None
    primary = diag.message_primary if diag else None
    if recording and state and _keeps_from_recording(state, diag):
        inside = state in _NO_SUCH_NAME and _inside_a_function(diag)
        known = _MISSING_INSIDE if inside else _CAUSED.get(state) or _CLASSES.get(state, (None, None))[1]
        helps = f"deny; {known}" if known else "deny, and try again"
        what = f"SQLSTATE {state}: {primary}"
        return AuditUnavailable(f"the attempt could not be recorded ({what}), so no answer is given: {helps}")
    if state in _CLASSES:
        cls, text = _CLASSES[state]
        if state in _NO_SUCH_NAME and _inside_a_function(diag):
            text = _MISSING_INSIDE
        if state == _NO_PRIVILEGE and diag and diag.source_function == _WITHOUT_ROW_SECURITY:
            text = "row_security is off in this session, and leadprotect answers by it; RESET row_security"
        # what to do stands in the hints of our own errors
        hint = diag.message_hint if diag and state.startswith("LP") else None
        if cls is InvalidRequest and not state.startswith("LP"):
            primary = None  # it repeats the value
        return cls(". ".join(filter(None, (f"{text}: {primary}" if primary else text, hint))))
    return ConnectionUnusable(_without_answer(state, primary))


def naming_primary(conn: AnyConnection, error: ConnectionUnusable) -> ConnectionUnusable:
    """The error of a server that can't record, with the one that database_url names, if that is another."""
    cause = error.__cause__
    if cause is None or sqlstate(cause) != _READ_ONLY:
        return error
    try:
        given = conninfo_to_dict(url(current()))
    except (LeadProtectError, psycopg.Error):
        return error
    info = driver_connection(conn).info
    hosts, ports = (str(given.get(key) or "").split(",") for key in ("host", "port"))
    servers = [(host, (ports[n] if len(ports) > 1 else ports[0]) or "5432") for n, host in enumerate(hosts) if host]
    if not servers or (info.host, str(info.port)) in servers:
        return error
    return ConnectionUnusable(f"{error}; database_url names {', '.join(f'{host}:{port}' for host, port in servers)}")


def _without_answer(state: str | None, primary: str | None) -> str:
    """One sentence with what helps; the server's own words only where they hold no value of a row."""
    if state is None:
        return f"the database gave no answer: {_LOST}"
    told = primary if state.startswith(_REFUSED) else _CAUSED.get(state)
    return f"the database gave no answer{f': {told}' if told else ''} (SQLSTATE {state})"


def _keeps_from_recording(state: str, diag: psycopg.errors.Diagnostic | None) -> bool:
    if state == _NO_PRIVILEGE:
        return _inside_a_function(diag)  # the caller was allowed to call it
    return state.startswith(_UNRECORDED)


def _inside_a_function(diag: psycopg.errors.Diagnostic | None) -> bool:
    """Only what was raised inside a function has a context."""
    return diag is not None and diag.context is not None
