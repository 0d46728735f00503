"""leadprotect.aio: the tests of the synchronous functions, driven through an asynchronous connection, and its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

import leadprotect
from leadprotect import ContextOutOfOrder, InvalidRequest, LeadAccessDenied, aio
from leadprotect.access import context
from leadprotect.access.context import declared
from leadprotect.database import waiting
from leadprotect.database.waiting import call
from tests.integration import test_access, test_context, test_denials, test_ownership
from tests.support import twin
from tests.support.database import Database
from tests.support.driven import drive

pytestmark = pytest.mark.profiles("pg18")

SOURCES = (test_access, test_context, test_ownership, test_denials)
SYNCHRONOUS = {
    # a pool of synchronous connections, a program of its own, or a connection that two threads use at once
    "test_denials_never_wait_for_the_caller_s_own_pool",
    "test_a_pool_of_one_does_not_wait_for_itself",
    "test_a_denial_outlives_a_client_that_is_killed_right_after_the_answer",
    "test_what_is_no_connection_is_told_what_would_be",
}
SAME = {
    name: test
    for module in SOURCES
    for name, test in vars(module).items()
    if name.startswith("test_") and name not in SYNCHRONOUS
}
globals().update(SAME)
broker = test_denials.broker


@pytest.fixture(autouse=True)
def driven(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that stands elsewhere, too, is one of the synchronous functions."""
    if request.function.__name__ in SAME:
        drive(monkeypatch, *SOURCES)


def awaited(database: Database, use: Callable[[psycopg.AsyncConnection[Any]], Awaitable[Any]]) -> Any:
    async def inside() -> Any:
        async with await psycopg.AsyncConnection.connect(database.login_url("seller_de")) as conn:
            return await use(conn)

    return asyncio.run(inside())


async def user(conn: Any) -> str | None:
    found = await call(conn, declared)
    return found[0] or None


def test_the_same_tests_are_many() -> None:
    assert len(SAME) > 70
    assert not {name for name in globals() if name in SYNCHRONOUS}


def test_it_is_what_its_source_makes() -> None:
    assert twin.twin() == twin.TWIN.read_text(encoding="utf-8"), "run `make aio`"


def test_every_public_function_of_a_connection_has_a_twin() -> None:
    assert {"acting_as", "assert_edit", "can_edit", "can_edit_many", "editable_leads", "explain"} < set(aio.__all__)
    assert sorted(aio.__all__) == aio.__all__


def test_an_edit_is_asserted_and_made(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))

    async def edit(conn: psycopg.AsyncConnection[Any]) -> str:
        async with aio.acting_as(conn, database.user(1), "DE"):
            decision = await aio.assert_edit(conn, lead)
            await conn.execute(database.text("UPDATE {leads} SET city = 'Köln'"))
        return decision.reason

    assert "owner" == awaited(database, edit)
    assert ["Köln"] == database.sql("SELECT city FROM {leads}")


def test_a_denial_outlives_the_rollback_and_keeps_no_other_task_waiting(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(2))
    beats = 0

    async def edit(conn: psycopg.AsyncConnection[Any]) -> None:
        async with aio.acting_as(conn, database.user(1), "DE"):
            await aio.assert_edit(conn, lead)

    async def meanwhile(conn: psycopg.AsyncConnection[Any]) -> None:
        nonlocal beats
        with database.connect() as holder:
            database.query(holder, "LOCK TABLE {schema}.lead_access_audit IN ACCESS EXCLUSIVE MODE")
            denial = asyncio.create_task(edit(conn))
            while beats < 20 and not denial.done():
                await asyncio.sleep(0.01)
                beats += 1
            holder.rollback()
        with pytest.raises(LeadAccessDenied):
            await denial

    awaited(database, meanwhile)
    assert 20 == beats
    assert [("EDIT", "DENY", "not_owner")] == database.audit()


def test_a_session_needs_no_run_sync_and_keeps_its_context_through_a_commit(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))

    async def work() -> list[Any]:
        url = database.login_url("seller_de")
        engine = create_async_engine(
            "postgresql+psycopg://", async_creator=lambda: psycopg.AsyncConnection.connect(url)
        )
        found: list[Any] = []
        async with AsyncSession(engine) as session:
            async with aio.acting_as(session, database.user(1), "DE"):
                found.append(await aio.can_edit(session, lead))
                await session.commit()
                found.append(await aio.can_edit(session, lead))
                found.append((await aio.assert_edit(session, lead)).reason)
                await session.commit()
        async with engine.connect() as core, aio.acting_as(core, database.user(2), "DE"):
            await core.rollback()
            found.append((await aio.explain(core, lead)).reason)
            count = text(database.text("SELECT count(*) FROM {leads}"))
            found.append((await core.execute(count)).scalar_one())
        await engine.dispose()
        return found

    assert [True, True, "owner", "not_owner", 1] == asyncio.run(work())


# --- tasks


def test_a_task_that_is_cancelled_in_the_middle_leaves_nobody_s_context(database: Database) -> None:
    """Whatever it waited for: a statement of its own, one of ours, or nothing of the database."""
    lead = database.lead("DE", owner=database.user(1))

    async def cancelled(conn: psycopg.AsyncConnection[Any], wait: Callable[[], Awaitable[Any]]) -> str | None:
        entered = asyncio.Event()

        async def request() -> None:
            async with aio.acting_as(conn, database.user(2), "DE"):
                entered.set()
                await wait()

        async with aio.acting_as(conn, database.user(1), "DE"):
            async with conn.transaction():
                task = asyncio.create_task(request())
                await entered.wait()
                await asyncio.sleep(0.05)
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                if conn.info.transaction_status == psycopg.pq.TransactionStatus.INERROR:
                    raise psycopg.Rollback
            assert await aio.can_edit(conn, lead)
            inside = await user(conn)
        assert await user(conn) is None
        await conn.rollback()
        return inside

    async def every(conn: psycopg.AsyncConnection[Any]) -> list[str | None]:
        async def blocked() -> None:
            with database.connect() as holder:
                database.query(holder, "LOCK TABLE {schema}.user_lead_assignments IN ACCESS EXCLUSIVE MODE")
                await aio.can_edit(conn, lead)

        ways: list[Callable[[], Awaitable[Any]]] = [
            lambda: asyncio.sleep(30),
            lambda: conn.execute("SELECT pg_sleep(30)"),
            blocked,
        ]
        return [await cancelled(conn, way) for way in ways]

    assert [database.user(1)] * 3 == awaited(database, every)


def test_a_task_that_is_cancelled_while_its_block_ends_owes_the_outer_context(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A framework may cancel again while the first cancellation is tidied up."""
    real: Any = vars(context)["rows"]

    async def inside(conn: psycopg.AsyncConnection[Any]) -> str | None:
        def struck(*_: Any) -> Any:
            monkeypatch.setattr(context, "rows", real)
            raise asyncio.CancelledError

        async with aio.acting_as(conn, database.user(1), "DE"):
            with suppress(asyncio.CancelledError):
                async with aio.acting_as(conn, database.user(2), "DE"):
                    monkeypatch.setattr(context, "rows", struck)
            return await user(conn)

    assert database.user(1) == awaited(database, inside)


def test_two_tasks_on_one_connection_raise_and_leave_nobody(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(2))

    async def together(conn: psycopg.AsyncConnection[Any]) -> list[Any]:
        turns = [asyncio.Event() for _ in range(3)]

        async def first() -> None:
            async with aio.acting_as(conn, database.user(1), "DE"):
                turns[0].set()
                await turns[1].wait()
                try:
                    await aio.can_edit(conn, lead)
                finally:
                    turns[2].set()

        async def second() -> None:
            await turns[0].wait()
            async with aio.acting_as(conn, database.user(2), "DE"):
                turns[1].set()
                await turns[2].wait()

        raised = await asyncio.gather(first(), second(), return_exceptions=True)
        return [*map(type, raised), await user(conn)]

    assert [ContextOutOfOrder, ContextOutOfOrder, None] == awaited(database, together)


def test_concurrent_requests_of_a_small_pool_get_their_own_answers(database: Database) -> None:
    from psycopg_pool import AsyncConnectionPool  # noqa: PLC0415

    owned = {number: database.lead("DE", owner=database.user(number)) for number in range(1, 9)}

    async def request(pool: AsyncConnectionPool[Any], number: int) -> set[Any]:
        async with pool.connection() as conn, aio.acting_as(conn, database.user(number), "DE"):
            may = await aio.can_edit_many(conn, owned.values())
            return {lead for lead, yes in may.items() if yes}

    async def all_at_once() -> list[set[Any]]:
        async with AsyncConnectionPool(database.login_url("seller_de"), min_size=2, max_size=2, open=False) as pool:
            return await asyncio.gather(*(request(pool, number % 8 + 1) for number in range(100)))

    assert [{owned[number % 8 + 1]} for number in range(100)] == asyncio.run(all_at_once())


# --- other connections


def test_an_asynchronous_connection_is_sent_here_by_the_synchronous_functions(database: Database) -> None:
    async def ask(conn: psycopg.AsyncConnection[Any]) -> None:
        with pytest.raises(InvalidRequest, match="from leadprotect import aio"):
            leadprotect.can_edit(conn, database.new_id())  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="from leadprotect import aio"):
            with leadprotect.acting_as(conn, database.user(1), "DE"):  # type: ignore[arg-type]
                pytest.fail("the block must not run")
        assert psycopg.pq.TransactionStatus.IDLE == conn.info.transaction_status

    awaited(database, ask)


@pytest.mark.parametrize(
    ("module", "said"),
    [
        ("asyncpg.connection", "connection of asyncpg; .* psycopg.AsyncConnection"),
        ("psycopg2.extensions", "connection of psycopg2; .* create_engine"),
        ("pg8000.dbapi", "connection of pg8000; .* create_engine"),
        ("somewhere", "is not a psycopg.AsyncConnection"),
    ],
)
def test_another_driver_s_connection_is_refused_by_name(database: Database, module: str, said: str) -> None:
    other = type("Connection", (), {"__module__": module})()
    with pytest.raises(InvalidRequest, match=said):
        asyncio.run(aio.can_edit(other, database.new_id()))
    if module != "somewhere":
        with pytest.raises(InvalidRequest, match=said):
            leadprotect.can_edit(other, database.new_id())


def test_a_synchronous_connection_is_refused_here(database: Database) -> None:
    with database.connect("seller_de") as conn, pytest.raises(InvalidRequest, match="serves the synchronous ones"):
        asyncio.run(aio.can_edit(conn, database.new_id()))  # type: ignore[arg-type]


def test_a_check_is_awaited_as_it_is_and_costs_no_greenlet(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    lead, user = database.lead("DE", owner=database.user(1)), database.user(1)
    begun: list[object] = []
    spawner = waiting._spawner  # noqa: SLF001

    def counting() -> Any:
        begun.append(spawner)
        return spawner()

    monkeypatch.setattr(waiting, "_spawner", counting)

    async def check(conn: psycopg.AsyncConnection[Any]) -> list[Any]:
        by_name = await aio.can_edit(conn, lead, user_id=user, territory="DE")
        async with aio.acting_as(conn, user, "DE"):
            begun.clear()
            found: list[Any] = [by_name, await aio.can_edit(conn, lead), (await aio.explain(conn, lead)).reason]
            found.append(len(begun))
            return [*found, await aio.can_edit_many(conn, [lead]), len(begun)]  # the control

    assert [True, True, "owner", 0, {lead: True}, 1] == awaited(database, check)
