"""Runs a statement on whatever connection the caller owns, in his transaction, and reads what it returns."""

from __future__ import annotations

import itertools
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import psycopg
from psycopg.adapt import PyFormat
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.rows import tuple_row

from leadprotect.database.drivers import core_connection, driver_connection, of_psycopg, require_driver
from leadprotect.database.sqlstates import mapped_errors, naming_primary
from leadprotect.database.waiting import aside, wait
from leadprotect.errors import ConnectionUnusable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from psycopg.adapt import Dumper
    from sqlalchemy.engine import Connection

    from leadprotect.database.drivers import AnyConnection

    Send = Callable[[str, Sequence[Any]], Callable[[], list[tuple[Any, ...]]]]

_cursors = itertools.count(1)

# driver's connection -> statements that a failed transaction did not take, and that come before our next one
owed: WeakKeyDictionary[Any, list[tuple[str, tuple[Any, ...]]]] = WeakKeyDictionary()


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
