"""An attempt leaves its record: allowed with the edit, denied whatever the caller does then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest
from psycopg_pool import ConnectionPool
from sqlalchemy.orm import Session

import leadprotect
from leadprotect.access import ways
from leadprotect.access.context import declared
from leadprotect.errors import LockUnavailable
from tests.support.database import Database
from tests.support.tracing import in_a_trace


def denied(conn: object, lead: object) -> str:
    with pytest.raises(leadprotect.LeadAccessDenied) as caught:
        leadprotect.assert_edit(conn, lead)  # type: ignore[arg-type]
    return caught.value.decision.reason


def test_an_allowed_attempt_is_recorded_in_the_caller_s_transaction(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn:
        with leadprotect.acting_as(conn, database.user(1), "DE", "request 1"):
            assert leadprotect.assert_edit(conn, lead, note="call back").reason == "owner"
        conn.rollback()
        assert database.audit() == []
        with leadprotect.acting_as(conn, database.user(1), "DE", "request 1"):
            leadprotect.assert_edit(conn, lead, note="call back")
    columns = "user_id::text, login, territory, action::text, outcome::text, reason, note, correlation_id"
    login = database.profile.login("seller_de")
    assert database.audit(columns) == [
        (database.user(1), login, "DE", "EDIT", "ALLOW", "owner", "call back", "request 1")
    ]


def test_a_denial_outlives_the_rollback_of_its_transaction(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(2))
    with database.connect("seller_de") as conn:
        with leadprotect.acting_as(conn, database.user(1), "DE", "request 2"):
            assert denied(conn, lead) == "not_owner"
        conn.rollback()
    columns = "user_id::text, login, territory, action::text, outcome::text, reason, correlation_id"
    login = database.profile.login("seller_de")
    assert database.audit(columns) == [(database.user(1), login, "DE", "EDIT", "DENY", "not_owner", "request 2")]


def test_a_denial_outlives_the_rollback_to_a_savepoint(database: Database) -> None:
    lead = database.lead("DE")
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        with conn.transaction(force_rollback=True):
            assert denied(conn, lead) == "unassigned"
    assert database.audit() == [("EDIT", "DENY", "unassigned")]


def test_a_denial_leaves_the_caller_s_transaction_usable(database: Database) -> None:
    mine, other = (database.lead("DE", owner=database.user(number)) for number in (1, 2))
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        denied(conn, other)
        assert leadprotect.assert_edit(conn, mine).reason == "owner"
    assert database.audit() == [("EDIT", "DENY", "not_owner"), ("EDIT", "ALLOW", "owner")]


KILLED = """
import os, signal, sys, psycopg, leadprotect
conn = psycopg.connect(sys.argv[1])
with leadprotect.acting_as(conn, sys.argv[2], "DE"):
    try:
        leadprotect.assert_edit(conn, sys.argv[3])
    except leadprotect.LeadAccessDenied:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_denial_outlives_a_client_that_is_killed_right_after_the_answer(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(2))
    arguments = [database.login_url("seller_de"), database.user(1), str(lead)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    assert database.audit() == [("EDIT", "DENY", "not_owner")]


def test_the_audit_tells_apart_what_the_answer_hides(database: Database) -> None:
    elsewhere, unknown = database.lead("CH", owner=database.user(1)), database.new_id()
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        answers = []
        for lead in (elsewhere, unknown):
            with pytest.raises(leadprotect.LeadAccessDenied) as caught:
                leadprotect.assert_edit(conn, lead)
            answers.append(str(caught.value).replace(str(lead), "LEAD"))
    assert answers[0] == answers[1]
    assert database.audit("reason") == ["other_territory", "unknown_lead"]


@pytest.mark.profiles("pg18", "pg15")
def test_a_malformed_user_is_recorded_with_what_he_declared(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, "nobody", "DE"):
        assert denied(conn, lead) == "no_context"
    assert database.audit("user_id, reason, note") == [(None, "no_context", "declared user 'nobody'")]


def test_an_attempt_in_a_context_that_was_set_in_sql_has_the_trace_it_was_made_in(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = (database.lead("DE", owner=database.user(number)) for number in (1, 2))
    with database.connect("seller_de") as conn:
        database.context(conn, database.user(1), "DE")
        for number in (1, 2):
            in_a_trace(monkeypatch, number)
            leadprotect.assert_edit(conn, mine)
            denied(conn, other)
            leadprotect.share(conn, mine, database.user(3))
            assert declared(conn) == (database.user(1), "DE", "")
        with leadprotect.acting_as(conn, database.user(1), "DE", "request 3"):
            leadprotect.assert_edit(conn, mine)
            assert declared(conn)[2] == "request 3"
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            leadprotect.assert_edit(conn, mine)
            assert declared(conn)[2] == f"{2:032x}"
    traces = [f"{number:032x}" for number in (1, 2)]
    ids = [(trace, call) for trace in traces for call in ("owner", "not_owner", "owner")]
    assert [*ids, ("request 3", "owner"), (traces[1], "owner")] == database.audit("correlation_id, reason")


def test_without_a_context_there_is_no_attempt_in_a_trace_either(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_a_trace(monkeypatch, 1)
    lead = database.lead("DE")
    with database.connect("manager_de") as conn:
        for call in (leadprotect.assert_edit, leadprotect.release):
            with pytest.raises(leadprotect.ContextMissing):
                call(conn, lead)
    assert database.audit() == []


def test_an_attempt_on_no_lead_leaves_no_row(database: Database) -> None:
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        assert denied(conn, None) == "not_found"
    assert database.audit() == []


def test_denials_never_wait_for_the_caller_s_own_pool(database: Database) -> None:
    """Eight threads share a pool of two, and every one of them is denied while it holds its connection."""
    lead = database.lead("DE", owner=database.user(2))
    together = threading.Barrier(2)
    with ConnectionPool(database.login_url("seller_de"), min_size=2, max_size=2, open=True) as pool:

        def attempt(number: int) -> str:
            with pool.connection(timeout=120) as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
                if number < 2:
                    together.wait(timeout=120)
                return denied(conn, lead)

        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(attempt, range(40))) == {"not_owner"}
    assert database.sql("SELECT count(*) FROM {schema}.lead_access_audit") == [40]


def test_a_pool_of_one_does_not_wait_for_itself(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(2))
    with ConnectionPool(database.login_url("seller_de"), min_size=1, max_size=1, open=True) as pool:
        with pool.connection() as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
            assert denied(conn, lead) == "not_owner"


@pytest.mark.nightly_elsewhere("by day every other denial is recorded there")
def test_a_denial_that_can_t_be_recorded_is_no_answer_but_a_denial(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(2))
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        login = database.profile.login("seller_de")
        database.sql(f'ALTER ROLE "{login}" CONNECTION LIMIT 0')
        try:
            with pytest.raises(leadprotect.AuditUnavailable, match="no answer is given"):
                leadprotect.assert_edit(conn, lead)
        finally:
            database.sql(f'ALTER ROLE "{login}" CONNECTION LIMIT -1')


BROKEN_AUDITS = {
    "constraint": "ALTER TABLE {schema}.lead_access_audit ADD CONSTRAINT broken CHECK (false) NOT VALID",
    "guard": (
        "CREATE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN RAISE EXCEPTION 'no'; END$$; CREATE TRIGGER refuse BEFORE INSERT ON {schema}.lead_access_audit "
        "FOR EACH ROW EXECUTE FUNCTION public.refuse()"
    ),
    "policy": "DROP POLICY lp_inside ON {schema}.lead_access_audit",
    "privilege": "REVOKE ALL ON {schema}.lead_access_audit FROM {owner}",
    "column": "ALTER TABLE {schema}.lead_access_audit RENAME COLUMN note TO remark",
    "table": "DROP TABLE {schema}.lead_access_audit CASCADE",
}


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("broken", BROKEN_AUDITS.values(), ids=BROKEN_AUDITS.keys())
def test_a_permission_that_can_t_be_recorded_is_no_answer_but_a_denial(database: Database, broken: str) -> None:
    lead = database.lead("DE", owner=database.user(1))
    database.sql_script(broken)
    for call in (leadprotect.assert_edit, leadprotect.release):
        with database.acting("seller_de", 1) as conn:
            with pytest.raises(leadprotect.AuditUnavailable, match="no answer is given"):
                call(conn, lead)
            conn.rollback()
    assert database.owner(lead) == database.user(1)


def test_a_login_that_may_not_call_is_told_of_its_role_and_not_of_the_audit(database: Database) -> None:
    with database.connect("outsider") as conn:
        with pytest.raises(leadprotect.ProtectionUnavailable, match="lacks the role") as caught:
            leadprotect.assert_edit(conn, database.new_id())
    assert type(caught.value) is leadprotect.ProtectionUnavailable


def test_who_was_slower_is_told_to_try_again(database: Database) -> None:
    lead = database.lead("DE")
    with database.connect("seller_de") as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            with database.acting("seller_de", 2) as other:
                leadprotect.claim(other, lead)
            with pytest.raises(LockUnavailable, match="roll back and try again"):
                leadprotect.claim(conn, lead)
            conn.rollback()


@pytest.fixture
def broker(database: Database) -> Iterator[str]:
    """A login that holds the roles of a seller only through another role, which it must take on."""
    name, seller = f"{database.profile.name}_broker", database.profile.login("seller_de")
    database.sql(f'CREATE ROLE "{name}" LOGIN NOINHERIT IN ROLE "{seller}"')
    yield name
    ways.close()
    database.sql(f'DROP ROLE "{name}"')


def test_a_denial_is_recorded_with_the_role_that_the_caller_took_on(database: Database, broker: str) -> None:
    lead, seller = database.lead("DE", owner=database.user(2)), database.profile.login("seller_de")
    with psycopg.connect(database.server.url(database.name, broker)) as conn:
        conn.execute(f'SET ROLE "{seller}"')
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            assert denied(conn, lead) == "not_owner"
            with pytest.raises(leadprotect.LeadAccessDenied):
                leadprotect.claim(conn, lead)
        with leadprotect.acting_as(conn, database.user(2), "DE"):
            leadprotect.assert_edit(conn, lead)
    rows = [("DENY", broker, seller), ("DENY", broker, seller), ("ALLOW", broker, seller)]
    assert rows == database.audit("outcome::text, login, role")


def test_a_role_that_was_taken_on_is_laid_down_before_the_next_denial(database: Database) -> None:
    lead, login = database.lead("DE", owner=database.user(2)), database.profile.login("seller_de")
    roles = []
    with database.acting("seller_de", 1) as conn:
        for role in (database.settings.role("app"), "none"):
            conn.execute(f'SET ROLE "{role}"' if role != "none" else "RESET ROLE")
            denied(conn, lead)
            roles.append(role if role != "none" else login)
    assert [(login, role) for role in roles] == database.audit("login, role")


def test_a_denial_of_a_superuser_who_acts_as_a_login_is_that_login_s(database: Database) -> None:
    lead, login = database.lead("DE", owner=database.user(2)), database.profile.login("seller_de")
    with database.connect() as conn:
        conn.execute(f'SET SESSION AUTHORIZATION "{login}"')
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            assert denied(conn, lead) == "not_owner"
    assert [(login, login)] == database.audit("login, role")


def test_a_session_of_sqlalchemy_gets_durable_denials_too(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(2))
    with database.engine("seller_de") as engine, Session(engine) as session:
        with leadprotect.acting_as(session, database.user(1), "DE"):
            assert denied(session, lead) == "not_owner"
        session.rollback()
    assert database.audit() == [("EDIT", "DENY", "not_owner")]


def test_an_unknown_action_is_refused(database: Database) -> None:
    with (
        database.connect("seller_de") as conn,
        pytest.raises(leadprotect.InvalidRequest, match="'DELETE' is not one of"),
    ):
        leadprotect.assert_edit(conn, database.new_id(), action="DELETE")  # type: ignore[arg-type]


# --- plain SQL


def test_in_sql_an_attempt_is_recorded_without_raising(database: Database) -> None:
    mine, other = (database.lead("DE", owner=database.user(number)) for number in (1, 2))
    with database.connect("seller_de") as conn:
        database.context(conn, database.user(1), "DE")
        answers = [
            database.query(conn, "SELECT {schema}.record_edit_attempt(%s)", lead)[0] for lead in (mine, other, None)
        ]
    assert answers == [True, False, False]
    assert database.audit() == [("EDIT", "ALLOW", "owner"), ("EDIT", "DENY", "not_owner")]


def test_in_sql_a_raised_denial_leaves_a_gap_in_the_numbers(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(2))
    with database.connect("seller_de") as conn:
        database.context(conn, database.user(1), "DE")
        with pytest.raises(psycopg.Error) as caught:
            database.query(conn, "SELECT {schema}.assert_edit_and_audit(%s)", lead)
    assert (caught.value.sqlstate, caught.value.diag.message_detail) == ("LP403", "not_owner")
    assert database.audit() == []
    assert database.sql("SELECT last_value FROM {schema}.lead_access_audit_id_seq") == [1]
    with database.connect("seller_de") as conn:
        database.context(conn, database.user(1), "DE")
        database.query(conn, "SELECT {schema}.record_edit_attempt(%s)", lead)
    assert database.audit("id") == [2]


def test_a_denial_can_t_be_forged_into_an_allowance(database: Database) -> None:
    lead = database.lead("DE")
    with database.connect("seller_de") as conn, pytest.raises(psycopg.Error) as caught:
        database.query(conn, "SELECT {schema}.record_denial(%s, 'EDIT', 'owner')", lead)
    assert caught.value.sqlstate == "LP422"


def test_a_denial_can_t_be_forged_about_another_territory(database: Database) -> None:
    swiss = database.lead("CH", owner=database.user(2))
    forge = "SELECT {schema}.record_denial(%s, 'EDIT', %s, 'forged')"
    with database.connect("seller_de", autocommit=True) as conn:
        for reason in ("suspended", "unassigned", "not_owner"):
            with conn.transaction(force_rollback=True):
                database.context(conn, database.user(1), "CH")
                with pytest.raises(psycopg.errors.DatabaseError) as refused:
                    database.query(conn, forge, swiss, reason)
            assert refused.value.sqlstate == "LP422"
        with conn.transaction():
            database.context(conn, database.user(1), "CH")
            database.query(conn, forge, swiss, "not_found")
    assert database.audit("reason") == ["other_territory"]


def test_in_sql_an_attempt_without_an_action_is_an_edit(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(2))
    with database.connect("seller_de") as conn:
        database.context(conn, database.user(1), "DE")
        assert database.query(conn, "SELECT {schema}.record_edit_attempt(%s, NULL, 'x')", lead) == [False]
    assert database.audit() == [("EDIT", "DENY", "not_owner")]
