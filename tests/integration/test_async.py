"""Async services call the same functions through run_sync, on their own session."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

import leadprotect
from leadprotect.access import denials

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy.orm import Session

    from tests.support.database import Database


def with_session(database: Database, use: Callable[[AsyncSession], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        query = {"host": database.server.host, "user": database.profile.login("seller_de")}
        engine = create_async_engine(f"postgresql+psycopg:///{database.name}", connect_args=query)
        try:
            async with async_sessionmaker(engine).begin() as session:
                return await use(session)
        finally:
            await engine.dispose()

    return asyncio.run(run())


def test_an_async_session_asks_asserts_and_edits(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))

    def edit(session: Session) -> str:
        with leadprotect.acting_as(session, database.user(1), "DE"):
            decision = leadprotect.assert_edit(session, lead)
            session.execute(text(database.text("UPDATE {leads} SET city = 'Köln'")))
        return decision.reason

    assert with_session(database, lambda session: session.run_sync(edit)) == "owner"
    assert database.sql("SELECT city FROM {leads}") == ["Köln"]


def test_a_denial_in_an_async_session_outlives_its_rollback(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(2))

    def edit(session: Session) -> None:
        with leadprotect.acting_as(session, database.user(1), "DE"):
            leadprotect.assert_edit(session, lead)

    with pytest.raises(leadprotect.LeadAccessDenied):
        with_session(database, lambda session: session.run_sync(edit))
    assert database.audit() == [("EDIT", "DENY", "not_owner")]


def test_can_edit_is_called_as_it_is(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    ask = {"user_id": database.user(1), "territory": "DE"}
    assert with_session(database, lambda session: session.run_sync(leadprotect.can_edit, lead, **ask)) is True


def test_a_denial_that_waits_for_its_record_keeps_nobody_else_waiting(database: Database) -> None:
    """A thread holds the audit back; meanwhile the other tasks of the event loop go on."""
    lead = database.lead("DE", owner=database.user(2))

    def edit(session: Session) -> None:
        with leadprotect.acting_as(session, database.user(1), "DE"):
            leadprotect.assert_edit(session, lead)

    async def attempt(session: AsyncSession) -> int:
        beats = 0
        with database.connect() as holder:
            database.query(holder, "LOCK TABLE {schema}.lead_access_audit IN ACCESS EXCLUSIVE MODE")
            denial = asyncio.create_task(session.run_sync(edit))
            while beats < 20 and not denial.done():
                await asyncio.sleep(0.01)
                beats += 1
            holder.rollback()
        with pytest.raises(leadprotect.LeadAccessDenied):
            await denial
        return beats

    assert with_session(database, attempt) == 20
    assert database.audit() == [("EDIT", "DENY", "not_owner")]


def test_a_denial_that_is_not_recorded_in_time_is_no_answer(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead = database.lead("DE", owner=database.user(2))
    monkeypatch.setattr(denials, "TIMEOUT_S", 0.2)

    def edit(session: Session) -> None:
        with leadprotect.acting_as(session, database.user(1), "DE"):
            leadprotect.assert_edit(session, lead)

    with database.connect() as holder:
        database.query(holder, "LOCK TABLE {schema}.lead_access_audit IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(leadprotect.AuditUnavailable, match="could not be recorded within"):
            with_session(database, lambda session: session.run_sync(edit))
