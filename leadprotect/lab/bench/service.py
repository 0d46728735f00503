"""What a service sees: CPU of client and backend together, and what its own process spends on requests at once.

In threads or in tasks of an event loop: one connection asked again and again says little of that, for a loop that wakes
for one answer at a time is at its dearest.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import create_engine
from sqlalchemy.pool import StaticPool

import leadprotect
from leadprotect import aio
from leadprotect.lab.bench.clock import Case, measured, ratio
from leadprotect.lab.bench.comparison import DATABASE, LOGIN, USER, Line

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from leadprotect.lab.bench.clock import Cost
    from leadprotect.lab.bench.comparison import Bench

    Serve = Callable[[str], None]

AT_ONCE = (1, 5)
"""So many connections, and as many requests that have one."""
THREADS = "threads"
WHATS = ("SELECT 1", "can_edit")
CALLS = 100
# the three statements of a block with a check, and not a line around them: user and territory set, asked, set back
_ENTER = (
    "SELECT before.*, set_config('app.user_id', %s, true), set_config('app.territory', %s, true) "
    "FROM (SELECT current_setting('app.user_id', true), current_setting('app.territory', true) OFFSET 0) AS before"
)
_ASK = "SELECT leadprotect.can_edit_lead(%s::uuid)"
_LEAVE = "SELECT set_config('app.user_id', %s, true), set_config('app.territory', %s, true)"
_BY_HAND = "its three statements by hand"
_SESSION = {"autocommit": True, "prepare_threshold": 0}


def loops() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Event loops by name: asyncio's own, and uvloop's, which uvicorn takes where it is installed."""
    found = {"asyncio": asyncio.new_event_loop}
    if find_spec("uvloop"):
        found["uvloop"] = import_module("uvloop").new_event_loop
    return found


def services(bench: Bench) -> list[Line]:
    """What a service sees, with the context as it declares it: CPU of client and backend, beside `SELECT 1` there."""
    with bench.connections() as bound:
        conn = bound()
        found = _services(bench, "psycopg", conn, conn, conn.execute, {"prepare": True})
        engine = create_engine("postgresql+psycopg://", creator=bound, poolclass=StaticPool)
        with engine.connect() as core:
            driver: Any = core.connection.driver_connection
            driver.autocommit = False
            found += _services(bench, "SQLAlchemy", core, driver, core.exec_driver_sql, {})
    return found + in_one_trip(bench) + served(bench)


def in_one_trip(bench: Bench) -> list[Line]:
    """An edit with its context and assertion, in one round trip and in five, against its UPDATE alone; committed."""
    own, update = bench.own, "UPDATE public.leads SET company = company WHERE id = %s::uuid"

    def alone(conn: psycopg.Connection[Any], lead: str) -> None:
        with conn.pipeline(), conn.transaction():
            conn.execute("SELECT set_config('app.user_id', %s, true), set_config('app.territory', 'DE', true)", (USER,))
            conn.execute(update, (lead,))

    def editing(conn: psycopg.Connection[Any], lead: str) -> None:
        with leadprotect.editing(conn, lead, USER, "DE"):
            conn.execute(update, (lead,))

    def step_by_step(conn: psycopg.Connection[Any], lead: str) -> None:
        with conn.transaction(), leadprotect.acting_as(conn, USER, "DE"):
            leadprotect.assert_edit(conn, lead)
            conn.execute(update, (lead,))

    def case(edit: Callable[[psycopg.Connection[Any], str], None]) -> Case:
        conn = bound()
        return Case(conn, lambda n: edit(conn, own[n * 7919 % len(own)]), 20)

    with bench.connections() as bound:
        found = measured({one.__name__: case(one) for one in (alone, editing, step_by_step)}, rounds=bench.blocks)
    base = "its UPDATE with a context, pipelined"
    return [
        _client_line(bench, "editing: context, assert, UPDATE, commit", base, found["editing"], found["alone"], 1.5),
        _client_line(
            bench, "the same with acting_as and assert_edit", base, found["step_by_step"], found["alone"], None
        ),
    ]


def served(bench: Bench) -> list[Line]:
    """CPU of a service's process a request, awaited on a loop, against as many threads; `SELECT 1` is the floor."""
    cost = measure_service(bench.server.url(DATABASE, LOGIN), bench.own, USER, blocks=bench.blocks)
    return [
        bench.line(
            f"{what} awaited on {how}, {at_once} at once", f"{what} in as many threads",
            cost[what, how, at_once], cost[what, THREADS, at_once], 1.1 if what == "can_edit" else None,
        )
        for what, how, at_once in sorted(cost)
        if how != THREADS
    ]  # fmt: skip


def _services(
    bench: Bench, through: str, conn: Any, driver: psycopg.Connection[Any], execute: Any, how: dict[str, Any]
) -> list[Line]:
    own = bench.own

    def acting(number: int) -> None:
        with leadprotect.acting_as(conn, USER, "DE"):
            leadprotect.can_edit(conn, own[number * 7919 % len(own)])

    def by_hand(number: int) -> None:
        before = execute(_ENTER, (USER, "DE"), **how).fetchone()
        execute(_ASK, (own[number * 7919 % len(own)],), **how).fetchone()
        execute(_LEAVE, tuple(before[:2]), **how).fetchone()

    calls: dict[str, Callable[[int], object]] = {
        "select": lambda _: execute("SELECT 1", **how).fetchall(),
        "can_edit": lambda n: leadprotect.can_edit(conn, own[n * 7919 % len(own)], user_id=USER, territory="DE"),
        "acting": acting,
        "by_hand": by_hand,
        "many": lambda n: leadprotect.can_edit_many(conn, own[n % 7 : n % 7 + 1000]),
        "list": lambda n: leadprotect.editable_leads(conn, after=own[n % len(own)], limit=50),
    }
    few = {"many": 5, "list": 20}
    cases = {name: Case(driver, call, few.get(name, 50)) for name, call in calls.items()}
    listing = {name: cases.pop(name) for name in few}
    with _transaction(conn):
        found = measured(cases, rounds=bench.blocks)
        with leadprotect.acting_as(conn, USER, "DE"):
            found_inside = measured(listing | {"select": cases["select"]}, rounds=bench.blocks)
    selects = {name: (found_inside if name in few else found)["select"] for name in calls}
    found |= {name: found_inside[name] for name in few}
    lines = [
        _client_line(bench, what, f"SELECT 1, {through}", found[name], selects[name], figure)
        for name, what, figure in (
            ("select", "SELECT 1", None),
            ("can_edit", "can_edit, user and territory named", None),
            ("acting", "acting_as and can_edit", 8.0 if through == "psycopg" else None),
            ("by_hand", _BY_HAND, None),
            ("many", "can_edit_many of 1,000 own leads", None),
            ("list", "editable_leads(limit=50)", None),
        )
    ]
    against = f"{_BY_HAND}, {through}"
    lines.insert(4, _client_line(bench, "acting_as and can_edit", against, found["acting"], found["by_hand"], None))
    return lines


@contextmanager
def _transaction(conn: Any) -> Iterator[None]:
    with conn.transaction() if isinstance(conn, psycopg.Connection) else conn.begin():
        yield


def _client_line(
    bench: Bench, what: str, base: str, costs: list[Cost], select: list[Cost], figure: float | None
) -> Line:
    both = [cost.both for cost in costs]
    found, used = ratio(both, [cost.both for cost in select]), statistics.median(both)
    p50 = statistics.median(cost.wall for cost in costs)
    return Line(bench.name, what, base, found.median, figure, used, found.low, found.high, p50)


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
