"""Lets one source serve both kinds of service: synchronous code that waits for an asynchronous connection."""

from __future__ import annotations

import asyncio
import sys
from contextvars import ContextVar
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import psycopg

from leadprotect.database.bound import its_settings
from leadprotect.database.drivers import adapted, is_router, refuse
from leadprotect.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from contextlib import AbstractContextManager
    from types import TracebackType

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

    from leadprotect.database.drivers import AnyConnection

    Waiter = Callable[[Callable[[], Awaitable[Any]]], Any]
    AnyAsync = AsyncConnection | AsyncSession | psycopg.AsyncConnection[Any]

T = TypeVar("T")
F = TypeVar("F", bound="Callable[..., Any]")

_loop: ContextVar[asyncio.AbstractEventLoop | None] = ContextVar("leadprotect_loop", default=None)


def wait(conn: object, awaited: Callable[[], Awaitable[T]]) -> T:
    """What `awaited` answers, from inside a function that `call` has called; the event loop goes on meanwhile.

    Raises `InvalidRequest` outside, which says that `conn` is for await.
    """
    greenlet = sys.modules.get("greenlet")
    inside: Any = greenlet and greenlet.getcurrent()
    if not getattr(inside, "leadprotect", False):
        refuse(conn)
    answer: T = inside.parent.switch(awaited())
    return answer


def awaited_as(function: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[[F], F]:
    """Let `call` await `function` where it would call the decorated one: a greenlet costs a third of a check."""

    def decorate(synchronous: F) -> F:
        synchronous.awaited = function  # type: ignore[attr-defined]
        return synchronous

    return decorate


async def aside(conn: Any, function: Callable[..., T], *given: Any) -> T:
    """Call a synchronous function of a connection of either kind from inside a coroutine."""
    return await call(conn, function, *given) if isinstance(conn, psycopg.AsyncConnection) else function(conn, *given)


async def call(conn: AnyAsync | Callable[[str], Any], function: Callable[..., T], *given: Any, **more: Any) -> T:
    """Call `function` with the synchronous side of `conn`, then what is `given`, without blocking the event loop.

    Raises `InvalidRequest` for a connection of another kind, and for one of psycopg without the extra ``aio``.
    """
    if isinstance(conn, psycopg.AsyncConnection):
        awaited: Callable[..., Awaitable[T]] | None = getattr(function, "awaited", None)
        if awaited:
            with its_settings(conn):
                return await awaited(conn, *given, **more)
        done: T = await _spawner()(partial(function, conn, *given, **more))
        return done
    if is_router(conn):
        return await _in_thread(partial(function, conn, *given, **more))
    run_sync = getattr(conn, "run_sync", None)
    if run_sync is None:
        refuse(conn, awaited=True)
    answer: T = await run_sync(function, *given, **more)
    return answer


async def _in_thread(work: Callable[[], T]) -> T:
    """What asks several databases goes on in threads of its own, and comes back to this loop for each connection."""
    token = _loop.set(asyncio.get_running_loop())
    try:
        return await asyncio.to_thread(work)
    finally:
        _loop.reset(token)


def loop_of_caller() -> asyncio.AbstractEventLoop:
    """The loop that awaits for what this thread does; raises `InvalidRequest` where none does."""
    loop = _loop.get()
    if loop is None:
        raise InvalidRequest(
            "conn: it gives engines for await; await leadprotect.aio.can_edit_many, or give leadprotect.route"
        )
    return loop


@lru_cache(maxsize=1)
def _spawner() -> Callable[[Callable[[], Any]], Awaitable[Any]]:
    try:
        from leadprotect.database.greenlets import spawn  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        raise InvalidRequest("leadprotect.aio needs the extra aio: pip install 'leadprotect[aio]'") from None
    return spawn


class Held(Generic[T]):
    """A context manager of the synchronous side, for ``async with``."""

    def __init__(
        self, conn: AnyAsync, made: Callable[..., AbstractContextManager[T]], *given: Any, **more: Any
    ) -> None:
        self._conn = conn
        self._made = made
        self._given = (given, more)
        self._managers: list[AbstractContextManager[T]] = []

    async def __aenter__(self) -> T:
        """What the manager gives."""
        return await call(self._conn, self._enter)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        """Tell the manager how the block ended."""
        manager = self._managers.pop()
        return await call(self._conn, lambda _: manager.__exit__(kind, error, traceback))

    def _enter(self, conn: Any) -> T:
        given, more = self._given
        manager = self._made(conn, *given, **more)
        entered = manager.__enter__()
        self._managers.append(manager)
        return entered


def waiter(conn: AnyConnection) -> Waiter | None:
    """What awaits for an asynchronous connection without blocking the event loop; None of a synchronous one."""
    given: object = conn  # where `waiting.call` has called us, and no caller may think of
    if isinstance(given, psycopg.AsyncConnection):
        return partial(wait, given)
    below = adapted(conn)
    return (lambda awaited: below.run_async(lambda _: awaited())) if below else None
