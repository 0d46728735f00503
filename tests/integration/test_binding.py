"""leadprotect.bind: every transaction of an engine begins with the context that the service tells."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, exc, pool, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, sessionmaker

import leadprotect
from leadprotect import Context, ContextMissing, InvalidRequest
from leadprotect.access.context import declared
from tests.support.database import Database

WHO: ContextVar[Context | None] = ContextVar("WHO", default=None)


def stands(conn: Any) -> list[str | None]:
    return [value or None for value in declared(conn)]


def seen(conn: Any, database: Database) -> int:
    found: int = conn.execute(text(database.text("SELECT count(*) FROM {leads}"))).scalar_one()
    return found


@pytest.fixture
def seller(database: Database) -> Any:
    """The context of a request of the first seller."""
    given = Context(database.user(1), "DE", "request 7")
    token = WHO.set(given)
    yield given
    WHO.reset(token)


@pytest.mark.usefixtures("seller")
def test_every_transaction_of_a_bound_engine_has_the_context(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.engine("seller_de") as engine:
        leadprotect.bind(engine, WHO)
        with engine.connect() as conn:
            for end in (conn.commit, conn.rollback, conn.commit):
                assert [database.user(1), "DE", "request 7"] == stands(conn)
                assert leadprotect.can_edit(conn, lead)
                end()
        with Session(engine) as session:
            assert leadprotect.can_edit(session, lead)
            session.commit()
            assert 1 == seen(session, database)


@pytest.mark.usefixtures("seller")
def test_the_sessions_of_a_bound_sessionmaker_have_it_and_no_others(database: Database) -> None:
    with database.engine("seller_de") as engine:
        sessions = sessionmaker(engine)
        leadprotect.bind(sessions, WHO.get)
        with sessions() as session:
            assert database.user(1) == stands(session)[0]
            session.commit()
            assert database.user(1) == stands(session)[0]
        with Session(engine) as session, engine.connect() as conn:
            assert [[None] * 3] * 2 == [stands(session), stands(conn)]


@pytest.mark.parametrize("bound", ["engine", "sessions"])
def test_a_transaction_without_a_context_fails_loudly_and_so_does_what_follows(database: Database, bound: str) -> None:
    database.lead("DE")
    with database.engine("seller_de") as engine:
        sessions = sessionmaker(engine)
        leadprotect.bind(engine if bound == "engine" else sessions, WHO)
        with sessions() as session:
            for _ in range(2):  # SQLAlchemy itself would take the second one as if the first had been answered
                with pytest.raises(ContextMissing, match="provider given to leadprotect"):
                    seen(session, database)
            session.rollback()
            token = WHO.set(Context(database.user(1), "DE"))
            assert 1 == seen(session, database)
            WHO.reset(token)
        if bound == "engine":
            with engine.connect() as conn:
                with pytest.raises(ContextMissing, match="provider given to leadprotect"):
                    seen(conn, database)
                with pytest.raises(exc.ResourceClosedError):
                    seen(conn, database)


def test_or_it_stays_empty_as_chosen(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.engine("seller_de") as engine:
        leadprotect.bind(engine, lambda: None, missing="empty")
        with engine.connect() as conn:
            assert 0 == seen(conn, database)
            with pytest.raises(ContextMissing):
                leadprotect.can_edit(conn, lead)


@pytest.mark.usefixtures("seller")
@pytest.mark.parametrize("bound", ["engine", "sessions"])
def test_a_block_of_acting_as_goes_before_what_is_bound(database: Database, bound: str) -> None:
    with database.engine("seller_de") as engine:
        sessions = sessionmaker(engine)
        with sessions() as session, leadprotect.acting_as(session, database.user(3), "DE"):
            session.commit()  # it is followed before it is bound
        leadprotect.bind(engine if bound == "engine" else sessions, WHO)
        scopes: list[Any] = [sessions(), engine.connect()] if bound == "engine" else [sessions()]
        for scope in scopes:
            with scope as conn:
                with leadprotect.acting_as(conn, database.user(2), "DE"):
                    assert database.user(2) == stands(conn)[0]
                    conn.commit()
                    assert database.user(2) == stands(conn)[0]
                assert database.user(1) == stands(conn)[0]


def test_a_block_of_acting_as_is_a_context_where_nothing_else_tells_one(database: Database) -> None:
    """A job that runs outside any request names its user itself."""
    with database.engine("seller_de") as engine:
        leadprotect.bind(engine, WHO)
        with Session(engine) as session:
            with leadprotect.acting_as(session, database.user(2), "DE"):
                session.commit()
                assert database.user(2) == stands(session)[0]
                session.commit()
            with pytest.raises(ContextMissing):
                seen(session, database)


def test_a_block_on_another_connection_is_none(database: Database) -> None:
    with database.engine("seller_de") as engine, database.connect("seller_de") as conn:
        leadprotect.bind(engine, WHO)
        with leadprotect.acting_as(conn, database.user(1), "DE"), Session(engine) as session:
            with pytest.raises(ContextMissing, match="provider given to leadprotect"):
                seen(session, database)


def test_a_pooled_connection_takes_no_context_to_its_next_user(database: Database) -> None:
    url = database.login_url("seller_de")
    engine = create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(url),
        poolclass=pool.QueuePool,
        pool_size=1,
        max_overflow=0,
    )
    told: list[Context | None] = [Context(database.user(1), "DE"), None, Context(database.user(2), "DE")]
    leadprotect.bind(engine, lambda: told.pop(0), missing="empty")
    found = []
    for _ in range(3):
        with engine.begin() as conn:
            found.append(stands(conn)[0])
    assert [database.user(1), None, database.user(2)] == found
    engine.dispose()


def test_two_engines_have_a_provider_each(database: Database) -> None:
    with database.engine("seller_de") as one, database.engine("seller_ch") as two:
        leadprotect.bind(one, lambda: (database.user(1), "DE"))
        leadprotect.bind(two, lambda: (database.user(2), "CH"))
        with one.connect() as first, two.connect() as second:
            assert [database.user(1), "DE", None] == stands(first)
            assert [database.user(2), "CH", None] == stands(second)


def test_requests_on_threads_have_their_own_context(database: Database) -> None:
    url = database.login_url("seller_de")
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url), pool_size=2, max_overflow=0)
    leadprotect.bind(engine, WHO)

    def request(number: int) -> set[str | None]:
        WHO.set(Context(database.user(number), "DE"))
        found = set()
        for _ in range(20):
            with engine.begin() as conn:
                found.add(stands(conn)[0])
        return found

    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(copy_context().run, request, number) for number in range(1, 9)]
        assert [{database.user(number)} for number in range(1, 9)] == [one.result() for one in running]
    engine.dispose()


@pytest.mark.parametrize("bound", ["engine", "sessions"])
def test_asynchronous_requests_have_their_own_context(database: Database, bound: str) -> None:
    async def request(sessions: async_sessionmaker[AsyncSession], number: int) -> set[str | None]:
        WHO.set(Context(database.user(number), "DE"))
        found = set()
        async with sessions() as session:
            for _ in range(5):
                found.add((await session.run_sync(stands))[0])
                await session.commit()
        return found

    async def all_at_once() -> list[set[str | None]]:
        url = database.login_url("seller_de")
        engine = create_async_engine(
            "postgresql+psycopg://",
            async_creator=lambda: psycopg.AsyncConnection.connect(url),
            pool_size=2,
            max_overflow=0,
        )
        sessions = async_sessionmaker(engine)
        leadprotect.bind(engine if bound == "engine" else sessions, WHO)
        found = await asyncio.gather(*(request(sessions, number) for number in range(1, 9)))
        if bound == "sessions":
            async with AsyncSession(engine) as other:
                assert [None] * 3 == await other.run_sync(stands)
        await engine.dispose()
        return found

    assert [{database.user(number)} for number in range(1, 9)] == asyncio.run(all_at_once())


def test_an_engine_in_autocommit_is_refused_when_a_context_is_told(database: Database) -> None:
    with database.engine("seller_de") as engine:
        leadprotect.bind(engine, lambda: (database.user(1), "DE"))
        with engine.execution_options(isolation_level="AUTOCOMMIT").connect() as conn:
            with pytest.raises(ContextMissing, match="autocommit"):
                conn.execute(text("SELECT 1"))


def test_it_is_unbound_and_bound_anew_but_not_twice(database: Database) -> None:
    with database.engine("seller_de") as engine:
        unbind = leadprotect.bind(engine, lambda: (database.user(1), "DE"))
        with pytest.raises(InvalidRequest, match="bound already"):
            leadprotect.bind(engine, WHO)
        unbind()
        unbind()
        with engine.connect() as conn:
            assert [None] * 3 == stands(conn)
        leadprotect.bind(engine, lambda: (database.user(2), "DE"))
        with engine.connect() as conn:
            assert database.user(2) == stands(conn)[0]


@pytest.mark.parametrize("given", [(1, "DE"), ("seller 1",), ("seller 1", "DE", "x", "y"), 7])
def test_what_a_provider_gives_is_checked(database: Database, given: object) -> None:
    with database.engine("seller_de") as engine:
        leadprotect.bind(engine, lambda: given)  # type: ignore[arg-type,return-value]
        with engine.connect() as conn, pytest.raises(InvalidRequest, match=r"provider|user_id"):
            conn.execute(text("SELECT 1"))


@pytest.mark.parametrize("given", [("", "DE"), ("seller 1", ""), (None, "DE")])
def test_half_a_context_is_none(database: Database, given: tuple[Any, ...]) -> None:
    with database.engine("seller_de") as engine:
        leadprotect.bind(engine, lambda: given, missing="empty")
        with engine.connect() as conn, pytest.raises(ContextMissing):
            conn.execute(text("SELECT 1"))


def test_what_can_t_be_bound_is_told_what_to_use(database: Database) -> None:
    with database.connect("seller_de") as conn, pytest.raises(InvalidRequest, match="use acting_as"):
        leadprotect.bind(conn, WHO)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="needs psycopg 3"):
        leadprotect.bind(create_engine("sqlite://"), WHO)
    with database.engine() as engine:
        with pytest.raises(InvalidRequest, match="missing"):
            leadprotect.bind(engine, WHO, missing="ignore")  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="provider"):
            leadprotect.bind(engine, "seller 1")  # type: ignore[arg-type]


def test_where_leadprotect_is_not_installed_nothing_begins(database: Database) -> None:
    database.downgrade("base")
    with database.engine("seller_de") as engine:
        leadprotect.bind(engine, lambda: (database.user(1), "DE"))
        with engine.connect() as conn, pytest.raises(leadprotect.ProtectionUnavailable):
            conn.execute(text("SELECT 1"))
