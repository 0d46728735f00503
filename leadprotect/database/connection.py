"""Runs a statement on whatever connection the caller owns, and maps errors by SQLSTATE."""

from __future__ import annotations

import itertools
import shlex
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg.adapt import PyFormat
from psycopg.conninfo import conninfo_to_dict
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.rows import tuple_row

from leadprotect.database.blockers import sqlstate
from leadprotect.database.drivers import refuse, require_driver
from leadprotect.database.opening import LOCK_TIMEOUT_MS, open_connection
from leadprotect.database.waiting import aside, wait
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
from leadprotect.settings.databases import SECTION as DATABASES

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from psycopg.adapt import Dumper
    from sqlalchemy import Engine
    from sqlalchemy.engine import AdaptedConnection, Connection
    from sqlalchemy.orm import Session
    from typing_extensions import TypeIs

    from leadprotect.settings import Settings

    AnyConnection = Connection | Session | psycopg.Connection[Any]
    Waiter = Callable[[Callable[[], Awaitable[Any]]], Any]
    Send = Callable[[str, Sequence[Any]], Callable[[], list[tuple[Any, ...]]]]

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
_READ_ONLY = "25006"
_NO_SUCH_NAME = ("3F000", "42883", "42P01")
_MISSING_INSIDE = "what a function calls is not there (leadprotect doctor looks for the cause)"

_cursors = itertools.count(1)

# driver's connection -> statements that a failed transaction did not take, and that come before our next one
owed: WeakKeyDictionary[Any, list[tuple[str, tuple[Any, ...]]]] = WeakKeyDictionary()


def connect(settings: Settings, *, lock_timeout: int = LOCK_TIMEOUT_MS) -> psycopg.Connection[Any]:
    """A connection of our own to the settings' database, in autocommit; `lock_timeout` in milliseconds.

    Raises `SettingsError` without a URL, `ConnectionUnusable` when the server can't be reached, `PreflightError`
    through a pooler of transactions.
    """
    try:
        return open_connection(lambda: url(settings), application="leadprotect", lock_timeout=lock_timeout)
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


def rows(
    conn: AnyConnection, statement: str, params: Sequence[Any] = (), *, recording: bool = False
) -> list[tuple[Any, ...]]:
    """Execute `statement` (psycopg's ``%s`` style) in the caller's transaction and fetch all rows.

    `recording`: it writes to the audit, so that what keeps it from that is `AuditUnavailable`.
    """
    try:
        with mapped_errors(recording=recording):
            if owed:
                _settle(conn)
            return _execute(conn, statement, params)
    except ConnectionUnusable as error:
        raise naming_primary(conn, error) from error.__cause__


def row(conn: AnyConnection, statement: str, params: Sequence[Any] = (), *, recording: bool = False) -> tuple[Any, ...]:
    """The same for a statement that returns exactly one row."""
    (found,) = rows(conn, statement, params, recording=recording)
    return found


@contextmanager
def sending(conn: Connection) -> Iterator[Send]:
    """What sends statements on SQLAlchemy's synchronous connection of psycopg, and gives what reads the rows of each.

    None is waited for before it is read, so other servers can be asked meanwhile. SQLAlchemy tells its listeners of
    none. Source: https://www.psycopg.org/psycopg3/docs/advanced/pipeline.html.
    """
    driver: psycopg.Connection[Any] = conn.connection.driver_connection  # type: ignore[assignment]

    def send(statement: str, params: Sequence[Any]) -> Callable[[], list[tuple[Any, ...]]]:
        cursor = driver.cursor(row_factory=tuple_row).execute(statement, params)
        return lambda: _texts(driver, cursor.fetchall())

    with driver.pipeline():
        yield send


def is_lost(conn: Connection) -> bool:
    """Whether the session of SQLAlchemy's connection is over."""
    return bool(driver_connection(conn).closed)


async def awaited_rows(conn: AnyConnection, statement: str, params: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """The same as `rows` inside a coroutine: of an asynchronous connection of psycopg awaited, of others at once."""
    given: object = conn
    if not isinstance(given, psycopg.AsyncConnection):
        return rows(conn, statement, params)
    if owed:
        return await aside(given, rows, statement, params)
    try:
        with mapped_errors():
            return _texts(given, await _fetched(given, statement, params))
    except ConnectionUnusable as error:
        raise naming_primary(conn, error) from error.__cause__


def streamed(
    conn: AnyConnection, statement: str, params: Sequence[Any] = (), *, at_once: int = 2000
) -> Iterator[tuple[Any, ...]]:
    """The rows of a query one by one, twice `at_once` in memory, through a cursor of the server.

    In the caller's transaction; other statements may run between two rows.
    """
    driver = driver_connection(conn)
    client = psycopg.ClientCursor if isinstance(driver, psycopg.Connection) else psycopg.AsyncClientCursor
    with mapped_errors():
        # DECLARE takes no parameters; what is merged goes through `rows`, to which a % begins one
        query = client(driver).mogrify(statement, params).replace("%", "%%")  # type: ignore[arg-type]
    cursor = f"leadprotect_{next(_cursors)}"
    rows(conn, f"DECLARE {cursor} NO SCROLL CURSOR FOR {query}")
    fetch = f"FETCH {at_once} FROM {cursor}"
    try:
        if isinstance(conn, psycopg.Connection) and psycopg.Pipeline.is_supported():
            yield from _ahead(conn, fetch)
        else:
            for found in iter(partial(rows, conn, fetch), []):
                yield from found
    finally:
        if not driver.closed and driver.info.transaction_status == TransactionStatus.INTRANS:
            _execute(conn, f"CLOSE {cursor}", ())


def _ahead(conn: psycopg.Connection[Any], fetch: str) -> Iterator[tuple[Any, ...]]:
    """Rows until a batch is empty; the server makes the next one while the caller works on this.

    A thread that fetched would wait for the interpreter whenever the caller has it, and the server for the thread.
    """
    with conn.pipeline(), mapped_errors():
        coming = _asked(conn, fetch)
        while found := coming.fetchall():
            coming = _asked(conn, fetch)
            yield from _texts(conn, found)


def _asked(conn: psycopg.Connection[Any], fetch: str) -> psycopg.Cursor[tuple[Any, ...]]:
    # numbers are written out and read again slower than they are sent as they are
    return conn.cursor(row_factory=tuple_row, binary=True).execute(fetch)


@contextmanager
def own_names(conn: AnyConnection) -> Iterator[None]:
    """Let names, operators and types mean PostgreSQL's own, and times be written in one way, in his transaction.

    Whatever the caller's path holds, and his DateStyle says.
    """
    settings = ("search_path", "datestyle")
    set_all = ", ".join(f"pg_catalog.set_config('{name}', %s, true)" for name in settings)
    read = ", ".join(f"pg_catalog.current_setting('{name}')" for name in settings)
    before = row(conn, f"SELECT {read}, {set_all}", ("pg_catalog", "ISO"))[: len(settings)]
    try:
        yield
    finally:
        driver = driver_connection(conn)
        # a transaction that failed takes its settings with it
        if not driver.closed and driver.info.transaction_status == TransactionStatus.INTRANS:
            row(conn, f"SELECT {set_all}", before)


@contextmanager
def as_role(conn: psycopg.Connection[Any], role: str) -> Iterator[None]:
    """Act as `role` in a transaction or savepoint of `conn`: row security of our tables binds their owner's members."""
    (before,) = conn.execute("SELECT pg_catalog.current_setting('role')").fetchall()[0]
    act = "SELECT pg_catalog.set_config('role', %s, true)"
    with conn.transaction():
        conn.execute(act, (role,))
        yield
        conn.execute(act, (before,))


def of_psycopg(conn: object) -> TypeIs[psycopg.Connection[Any] | psycopg.AsyncConnection[Any]]:
    """Whether it is the driver's own, not SQLAlchemy's; an async one where `waiting.call` has called us."""
    return isinstance(conn, (psycopg.Connection, psycopg.AsyncConnection))


def driver_connection(conn: AnyConnection) -> psycopg.Connection[Any] | psycopg.AsyncConnection[Any]:
    """The driver's connection below; of an async engine, the async one: ask it for facts only."""
    if of_psycopg(conn):
        return conn
    core = core_connection(conn)
    return core.connection.driver_connection  # type: ignore[return-value]


def let_send(conn: AnyConnection, kind: type, dumper: type[Dumper]) -> None:
    """Let the driver's connection send values of a class of our own; nothing else of it changes."""
    if not of_psycopg(conn):
        require_driver(core_connection(conn).dialect.driver)
    with mapped_errors():
        driver = driver_connection(conn)
    try:
        driver.adapters.get_dumper(kind, PyFormat.BINARY)
    except psycopg.ProgrammingError:  # it is asked for the first time
        driver.adapters.register_dumper(kind, dumper)


def waiter(conn: AnyConnection) -> Waiter | None:
    """What awaits for an asynchronous connection without blocking the event loop; None of a synchronous one."""
    given: object = conn  # where `waiting.call` has called us, and no caller may think of
    if isinstance(given, psycopg.AsyncConnection):
        return partial(wait, given)
    adapted = _adapted(conn)
    return (lambda awaited: adapted.run_async(lambda _: awaited())) if adapted else None


def engine_of(conn: AnyConnection) -> Engine | None:
    """SQLAlchemy's engine that made the connection; None of an async one, which can't be asked from a thread."""
    return None if of_psycopg(conn) or _adapted(conn) else core_connection(conn).engine


def _adapted(conn: AnyConnection) -> AdaptedConnection | None:
    """SQLAlchemy's adapter of an async driver's connection."""
    if of_psycopg(conn):
        return None
    from sqlalchemy.engine import AdaptedConnection  # noqa: PLC0415 - only whoever has it passes one of its connections

    adapted: object = core_connection(conn).connection.dbapi_connection
    return adapted if isinstance(adapted, AdaptedConnection) else None


def _settle(conn: AnyConnection) -> None:
    driver = driver_connection(conn)
    status = driver.info.transaction_status
    if status == TransactionStatus.INERROR:
        return
    if status != TransactionStatus.IDLE:  # what was owed to a transaction ended with it
        for statement, params in owed.get(driver, ()):
            _execute(conn, statement, params)
    owed.pop(driver, None)


def _execute(conn: AnyConnection, statement: str, params: Sequence[Any]) -> list[tuple[Any, ...]]:
    if isinstance(conn, psycopg.Connection):
        cursor = conn.cursor(row_factory=tuple_row).execute(statement, params)
        if cursor.pgresult is None:  # queued only
            with conn.pipeline() as pipeline:
                pipeline.sync()
        return _texts(conn, cursor.fetchall() if _returns_rows(cursor) else [])
    given: object = conn
    if isinstance(given, psycopg.AsyncConnection):
        return _texts(given, wait(given, partial(_fetched, given, statement, params)))
    core = core_connection(conn)
    require_driver(core.dialect.driver)
    done = core.exec_driver_sql(statement, tuple(params))
    found = [tuple(row) for row in done] if done.returns_rows else []
    return _texts(driver_connection(conn), found)


async def _fetched(conn: psycopg.AsyncConnection[Any], statement: str, params: Sequence[Any]) -> list[tuple[Any, ...]]:
    cursor = await conn.cursor(row_factory=tuple_row).execute(statement, params)
    return await cursor.fetchall() if _returns_rows(cursor) else []


def _returns_rows(cursor: psycopg.Cursor[Any] | psycopg.AsyncCursor[Any]) -> bool:
    """Whether there are rows to fetch; its description would be made anew for every column."""
    return cursor.pgresult is not None and cursor.pgresult.status == ExecStatus.TUPLES_OK


def _texts(
    driver: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], found: list[tuple[Any, ...]]
) -> list[tuple[Any, ...]]:
    """To a client of SQL_ASCII the driver gives bytes for text, and b'owner' is not 'owner'; we ask for no bytea."""
    if driver.info.encoding != "ascii":
        return found
    return [tuple(map(_decoded, row)) for row in found]


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(one) for one in value]
    return value.decode() if isinstance(value, bytes) else value


def core_connection(conn: Connection | Session) -> Connection:
    """SQLAlchemy's connection of a session, or what is one; raises `InvalidRequest` for anything else."""
    from sqlalchemy.engine import Connection  # noqa: PLC0415 - half a second that a command line need not spend

    if isinstance(conn, Connection):
        return conn
    # an Engine has no connection(), and an AsyncSession's is for await
    given = getattr(type(conn), "connection", None)
    if not callable(given) or iscoroutinefunction(given):
        refuse(conn)
    return conn.connection()


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
        what = f"SQLSTATE {state}: {primary}"
        message = f"the attempt could not be recorded ({what}), so no answer is given: deny, and try again"
        return AuditUnavailable(message)
    if state in _CLASSES:
        cls, text = _CLASSES[state]
        if state in _NO_SUCH_NAME and _inside_a_function(diag):
            text = _MISSING_INSIDE
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
