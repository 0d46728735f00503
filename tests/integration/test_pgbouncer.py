"""The library behind a transaction pooler: a session of the server is anybody's from one transaction to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, pool
from sqlalchemy.orm import Session

import leadprotect
from leadprotect import settings
from leadprotect.cli import main
from leadprotect.database import opening
from leadprotect.errors import AuditUnavailable, ContextMissing, LeadAccessDenied
from tests.support.database import Database
from tests.support.topology import pooler

pytestmark = pytest.mark.profiles("pg18")

CLIENTS = 8
ROUNDS = 10

Connect = Callable[[], "psycopg.Connection[Any]"]


@contextmanager
def pooled(database: Database, *, size: int) -> Iterator[Connect]:
    """A function that connects as seller_de through PgBouncer in transaction mode."""
    login = database.profile.login("seller_de")
    with pooler(database.server, "transaction", logins=(login,), size=size) as front:
        # what psycopg asks for where the pooler knows no prepared statements (PgBouncer before 1.21)
        yield lambda: psycopg.connect(front.url(database.name, login), prepare_threshold=None)


def server_session(conn: psycopg.Connection[Any]) -> int:
    row = conn.execute("SELECT pg_backend_pid()").fetchone()
    assert row is not None
    return int(row[0])


def test_everything_works_behind_one_server_session(database: Database) -> None:
    lead, free = database.lead("DE", owner=database.user(1)), database.lead("DE")
    with pooled(database, size=1) as connect, connect() as conn:
        with conn.transaction(), leadprotect.acting_as(conn, database.user(1), "DE", "request 7"):
            assert leadprotect.can_edit(conn, lead) is True
            assert {lead: True, free: False} == leadprotect.can_edit_many(conn, [lead, free])
            assert [lead] == [decision.lead_id for decision in leadprotect.editable_leads(conn).leads]
            assert "owner" == leadprotect.assert_edit(conn, lead).reason
            assert "owner" == leadprotect.claim(conn, free).reason
        assert leadprotect.can_edit(conn, free, user_id=database.user(1), territory="DE") is True
    assert [("owner", "request 7"), ("owner", "request 7")] == database.audit("reason, correlation_id")


def test_the_context_of_one_client_is_not_the_next_one_s(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with pooled(database, size=1) as connect, connect() as first, connect() as second:
        with first.transaction():
            session = server_session(first)
            with leadprotect.acting_as(first, database.user(1), "DE"):
                assert leadprotect.can_edit(first, lead) is True
        with second.transaction():
            assert session == server_session(second)  # the control: the same session of the server
            with pytest.raises(ContextMissing):
                leadprotect.can_edit(second, lead)
            assert [0] == database.query(second, "SELECT count(*) FROM {leads}")
        # a transaction that fails with its context leaves none behind either
        database.context(first, database.user(1), "DE")
        with pytest.raises(psycopg.errors.DivisionByZero):
            first.execute("SELECT 1 / 0")
        first.rollback()
        with second.transaction(), pytest.raises(ContextMissing):
            leadprotect.can_edit(second, lead)


def test_a_setting_of_the_session_would_leak(database: Database) -> None:
    """The control: what the library never does, and why."""
    lead = database.lead("DE", owner=database.user(1))
    with pooled(database, size=1) as connect, connect() as first, connect() as second:
        with first.transaction():
            for guc, value in (("user_guc", database.user(1)), ("territory_guc", "DE")):
                database.query(first, f"SELECT set_config({{{guc}}}, %s, false)", value)
        with second.transaction():
            assert leadprotect.can_edit(second, lead) is True


def test_many_clients_share_two_sessions_and_each_gets_its_own_answers(database: Database) -> None:
    leads = {user: database.lead("DE", owner=database.user(user)) for user in range(1, CLIENTS + 1)}

    def client(connect: Connect, user: int) -> set[tuple[int, bool]]:
        answers = set()
        with connect() as conn:
            for number in range(ROUNDS):
                asked = number % CLIENTS + 1
                with conn.transaction(), leadprotect.acting_as(conn, database.user(user), "DE"):
                    answers.add((asked, leadprotect.can_edit(conn, leads[asked])))
                    leadprotect.assert_edit(conn, leads[user])
        return answers

    with pooled(database, size=2) as connect, ThreadPoolExecutor(CLIENTS) as clients:
        found = list(clients.map(lambda user: client(connect, user), range(1, CLIENTS + 1)))
    for user, answers in enumerate(found, 1):
        assert {(asked, asked == user) for asked in range(1, CLIENTS + 1)} == answers
    recorded = database.sql("SELECT user_id::text, count(*) FROM {schema}.lead_access_audit GROUP BY 1 ORDER BY 1")
    assert [(database.user(user), ROUNDS) for user in range(1, CLIENTS + 1)] == recorded


def test_a_session_of_sqlalchemy_works_as_well(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with pooled(database, size=1) as connect:
        engine = create_engine("postgresql+psycopg://", creator=connect, poolclass=pool.NullPool)
        with Session(engine) as session, session.begin(), leadprotect.acting_as(session, database.user(1), "DE"):
            assert leadprotect.can_edit(session, lead) is True
            leadprotect.assert_edit(session, lead)
        engine.dispose()
    assert [("owner",)] == [(reason,) for reason in database.audit("reason")]


def denied(connect: Connect, database: Database, lead: Any, user: int) -> None:
    with connect() as conn:
        with leadprotect.acting_as(conn, database.user(user), "DE"), pytest.raises(LeadAccessDenied):
            leadprotect.assert_edit(conn, lead)
        conn.rollback()


def test_denials_go_past_a_pooler_whose_sessions_are_all_taken(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead = database.lead("DE", owner=database.user(99))
    monkeypatch.setenv("LEADPROTECT_AUDIT_URL", f"postgresql:///?host={database.server.host}")
    settings.current.cache_clear()
    users = range(1, CLIENTS + 1)
    with pooled(database, size=2) as connect, ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(lambda user: denied(connect, database, lead, user), users))
    found = database.sql("SELECT user_id::text, login, reason FROM {schema}.lead_access_audit ORDER BY 1")
    login = database.profile.login("seller_de")
    assert [(database.user(user), login, "not_owner") for user in users] == found


def test_a_denial_goes_through_a_pooler_that_has_a_session_to_spare(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(99))
    with pooled(database, size=2) as connect:
        denied(connect, database, lead, 1)
    assert ["not_owner"] == database.audit("reason")


def test_a_full_pooler_is_a_denial_in_time_and_not_a_deadlock(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(2))
    with pooled(database, size=1) as connect, connect() as conn:
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            with pytest.raises(AuditUnavailable, match="audit_url"):
                leadprotect.assert_edit(conn, lead)
        conn.rollback()
        # the only session is free again, and so is the next answer
        with leadprotect.acting_as(conn, database.user(2), "DE"):
            assert leadprotect.can_edit(conn, lead) is True


def settings_of(conn: psycopg.Connection[Any]) -> list[Any]:
    return [conn.execute(f"SHOW {name}").fetchone() for name in [*opening.PINNED, "lock_timeout"]]


def test_a_command_is_refused_and_leaves_no_setting_of_ours_to_the_next_client(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = database.profile.login("operator")
    with pooler(database.server, "transaction", logins=(login,), size=2) as front:
        url = front.url(database.name, login)
        with psycopg.connect(url, autocommit=True) as one, psycopg.connect(url, autocommit=True) as two:
            before = [settings_of(one), settings_of(two)]
            monkeypatch.setenv("DATABASE_URL", url)
            settings.current.cache_clear()
            answer = CliRunner().invoke(main, ["status"])
            assert (1, True) == (answer.exit_code, "leads to a transaction pooler" in answer.output)
            # both sessions of the server, whichever client has which
            with one.transaction(), two.transaction():
                assert before == [settings_of(one), settings_of(two)]


def test_a_setting_that_is_not_asked_whose_session_it_is_would_leak(database: Database) -> None:
    """The control: what a pin would do that did not look."""
    with pooled(database, size=1) as connect, connect() as first, connect() as second:
        first.autocommit = second.autocommit = True
        before = settings_of(second)
        opening.pin(first, pid=server_session(first))
        assert before != settings_of(second)
