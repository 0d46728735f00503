"""Blocks of acting_as that end out of order, or on another thread: one clear error, and nobody else's context."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import psycopg
import pytest
from psycopg_pool import ConnectionPool
from sqlalchemy import create_engine, pool, text
from sqlalchemy.orm import Session

import leadprotect
from leadprotect import ContextMissing, ContextOutOfOrder
from leadprotect.access import context
from leadprotect.access.context import declared
from tests.support.database import Database

NOBODY = [None, None, None]


def stands(conn: Any) -> list[str | None]:
    """User, territory and correlation id as the server has them."""
    return [value or None for value in declared(conn)]


def block(conn: Any, database: Database, user: int) -> AbstractContextManager[None]:
    return leadprotect.acting_as(conn, database.user(user), "DE")


def close(*blocks: AbstractContextManager[None]) -> list[bool]:
    """Leave the blocks in this order; which of them raised."""
    raised = []
    for one in blocks:
        try:
            one.__exit__(None, None, None)
        except ContextOutOfOrder:
            raised.append(True)
        else:
            raised.append(False)
    return raised


@contextmanager
def connected(database: Database, kind: str) -> Iterator[Any]:
    if kind == "psycopg":
        with database.connect("seller_de") as conn:
            yield conn
    else:
        with database.engine("seller_de") as engine:
            with engine.connect() if kind == "connection" else Session(engine) as conn:
                yield conn


KINDS = pytest.mark.parametrize("kind", ["psycopg", "connection", "session"])


@KINDS
def test_blocks_that_end_out_of_order_raise_and_leave_nobody(database: Database, kind: str) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with connected(database, kind) as conn:
        first, second = block(conn, database, 1), block(conn, database, 2)
        first.__enter__()
        second.__enter__()
        assert [True] == close(first)
        assert NOBODY == stands(conn)
        with pytest.raises(ContextOutOfOrder, match="none of them has a context any more"):
            leadprotect.can_edit(conn, lead)
        assert [True] == close(second)
        assert NOBODY == stands(conn)
        with pytest.raises(ContextMissing):
            leadprotect.can_edit(conn, lead)
        # the connection is as good as before
        with block(conn, database, 1):
            assert leadprotect.can_edit(conn, lead)
        assert NOBODY == stands(conn)


def test_without_the_order_the_first_user_would_stay(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: each block that restores what it found leaves the first user's context after both."""

    def restore(conn: Any, block: Any) -> None:
        driver = block.driver()
        context._settle(conn, driver, block.outer, [block])  # noqa: SLF001
        if context._standing.get(driver):  # noqa: SLF001
            context._standing[driver].remove(block)  # noqa: SLF001

    monkeypatch.setattr(context, "_ended", restore)
    monkeypatch.setattr(context, "declaration", lambda: context_without_a_name(database))
    with database.connect("seller_de") as conn:
        first, second = block(conn, database, 1), block(conn, database, 2)
        first.__enter__()
        second.__enter__()
        assert [False, False] == close(first, second)
        assert database.user(1) == stands(conn)[0]


def context_without_a_name(database: Database) -> str:
    """Set the context, but let every block believe that it still stands."""
    call = database.text("{schema}.set_context(%s::text, %s::text, %s::text)")
    return (
        f"SELECT {call}, kept FROM (SELECT pg_catalog.set_config('leadprotect.block', "
        "coalesce(nullif(%s::text, ''), pg_catalog.current_setting('leadprotect.block', true)), true)) AS k (kept)"
    )


@KINDS
def test_three_blocks_of_which_the_middle_one_ends_first(database: Database, kind: str) -> None:
    with connected(database, kind) as conn:
        blocks = [block(conn, database, user) for user in (1, 2, 3)]
        for one in blocks:
            one.__enter__()
        assert [True] == close(blocks[1])
        assert NOBODY == stands(conn)
        assert [True, True] == close(blocks[2], blocks[0])
        assert NOBODY == stands(conn)


def test_the_mistake_of_the_body_is_told_as_well(database: Database) -> None:
    with database.connect("seller_de") as conn:
        outer = block(conn, database, 1)
        outer.__enter__()
        inner = block(conn, database, 2)
        inner.__enter__()
        with pytest.raises(ContextOutOfOrder) as caught:
            outer.__exit__(ZeroDivisionError, ZeroDivisionError("mine"), None)
        assert isinstance(caught.value.__context__, ZeroDivisionError)
        assert [True] == close(inner)


def test_in_a_failed_transaction_the_context_is_empty_after_its_savepoint(database: Database) -> None:
    with database.connect("seller_de") as conn:
        first, second = block(conn, database, 1), block(conn, database, 2)
        first.__enter__()
        second.__enter__()
        with pytest.raises(psycopg.errors.DivisionByZero):
            conn.execute("SAVEPOINT inside; SELECT 1/0")
        assert [True, True] == close(first, second)
        conn.execute("ROLLBACK TO SAVEPOINT inside")
        assert NOBODY == stands(conn)


@KINDS
def test_a_savepoint_that_is_rolled_back_after_the_block_it_began_in_brings_nobody_back(
    database: Database, kind: str
) -> None:
    """The server goes back to the block's context, and the block has ended."""
    with connected(database, kind) as conn:
        run = conn.execute if kind == "psycopg" else lambda statement: conn.execute(text(statement))
        first, second = block(conn, database, 1), block(conn, database, 2)
        first.__enter__()
        run("SAVEPOINT inside")
        assert [False] == close(first)
        run("ROLLBACK TO SAVEPOINT inside")
        if kind != "psycopg":  # which tells nobody of it
            assert NOBODY == stands(conn)
        second.__enter__()
        assert database.user(2) == stands(conn)[0]
        assert [False] == close(second)
        assert NOBODY == stands(conn)


# --- threads


@KINDS
def test_a_block_that_is_left_on_another_thread_raises_and_leaves_nobody(database: Database, kind: str) -> None:
    with connected(database, kind) as conn, ThreadPoolExecutor(1) as other:
        one = block(conn, database, 1)
        one.__enter__()
        assert [True] == other.submit(close, one).result()
        assert NOBODY == stands(conn)


def test_a_thread_without_a_block_does_not_act_as_the_user_of_another_s(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn, block(conn, database, 1), ThreadPoolExecutor(1) as other:
        for ask in (leadprotect.can_edit, leadprotect.assert_edit, leadprotect.release):
            with pytest.raises(ContextOutOfOrder):
                other.submit(ask, conn, lead).result()
        # a thread that was started inside the block, as asyncio.to_thread does, is inside it
        assert other.submit(contextvars.copy_context().run, leadprotect.can_edit, conn, lead).result()
        assert leadprotect.can_edit(conn, lead)


# --- generators and tasks


def generator(conn: Any, database: Database, user: int) -> Iterator[str]:
    with block(conn, database, user):
        yield database.user(user)


def test_a_generator_that_is_closed_late_raises(database: Database) -> None:
    with database.connect("seller_de") as conn:
        early, late = generator(conn, database, 1), generator(conn, database, 2)
        next(early)
        next(late)
        with pytest.raises(ContextOutOfOrder):
            early.close()  # type: ignore[attr-defined]
        with pytest.raises(ContextOutOfOrder):
            late.close()  # type: ignore[attr-defined]
        assert NOBODY == stands(conn)


def test_a_task_does_not_act_as_the_user_of_another_task(database: Database) -> None:
    """The first task goes on while the second one's block stands: it would be answered for the second user."""
    lead = database.lead("DE", owner=database.user(2))
    turns = [asyncio.Event() for _ in range(3)]
    answers: list[object] = []

    async def first(conn: psycopg.Connection[Any]) -> None:
        with block(conn, database, 1):
            turns[0].set()
            await turns[1].wait()
            try:
                answers.append(leadprotect.can_edit(conn, lead))
            finally:
                turns[2].set()

    async def second(conn: psycopg.Connection[Any]) -> None:
        await turns[0].wait()
        with block(conn, database, 2):
            turns[1].set()
            await turns[2].wait()

    async def together(conn: psycopg.Connection[Any]) -> tuple[Any, ...]:
        return await asyncio.gather(first(conn), second(conn), return_exceptions=True)

    with database.connect("seller_de") as conn:
        raised = asyncio.run(together(conn))
        assert [ContextOutOfOrder, ContextOutOfOrder] == [type(error) for error in raised]
        assert [] == answers
        assert NOBODY == stands(conn)


def test_a_task_that_was_started_inside_a_block_is_inside_it(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(2))

    async def nested(conn: psycopg.Connection[Any]) -> bool:
        with block(conn, database, 2):
            return leadprotect.can_edit(conn, lead)

    async def outer(conn: psycopg.Connection[Any]) -> tuple[bool, bool]:
        with block(conn, database, 1):
            inside = await asyncio.wait_for(asyncio.create_task(nested(conn)), 10)
            return inside, leadprotect.can_edit(conn, lead)

    with database.connect("seller_de") as conn:
        assert (True, False) == asyncio.run(outer(conn))


def test_two_connections_have_nothing_to_do_with_each_other(database: Database) -> None:
    with database.connect("seller_de") as one, database.connect("seller_de") as two:
        first, second = block(one, database, 1), block(two, database, 2)
        first.__enter__()
        second.__enter__()
        assert [database.user(1), database.user(2)] == [stands(one)[0], stands(two)[0]]
        assert [False, False] == close(first, second)
        assert [NOBODY, NOBODY] == [stands(one), stands(two)]


# --- a connection that went back to its pool


def psycopg_pool_of_one(database: Database) -> tuple[Callable[[], Any], Callable[[Any], None], Callable[[], None]]:
    made = ConnectionPool(database.login_url("seller_de"), min_size=1, max_size=1, open=True)
    return made.getconn, made.putconn, made.close


def engine_of_one(database: Database) -> tuple[Callable[[], Any], Callable[[Any], None], Callable[[], None]]:
    url = database.login_url("seller_de")
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(url), poolclass=pool.QueuePool, pool_size=1
    )
    return engine.connect, lambda conn: conn.close(), engine.dispose


@pytest.mark.parametrize("pool_of_one", [psycopg_pool_of_one, engine_of_one])
@pytest.mark.parametrize("ends", ["before", "after"])
def test_a_block_that_outlives_its_connection_s_checkout_touches_nobody_else_s(
    database: Database, pool_of_one: Callable[..., Any], ends: str
) -> None:
    lead = database.lead("DE", owner=database.user(2))
    get, put, done = pool_of_one(database)
    conn = get()
    nested = [block(conn, database, user) for user in (1, 3)]
    for one in nested:
        one.__enter__()
    put(conn)
    again = get()
    if ends == "before":
        assert [False, False] == close(*reversed(nested))
        assert NOBODY == stands(again)
    with block(again, database, 2):
        if ends == "after":
            # SQLAlchemy tells that the connection went back, psycopg does not
            late = pool_of_one is psycopg_pool_of_one
            assert [late, late] == close(*reversed(nested))
        assert database.user(2) == stands(again)[0]
        assert leadprotect.can_edit(again, lead)
    assert NOBODY == stands(again)
    put(again)
    done()


def test_a_late_end_starts_no_transaction_on_a_connection_that_lies_in_its_pool(database: Database) -> None:
    get, put, done = psycopg_pool_of_one(database)
    conn = get()
    one = block(conn, database, 1)
    one.__enter__()
    put(conn)
    assert [False] == close(one)
    assert psycopg.pq.TransactionStatus.IDLE == conn.info.transaction_status
    done()


def test_many_threads_with_a_connection_each_are_not_disturbed(database: Database) -> None:
    leads = {user: database.lead("DE", owner=database.user(user)) for user in range(1, 9)}
    start = threading.Barrier(len(leads))

    def work(user: int) -> set[bool]:
        with database.connect("seller_de") as conn:
            start.wait(30)
            answers = set()
            for _ in range(20):
                with block(conn, database, user), block(conn, database, user):
                    answers.add(leadprotect.can_edit(conn, leads[user]))
            return answers

    with ThreadPoolExecutor(len(leads)) as threads:
        assert [{True}] * len(leads) == list(threads.map(work, leads))
