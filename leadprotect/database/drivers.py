"""Which connections are served, and what lies below them: psycopg 3, alone or below SQLAlchemy."""

from __future__ import annotations

from functools import partial
from inspect import iscoroutinefunction, isroutine
from typing import TYPE_CHECKING, Any, NoReturn

import psycopg

from leadprotect.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine
    from sqlalchemy.engine import AdaptedConnection, Connection
    from sqlalchemy.orm import Session
    from typing_extensions import TypeIs

    AnyConnection = Connection | Session | psycopg.Connection[Any]

_SYNC = 'psycopg.connect(...), or create_engine("postgresql+psycopg://...")'
_ASYNC = 'psycopg.AsyncConnection.connect(...), or create_async_engine("postgresql+psycopg://...")'
_INSTEAD = {"asyncpg": _ASYNC, "aiopg": _ASYNC, "psycopg2": _SYNC, "psycopg2cffi": _SYNC, "pg8000": _SYNC}
_SERVED = ("psycopg", "psycopg_async")


def require_driver(driver: str) -> None:
    """Raise `InvalidRequest` unless it is psycopg 3, as SQLAlchemy calls it."""
    if driver not in _SERVED:
        raise InvalidRequest(f"the driver is {driver}; leadprotect needs psycopg 3: {_INSTEAD.get(driver, _SYNC)}")


def is_router(given: object) -> TypeIs[Callable[[str], Any]]:
    """Whether it is a function, which may tell an engine for a territory; a session that can be called is none."""
    return isroutine(given) or isinstance(given, partial)


def refuse(conn: object, *, awaited: bool = False) -> NoReturn:
    """Raise `InvalidRequest`, which names what was passed for a connection, and what to use; `awaited` by await."""
    kind = type(conn)
    package = kind.__module__.partition(".")[0]
    if package in _INSTEAD:
        raise InvalidRequest(f"conn: a connection of {package}; leadprotect needs psycopg 3: {_INSTEAD[package]}")
    if awaited:
        raise InvalidRequest(
            f"conn: {kind.__name__} is not a psycopg.AsyncConnection, and of SQLAlchemy no AsyncSession or "
            "AsyncConnection; leadprotect itself serves the synchronous ones"
        )
    raise InvalidRequest(
        f"conn: {kind.__name__} is not a sqlalchemy.Connection, a sqlalchemy.orm.Session or a psycopg.Connection; "
        "for their asynchronous kin: from leadprotect import aio"
    )


def of_psycopg(conn: object) -> TypeIs[psycopg.Connection[Any] | psycopg.AsyncConnection[Any]]:
    """Whether it is the driver's own, not SQLAlchemy's; an async one where `waiting.call` has called us."""
    return isinstance(conn, (psycopg.Connection, psycopg.AsyncConnection))


def driver_connection(conn: AnyConnection) -> psycopg.Connection[Any] | psycopg.AsyncConnection[Any]:
    """The driver's connection below; of an async engine, the async one: ask it for facts only."""
    if of_psycopg(conn):
        return conn
    core = core_connection(conn)
    return core.connection.driver_connection  # type: ignore[return-value]


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


def engine_of(conn: AnyConnection) -> Engine | None:
    """SQLAlchemy's engine that made the connection; None of an async one, which can't be asked from a thread."""
    return None if of_psycopg(conn) or adapted(conn) else core_connection(conn).engine


def adapted(conn: AnyConnection) -> AdaptedConnection | None:
    """SQLAlchemy's adapter of an async driver's connection."""
    if of_psycopg(conn):
        return None
    from sqlalchemy.engine import AdaptedConnection  # noqa: PLC0415 - only whoever has it passes one of its connections

    connection: object = core_connection(conn).connection.dbapi_connection
    return connection if isinstance(connection, AdaptedConnection) else None
