"""What a service's own process spends on a check: requests at once, in threads or in tasks of an event loop.

One connection asked again and again says little of that: a loop that wakes for one answer at a time is at its dearest.
"""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from psycopg_pool import AsyncConnectionPool, ConnectionPool

import leadprotect
from leadprotect import aio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    Serve = Callable[[str], None]

AT_ONCE = (1, 5)
"""So many connections, and as many requests that have one."""
THREADS = "threads"
WHATS = ("SELECT 1", "can_edit")
CALLS = 100
_SESSION = {"autocommit": True, "prepare_threshold": 0}


def loops() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Event loops by name: asyncio's own, and uvloop's, which uvicorn takes where it is installed."""
    found = {"asyncio": asyncio.new_event_loop}
    if find_spec("uvloop"):
        found["uvloop"] = import_module("uvloop").new_event_loop
    return found


def measure_service(url: str, leads: list[str], user: str, *, blocks: int) -> dict[tuple[str, str, int], list[float]]:
    """Microseconds of CPU of this process a call in each block: what is asked, how it is served, how many at once.

    Blocks alternate in an order of their own; an answer that is not yes is an error.
    """
    found: dict[tuple[str, str, int], list[float]] = {}
    with ExitStack() as stack:
        ways: dict[tuple[str, int], Serve] = {}
        for at_once in AT_ONCE:
            ways[THREADS, at_once] = stack.enter_context(_in_threads(url, at_once, leads, user))
            for name, new_loop in loops().items():
                ways[name, at_once] = stack.enter_context(_in_tasks(url, at_once, leads, user, new_loop))
        cases = [(what, how, at_once) for what in WHATS for how, at_once in ways]
        for what, how, at_once in cases:
            ways[how, at_once](what)
        order = random.Random(0)  # noqa: S311 - no secret: the same order in the next run
        for _ in range(blocks):
            for what, how, at_once in order.sample(cases, len(cases)):
                begin = time.process_time()
                ways[how, at_once](what)
                found.setdefault((what, how, at_once), []).append((time.process_time() - begin) * 1e6 / CALLS)
    return found


@contextmanager
def _in_threads(url: str, at_once: int, leads: list[str], user: str) -> Iterator[Serve]:
    asked: dict[str, Callable[[Any, int], Any]] = {
        "SELECT 1": lambda conn, _: conn.execute("SELECT 1").fetchone()[0],
        "can_edit": lambda conn, n: leadprotect.can_edit(conn, leads[n % len(leads)], user_id=user, territory="DE"),
    }
    with (
        ConnectionPool(url, min_size=at_once, max_size=at_once, kwargs=_SESSION, open=True) as pool,
        ThreadPoolExecutor(at_once) as threads,
    ):

        def request(what: str, number: int) -> None:
            with pool.connection() as conn:
                _require(asked[what](conn, number))

        def serve(what: str) -> None:
            for _ in threads.map(lambda number: request(what, number), range(CALLS)):
                pass

        pool.wait()
        yield serve


@contextmanager
def _in_tasks(
    url: str, at_once: int, leads: list[str], user: str, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> Iterator[Serve]:
    async def select(conn: Any, _: int) -> Any:
        return (await (await conn.execute("SELECT 1")).fetchone())[0]

    async def can_edit(conn: Any, number: int) -> bool:
        return await aio.can_edit(conn, leads[number % len(leads)], user_id=user, territory="DE")

    asked: dict[str, Callable[[Any, int], Awaitable[Any]]] = {"SELECT 1": select, "can_edit": can_edit}

    async def opened() -> AsyncConnectionPool[Any]:
        pool: AsyncConnectionPool[Any] = AsyncConnectionPool(
            url, min_size=at_once, max_size=at_once, kwargs=_SESSION, open=False
        )
        await pool.open(wait=True)
        return pool

    async def requests(what: str, numbers: Iterator[int]) -> None:
        for number in numbers:
            async with pool.connection() as conn:
                _require(await asked[what](conn, number))

    async def all_of(what: str) -> None:
        numbers = iter(range(CALLS))
        await asyncio.gather(*(requests(what, numbers) for _ in range(at_once)))

    loop = new_loop()
    try:
        pool = loop.run_until_complete(opened())
        try:
            yield lambda what: loop.run_until_complete(all_of(what))
        finally:
            loop.run_until_complete(pool.close())
    finally:
        loop.close()


def _require(answer: object) -> None:
    if not answer:
        raise AssertionError(answer)
