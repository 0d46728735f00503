"""An asynchronous connection that a synchronous test drives, so that the same tests hold for `leadprotect.aio`."""

from __future__ import annotations

import asyncio
import inspect
import threading
from contextlib import contextmanager
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg

import leadprotect
from leadprotect import aio
from leadprotect.database.waiting import call
from tests.support import database

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from types import TracebackType
    from typing import Self

    import pytest

_here = threading.local()


class Driven:
    """Whatever is awaited of `inner` is awaited here, in a loop of its own, as one task of this thread."""

    loop: asyncio.AbstractEventLoop
    inner: Any

    def __init__(self, loop: asyncio.AbstractEventLoop, inner: Any) -> None:
        vars(self).update(loop=loop, inner=inner)

    def __setattr__(self, name: str, value: Any) -> None:
        self.drive(getattr(self.inner, f"set_{name}")(value))

    def drive(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        if not hasattr(_here, "context"):
            _here.context = copy_context()
        return self.loop.run_until_complete(self.loop.create_task(coroutine, context=_here.context))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        return partial(self._called, found) if callable(found) and name != "info" else found

    def _called(self, function: Callable[..., Any], *given: Any, **more: Any) -> Any:
        answer = function(*given, **more)
        if hasattr(answer, "__aenter__") and not isinstance(answer, psycopg.AsyncCursor):
            return self._entered(answer)
        if inspect.isawaitable(answer):
            answer = self.drive(answer)  # type: ignore[arg-type]
        return Driven(self.loop, answer) if isinstance(answer, psycopg.AsyncCursor) else answer

    @contextmanager
    def _entered(self, manager: Any) -> Iterator[Any]:
        yield from self._inside(manager)

    def _inside(self, manager: Any) -> Iterator[Any]:
        value = self.drive(manager.__aenter__())
        try:
            yield value
        except BaseException as error:
            if not self.drive(manager.__aexit__(type(error), error, error.__traceback__)):
                raise
        else:
            self.drive(manager.__aexit__(None, None, None))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.drive(self.inner.__aexit__(kind, error, traceback))
        self.loop.close()


def connect(self: database.Database, login: str | None = None, *, autocommit: bool = False) -> Any:
    """`Database.connect`, asynchronously."""
    url = self.login_url(login) if login else self.url
    loop = asyncio.new_event_loop()
    made = loop.run_until_complete(psycopg.AsyncConnection.connect(url, autocommit=autocommit))
    return Driven(loop, made)


def of_aio(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of `leadprotect`, or its twin where the connection is one of ours."""
    twin = getattr(aio, name)

    def called(conn: Any, *given: Any, **more: Any) -> Any:
        if not isinstance(conn, Driven):
            return function(conn, *given, **more)
        if hasattr(answer := twin(conn.inner, *given, **more), "__aenter__"):
            return conn._entered(answer)  # noqa: SLF001 - ours
        return conn.drive(answer)

    return called


def waited(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a function inside the package, which has no twin."""

    def called(conn: Any, *given: Any, **more: Any) -> Any:
        if not isinstance(conn, Driven):
            return function(conn, *given, **more)
        return conn.drive(call(conn.inner, function, *given, **more))

    return called


def drive(monkeypatch: pytest.MonkeyPatch, *modules: Any) -> None:
    """Let `modules` of tests connect asynchronously, as logins, and call the twins."""
    synchronous = database.Database.connect

    def connected(self: database.Database, login: str | None = None, *, autocommit: bool = False) -> Any:
        return (connect if login else synchronous)(self, login, autocommit=autocommit)

    monkeypatch.setattr(database.Database, "connect", connected)
    monkeypatch.setattr(database, "acting_as", of_aio("acting_as", leadprotect.acting_as))
    for name in aio.__all__:
        monkeypatch.setattr(leadprotect, name, of_aio(name, getattr(leadprotect, name)))
    for module in modules:
        if hasattr(module, "declared"):
            monkeypatch.setattr(module, "declared", waited(module.declared))
