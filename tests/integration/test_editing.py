"""leadprotect.editing: context, assertion, the service's statements and the commit in one round trip of psycopg."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg.pq import TransactionStatus

import leadprotect
from leadprotect import ContextMissing, InvalidRequest, LeadAccessDenied, aio
from leadprotect.access import pipelines
from leadprotect.access.context import declared
from tests.support.database import Database

PROFILES = pytest.mark.profiles("pg18", "other_names")


def rename(database: Database, city: str = "Köln") -> Any:
    return database.text(f"UPDATE {{leads}} SET city = '{city}' WHERE {{lead_id}} = %s")


def cities(database: Database) -> list[str | None]:
    return database.sql("SELECT city FROM {leads} ORDER BY {lead_id}")


@pytest.mark.parametrize("autocommit", [False, True])
def test_an_edit_is_asserted_recorded_and_committed(database: Database, autocommit: bool) -> None:  # noqa: FBT001
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de", autocommit=autocommit) as conn:
        with leadprotect.editing(conn, lead, database.user(1), "DE", "request 7", note="moved"):
            done = conn.execute(rename(database), (lead,))
        assert 1 == done.rowcount
        assert TransactionStatus.IDLE == conn.info.transaction_status
        assert autocommit is conn.autocommit
        assert [None, None, None] == [value or None for value in declared(conn)]
    assert ["Köln"] == cities(database)
    assert [("EDIT", "ALLOW", "owner", "request 7", "moved")] == database.audit(
        "action::text, outcome::text, reason, correlation_id, note"
    )


def test_a_denied_edit_does_nothing_and_is_recorded(database: Database) -> None:
    """Row security is off here, so that nothing but the assertion stops the statement."""
    lead = database.lead("DE", owner=database.user(2))
    database.sql("ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY")
    database.sql("ALTER TABLE {leads} DISABLE TRIGGER USER")
    with database.connect("seller_de") as conn:
        with pytest.raises(LeadAccessDenied) as caught:
            with leadprotect.editing(conn, lead, database.user(1), "DE"):
                conn.execute(rename(database), (lead,))
        assert "not_owner" == caught.value.decision.reason
        assert TransactionStatus.IDLE == conn.info.transaction_status
        assert [None] == cities(database)
        assert [("EDIT", "DENY", "not_owner")] == database.audit()
        # the connection is as good as before
        with leadprotect.editing(conn, lead, database.user(2), "DE"):
            conn.execute(rename(database), (lead,))
    assert ["Köln"] == cities(database)


def test_without_the_guard_it_would_be_done(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control."""
    lead = database.lead("DE", owner=database.user(2))
    database.sql("ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY")
    database.sql("ALTER TABLE {leads} DISABLE TRIGGER USER")
    monkeypatch.setattr(pipelines, "_GUARD", "SELECT 1")
    with database.connect("seller_de") as conn, pytest.raises(LeadAccessDenied):
        with leadprotect.editing(conn, lead, database.user(1), "DE"):
            conn.execute(rename(database), (lead,))
    assert ["Köln"] == cities(database)


def test_a_block_that_asks_for_a_result_is_denied_there(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(2))
    reached = []
    with database.connect("seller_de") as conn:
        with pytest.raises(LeadAccessDenied):
            with leadprotect.editing(conn, lead, database.user(1), "DE"):
                reached.append(conn.execute("SELECT 1").fetchone())
        assert [] == reached
        with pytest.raises(LeadAccessDenied):
            with leadprotect.editing(conn, lead, database.user(1), "DE"), suppress(psycopg.Error):
                conn.execute("SELECT 1").fetchone()
    assert [None] == cities(database)
    assert [("EDIT", "DENY", "not_owner")] * 2 == database.audit()


def test_a_block_that_raises_is_rolled_back_with_its_record(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn:
        for statement, error in [
            ("SELECT FROM nowhere", psycopg.errors.UndefinedTable),
            ("SELECT 1/0", psycopg.errors.DivisionByZero),
        ]:
            with pytest.raises(error), leadprotect.editing(conn, lead, database.user(1), "DE"):
                conn.execute(rename(database), (lead,)).connection.execute(statement)
        with suppress(ZeroDivisionError), leadprotect.editing(conn, lead, database.user(1), "DE"):
            conn.execute(rename(database), (lead,))
            raise ZeroDivisionError
        assert TransactionStatus.IDLE == conn.info.transaction_status
    assert [None] == cities(database)
    assert [] == database.audit()


def test_a_block_that_hides_its_failure_is_told_that_nothing_was_committed(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn:
        with pytest.raises(leadprotect.ConnectionUnusable, match="nothing was committed"):
            with leadprotect.editing(conn, lead, database.user(1), "DE"), suppress(psycopg.Error):
                conn.execute("SELECT 1/0").fetchone()
        assert TransactionStatus.IDLE == conn.info.transaction_status


def test_a_block_that_raises_although_it_is_denied_is_denied(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(2))
    with database.connect("seller_de") as conn:
        with pytest.raises(LeadAccessDenied):
            with leadprotect.editing(conn, lead, database.user(1), "DE"):
                raise ZeroDivisionError
    assert [("EDIT", "DENY", "not_owner")] == database.audit()


def test_the_transaction_is_as_the_connection_says(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with leadprotect.editing(conn, lead, database.user(1), "DE"):
            asked = conn.execute("SELECT current_setting('transaction_isolation')")
        assert ("repeatable read",) == asked.fetchone()


def test_what_fails_at_the_commit_is_told(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    database.sql(
        "CREATE TABLE public.one (id int, UNIQUE (id) DEFERRABLE INITIALLY DEFERRED); GRANT ALL ON public.one TO PUBLIC"
    )
    with database.connect("seller_de") as conn:
        with pytest.raises(psycopg.errors.UniqueViolation):
            with leadprotect.editing(conn, lead, database.user(1), "DE"):
                conn.execute("INSERT INTO public.one VALUES (1), (1)")
        assert TransactionStatus.IDLE == conn.info.transaction_status
    assert [] == database.audit()


def test_it_begins_outside_any_transaction_on_a_connection_of_psycopg(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn:
        conn.execute("SELECT 1")
        with pytest.raises(InvalidRequest, match="a transaction is under way"):
            with leadprotect.editing(conn, lead, database.user(1), "DE"):
                pytest.fail("the block must not run")
        assert TransactionStatus.INTRANS == conn.info.transaction_status
    with database.engine("seller_de") as engine, engine.connect() as core:
        with pytest.raises(InvalidRequest, match="has pipelines"):
            with leadprotect.editing(core, lead, database.user(1), "DE"):  # type: ignore[arg-type]
                pytest.fail("the block must not run")


def test_what_is_passed_is_checked_before_anything_is_sent(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn:
        for error, given, more in [
            (ContextMissing, (lead, "", "DE"), {}),
            (InvalidRequest, (lead, 7, "DE"), {}),
            (InvalidRequest, (object(), database.user(1), "DE"), {}),
            (InvalidRequest, (lead, database.user(1), "DE"), {"action": "LOOK"}),
            (InvalidRequest, (lead, database.user(1), "DE"), {"note": "\0"}),
        ]:
            with pytest.raises(error):
                with leadprotect.editing(conn, *given, **more):  # type: ignore[arg-type]
                    pytest.fail("the block must not run")
        assert TransactionStatus.IDLE == conn.info.transaction_status


def test_where_nothing_is_installed_no_answer_is_one(database: Database) -> None:
    database.downgrade("base")
    with database.connect("seller_de") as conn, pytest.raises(leadprotect.ProtectionUnavailable):
        with leadprotect.editing(conn, database.new_id(), database.user(1), "DE"):
            conn.execute("SELECT 1")


@pytest.mark.profiles("pg18")
def test_it_waits_for_the_server_once(database: Database, tmp_path: Path) -> None:
    """Counted by what libpq sends: after each Sync the client waits."""
    lead = database.lead("DE", owner=database.user(1))

    def waits(conn: psycopg.Connection[Any], edit: Callable[[], object]) -> int:
        with (tmp_path / "trace").open("w") as trace:
            conn.pgconn.trace(trace.fileno())
            edit()
            conn.pgconn.untrace()
        sent = (tmp_path / "trace").read_text()
        return len(re.findall(r"^(?:\S+ \S+\t)?F\t\d+\t(?:Sync|Query)", sent, re.MULTILINE))

    def at_once() -> None:
        with leadprotect.editing(conn, lead, database.user(1), "DE"):
            conn.execute(rename(database), (lead,))

    def one_by_one() -> None:
        with conn.transaction(), leadprotect.acting_as(conn, database.user(1), "DE"):
            leadprotect.assert_edit(conn, lead)
            conn.execute(rename(database), (lead,))

    with database.connect("seller_de") as conn:
        assert [1, 6] == [waits(conn, at_once), waits(conn, one_by_one)]


@pytest.mark.profiles("pg18")
def test_an_asynchronous_edit_is_the_same(database: Database) -> None:
    mine, theirs = database.lead("DE", owner=database.user(1)), database.lead("DE", owner=database.user(2))

    async def edit() -> list[str]:
        reasons: list[str] = []
        async with await psycopg.AsyncConnection.connect(database.login_url("seller_de")) as conn:
            async with aio.editing(conn, mine, database.user(1), "DE"):
                await conn.execute(rename(database), (mine,))
            for body in (None, ZeroDivisionError, "SELECT 1/0"):
                try:
                    async with aio.editing(conn, theirs, database.user(1), "DE"):
                        await conn.execute(rename(database), (theirs,))
                        if isinstance(body, str):
                            await (await conn.execute(body)).fetchone()
                        elif body:
                            raise body
                except LeadAccessDenied as error:
                    reasons.append(error.decision.reason)
            assert TransactionStatus.IDLE == conn.info.transaction_status
        return reasons

    assert ["not_owner"] * 3 == asyncio.run(edit())
    assert ["Köln", None] == cities(database)
    assert [("EDIT", "ALLOW", "owner"), *[("EDIT", "DENY", "not_owner")] * 3] == database.audit()


@pytest.mark.profiles("pg18")
def test_a_task_that_is_cancelled_inside_edits_nothing(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))

    async def cancelled() -> None:
        async with await psycopg.AsyncConnection.connect(database.login_url("seller_de")) as conn:
            inside = asyncio.Event()

            async def edit() -> None:
                async with aio.editing(conn, lead, database.user(1), "DE"):
                    await conn.execute(rename(database), (lead,))
                    inside.set()
                    await asyncio.sleep(30)

            task = asyncio.create_task(edit())
            await inside.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert TransactionStatus.IDLE == conn.info.transaction_status

    asyncio.run(cancelled())
    assert [None] == cities(database)
    assert [] == database.audit()
