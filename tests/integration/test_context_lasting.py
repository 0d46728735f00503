"""acting_as on SQLAlchemy holds for every transaction that begins inside its block, and for none after it."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from sqlalchemy import Engine, create_engine, event, exc, pool, text
from sqlalchemy.orm import Session, sessionmaker

import leadprotect
from leadprotect import ContextMissing, ContextOutOfOrder
from leadprotect.access import context
from leadprotect.access.context import declared
from tests.support.database import Database

NOBODY = [None, None, None]
KINDS = pytest.mark.parametrize("kind", ["connection", "session"])


def made(engine: Engine, kind: str) -> Any:
    return engine.connect() if kind == "connection" else Session(engine)


def stands(conn: Any) -> list[str | None]:
    return [value or None for value in declared(conn)]


def user(conn: Any) -> str | None:
    return stands(conn)[0]


def seen(conn: Any, database: Database) -> int:
    found: int = conn.execute(text(database.text("SELECT count(*) FROM {leads}"))).scalar_one()
    return found


def pool_of_one(database: Database, login: str = "seller_de") -> Engine:
    url = database.login_url(login)
    return create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(url),
        poolclass=pool.QueuePool,
        pool_size=1,
        max_overflow=0,
    )


@KINDS
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_the_context_holds_after_a_commit_or_a_rollback_inside_the_block(
    database: Database, kind: str, end: str
) -> None:
    """A service that commits in the middle would see an empty world, and no error would tell it."""
    lead = database.lead("DE", owner=database.user(1))
    with database.engine("seller_de") as engine, made(engine, kind) as conn:
        with leadprotect.acting_as(conn, database.user(1), "DE", "request 7"):
            for _ in range(3):
                assert 1 == seen(conn, database)
                assert [database.user(1), "DE", "request 7"] == stands(conn)
                assert leadprotect.can_edit(conn, lead)
                getattr(conn, end)()
            statement = text(database.text("UPDATE {leads} SET city = 'Köln'"))
            assert 1 == conn.execute(statement).rowcount
            conn.commit()
        assert 0 == seen(conn, database)
        assert NOBODY == stands(conn)


@KINDS
def test_without_the_events_the_world_is_empty_after_a_commit(
    database: Database, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control."""
    database.lead("DE", owner=database.user(1))
    monkeypatch.setattr(context._Follower, "begun", lambda *_: None)  # noqa: SLF001
    with database.engine("seller_de") as engine, made(engine, kind) as conn:
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            conn.commit()
            assert 0 == seen(conn, database)


@KINDS
def test_a_nested_block_that_outlives_a_commit_gives_the_outer_context_back(database: Database, kind: str) -> None:
    with database.engine("seller_both") as engine, made(engine, kind) as conn:
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            with leadprotect.acting_as(conn, database.user(2), "CH"):
                conn.commit()
                assert database.user(2) == user(conn)
            assert database.user(1) == user(conn)
            with leadprotect.acting_as(conn, database.user(3), "CH"):
                conn.commit()
            assert database.user(1) == user(conn)
            conn.commit()
            assert database.user(1) == user(conn)
        assert NOBODY == stands(conn)


@KINDS
def test_an_exception_after_a_commit_ends_the_block_as_any_other(database: Database, kind: str) -> None:
    with database.engine("seller_de") as engine, made(engine, kind) as conn:
        with suppress(ZeroDivisionError), leadprotect.acting_as(conn, database.user(1), "DE"):
            conn.commit()
            assert database.user(1) == user(conn)
            raise ZeroDivisionError
        assert NOBODY == stands(conn)


@KINDS
def test_what_stood_in_the_transaction_before_does_not_come_back_in_another(database: Database, kind: str) -> None:
    """The context that somebody set by hand ended with his transaction."""
    with database.engine("seller_de") as engine, made(engine, kind) as conn:
        by_hand = text(database.text("SELECT {schema}.set_context(cast(:user AS text), 'DE')"))
        conn.execute(by_hand, {"user": database.user(9)})
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            conn.commit()
            assert database.user(1) == user(conn)
        assert NOBODY == stands(conn)


@KINDS
def test_a_rollback_to_a_savepoint_does_not_bring_the_outer_user_into_the_inner_block(
    database: Database, kind: str
) -> None:
    """The savepoint is older than the block: the server goes back to whom the block replaced."""
    lead = database.lead("DE", owner=database.user(1))
    with database.engine("seller_de") as engine, made(engine, kind) as conn:
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            savepoint = conn.begin_nested()
            with leadprotect.acting_as(conn, database.user(2), "DE"):
                savepoint.rollback()
                assert database.user(2) == user(conn)
                assert not leadprotect.can_edit(conn, lead)
            assert database.user(1) == user(conn)
            assert leadprotect.can_edit(conn, lead)


@KINDS
def test_the_same_with_a_savepoint_that_the_service_made_in_sql(database: Database, kind: str) -> None:
    with database.engine("seller_de") as engine, made(engine, kind) as conn:
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            conn.execute(text("SAVEPOINT mine"))
            with leadprotect.acting_as(conn, database.user(2), "DE"), suppress(exc.DataError):
                conn.execute(text("SELECT 1/0"))
            conn.execute(text("ROLLBACK TO SAVEPOINT mine"))
            assert database.user(1) == user(conn)


def test_in_psycopg_the_first_call_after_a_commit_raises(database: Database) -> None:
    """psycopg has no event at the begin of a transaction, so nothing can set it again."""
    lead = database.lead("DE", owner=database.user(1))
    calls: list[Any] = [
        leadprotect.can_edit,
        leadprotect.explain,
        leadprotect.assert_edit,
        leadprotect.claim,
        lambda conn, lead: leadprotect.can_edit_many(conn, [lead]),
        lambda conn, _: leadprotect.editable_leads(conn),
    ]
    for call in calls:
        with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
            conn.commit()
            with pytest.raises(ContextMissing):
                call(conn, lead)


def test_nothing_is_left_for_the_next_user_of_the_connection(database: Database) -> None:
    """The session holds no connection between two transactions: another one gets it, and begins as nobody."""
    database.lead("DE", owner=database.user(1))
    engine = pool_of_one(database)
    with Session(engine) as mine, leadprotect.acting_as(mine, database.user(1), "DE"):
        mine.commit()
        with Session(engine) as other, other.begin():
            assert 0 == seen(other, database)
            assert NOBODY == stands(other)
        with engine.begin() as core, leadprotect.acting_as(core, database.user(2), "DE"):
            assert database.user(2) == user(core)
        assert 1 == seen(mine, database)
        assert database.user(1) == user(mine)
    engine.dispose()


def test_a_block_is_not_out_of_order_with_the_next_user_of_its_connection(database: Database) -> None:
    engine = pool_of_one(database)
    with ThreadPoolExecutor(1) as other, Session(engine) as mine:
        inside, leave = threading.Event(), threading.Event()

        def next_user() -> bool:
            with Session(engine) as theirs, leadprotect.acting_as(theirs, database.user(2), "DE"):
                inside.set()
                leave.wait(30)
                return user(theirs) == database.user(2)

        with leadprotect.acting_as(mine, database.user(1), "DE"):
            mine.commit()
            answer = other.submit(next_user)
            inside.wait(30)
        leave.set()
        assert answer.result(30)
    engine.dispose()


@KINDS
def test_blocks_that_end_out_of_order_between_two_transactions_raise(database: Database, kind: str) -> None:
    with database.engine("seller_de") as engine, made(engine, kind) as conn:
        first = leadprotect.acting_as(conn, database.user(1), "DE")
        second = leadprotect.acting_as(conn, database.user(2), "DE")
        first.__enter__()
        second.__enter__()
        conn.commit()
        with pytest.raises(ContextOutOfOrder):
            first.__exit__(None, None, None)
        assert NOBODY == stands(conn)
        with pytest.raises(ContextOutOfOrder):
            second.__exit__(None, None, None)
        assert NOBODY == stands(conn)


@KINDS
def test_a_transaction_that_another_thread_begins_inside_the_block_has_no_context(
    database: Database, kind: str
) -> None:
    with database.engine("seller_de") as engine, made(engine, kind) as conn, ThreadPoolExecutor(1) as other:
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            conn.commit()
            with pytest.raises(ContextOutOfOrder):
                other.submit(seen, conn, database).result()
            if kind == "session":  # a connection of SQLAlchemy's that failed at the begin is closed for good
                conn.rollback()
                assert database.user(1) == user(conn)


def test_a_session_of_two_engines_acts_on_the_one_that_the_block_was_entered_on(database: Database) -> None:
    with database.engine("seller_de") as engine, database.engine("outsider") as elsewhere:
        with Session(engine) as session, leadprotect.acting_as(session, database.user(1), "DE"):
            session.commit()
            assert 1 == session.execute(text("SELECT 1"), bind_arguments={"bind": elsewhere}).scalar_one()
            assert database.user(1) == user(session)


def test_a_session_inside_the_transaction_of_a_test_keeps_the_context(database: Database) -> None:
    """How services test: the session's commits are savepoints of an outer transaction."""
    database.lead("DE", owner=database.user(1))
    with database.engine("seller_de") as engine, engine.connect() as core, core.begin() as outer:
        with Session(core, join_transaction_mode="create_savepoint") as session:
            with leadprotect.acting_as(session, database.user(1), "DE"):
                for end in (session.commit, session.rollback, session.commit):
                    assert 1 == seen(session, database)
                    end()
                assert database.user(1) == user(session)
        outer.rollback()


def test_many_sessions_of_a_small_pool_that_commit_in_the_middle_are_not_mixed_up(database: Database) -> None:
    owned = {number: database.lead("DE", owner=database.user(number)) for number in range(1, 9)}
    url = database.login_url("seller_de")
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url), pool_size=3, max_overflow=0)
    sessions = sessionmaker(engine)

    def request(number: int) -> set[tuple[str | None, frozenset[Any]]]:
        answers = set()
        for _ in range(10):
            with sessions() as session, leadprotect.acting_as(session, database.user(number), "DE"):
                for _ in range(3):
                    may = leadprotect.can_edit_many(session, owned.values())
                    answers.add((user(session), frozenset(lead for lead, yes in may.items() if yes)))
                    session.commit()
        return answers

    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(request, owned))
    assert [{(database.user(number), frozenset([lead]))} for number, lead in owned.items()] == found
    engine.dispose()


def told(engine: Engine) -> list[str]:
    """Every statement that the engine sends from now on."""
    sent: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *given: sent.append(given[2]))
    return sent


@KINDS
def test_a_block_inside_one_of_the_same_context_sends_nothing(database: Database, kind: str) -> None:
    with database.engine("seller_de") as engine, made(engine, kind) as conn:
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            sent = told(engine)
            with (
                leadprotect.acting_as(conn, database.user(1), "DE"),
                leadprotect.acting_as(conn, database.user(1), "DE"),
            ):
                assert sent == []
                assert stands(conn) == [database.user(1), "DE", None]
            assert len(sent) == 1
            assert user(conn) == database.user(1)
            with leadprotect.acting_as(conn, database.user(2), "DE"):
                assert user(conn) == database.user(2)
            assert user(conn) == database.user(1)
        assert stands(conn) == NOBODY


@KINDS
@pytest.mark.parametrize("sql", ["SELECT set_config('{}', 'x', true)", "SET LOCAL {} = 'x'"])
def test_a_block_of_the_same_context_sets_it_again_where_a_statement_may_have_set_another(
    database: Database, kind: str, sql: str
) -> None:
    with database.engine("seller_de") as engine, made(engine, kind) as conn:
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            conn.execute(text(sql.format(database.settings.user_guc)))
            with leadprotect.acting_as(conn, database.user(1), "DE"):
                assert user(conn) == database.user(1)
            assert user(conn) == "x"


@KINDS
def test_a_block_of_the_same_context_outlives_a_savepoint_and_a_commit(database: Database, kind: str) -> None:
    with database.engine("seller_de") as engine, made(engine, kind) as conn:
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            savepoint = conn.begin_nested()
            with leadprotect.acting_as(conn, database.user(1), "DE"):
                savepoint.rollback()
                assert user(conn) == database.user(1)
                conn.commit()
                assert user(conn) == database.user(1)
            conn.commit()
            assert user(conn) == database.user(1)
        assert stands(conn) == NOBODY


def test_blocks_of_the_same_context_that_end_out_of_order_leave_nobody(database: Database) -> None:
    with database.engine("seller_de") as engine, engine.connect() as conn:
        outer, inner = (leadprotect.acting_as(conn, database.user(1), "DE") for _ in range(2))
        outer.__enter__()
        inner.__enter__()
        for block in (outer, inner):
            with pytest.raises(ContextOutOfOrder):
                block.__exit__(None, None, None)
        assert stands(conn) == NOBODY
