"""Which connections are served, and what to use instead of another: psycopg 3, alone or below SQLAlchemy."""

from __future__ import annotations

from functools import partial
from inspect import isroutine
from typing import TYPE_CHECKING, Any, NoReturn

from leadprotect.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import TypeIs

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
