"""What a user can cause in a server, caused for real: one sentence that says what it is and what helps."""

from __future__ import annotations

import re
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from click.testing import CliRunner

from leadprotect import settings
from leadprotect.cli import main
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.database.statements import rows
from leadprotect.errors import (
    ConnectionUnusable,
    InvalidRequest,
    LeadProtectError,
    LockUnavailable,
    ProtectionUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.database import Database

    Cause = Callable[[Database, psycopg.Connection[Any]], object]

pytestmark = pytest.mark.profiles("pg18")


@dataclass(frozen=True)
class Caused:
    """How it is caused, our class for it, and how its sentence helps."""

    cause: Cause
    kind: type[LeadProtectError]
    helps: str


@contextmanager
def another(database: Database, *statements: str) -> Iterator[psycopg.Connection[Any]]:
    with database.connect() as conn:
        for statement in statements:
            database.query(conn, statement)
        yield conn
        conn.rollback()


def waits_for_a_lock(database: Database, conn: psycopg.Connection[Any]) -> None:
    with another(database, "LOCK TABLE {leads} IN ACCESS EXCLUSIVE MODE"):
        conn.execute("SET lock_timeout = '10ms'")
        database.query(conn, "SELECT FROM {leads}")


def was_overtaken(database: Database, conn: psycopg.Connection[Any]) -> None:
    lead = database.lead("DE")
    with conn.transaction():
        conn.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        database.query(conn, "SELECT FROM {leads}")
        database.sql_script(f"UPDATE {{leads}} SET city = 'Bern' WHERE {{lead_id}} = '{lead}'")
        database.query(conn, "UPDATE {leads} SET city = 'Basel' WHERE {lead_id} = %s", lead)


def locks_crosswise(database: Database, conn: psycopg.Connection[Any]) -> None:
    """The server ends whoever has waited for deadlock_timeout first: the other one waits with a longer one."""
    first, second = database.lead("DE"), database.lead("DE")
    lock = "SELECT FROM {leads} WHERE {lead_id} = %s FOR UPDATE"
    with conn.transaction(), another(database, "SET deadlock_timeout = '60s'") as other:
        conn.execute("SET LOCAL deadlock_timeout = '50ms'")
        database.query(conn, lock, first)
        database.query(other, lock, second)
        pid = other.info.backend_pid
        thread = threading.Thread(target=database.query, args=(other, lock, first))
        thread.start()
        waits = "SELECT wait_event_type IS NOT DISTINCT FROM 'Lock' FROM pg_stat_activity WHERE pid = %s"
        try:
            while database.sql(waits, pid) != [True]:
                pass
            database.query(conn, lock, second)
        finally:
            with suppress(psycopg.Error):
                conn.execute("ROLLBACK")
            thread.join()


def goes_on_in_a_failed_transaction(_: Database, conn: psycopg.Connection[Any]) -> None:
    conn.execute("BEGIN")
    with suppress(psycopg.Error):
        conn.execute("SELECT 1 / 0")
    conn.execute("SELECT 1")


CASES = {
    "22P02": Caused(lambda _, conn: conn.execute("SELECT 'x'::uuid"), InvalidRequest, "lead_id_type"),
    "22003": Caused(lambda _, conn: conn.execute("SELECT '99999999999'::integer"), InvalidRequest, "lead_id_type"),
    "22008": Caused(lambda _, conn: conn.execute("SELECT '2026-02-30'::date"), InvalidRequest, "no time that there is"),
    "25006": Caused(
        lambda database, conn: (
            conn.execute("SET default_transaction_read_only = on"), database.query(conn, "DELETE FROM {leads}"),
        ),
        ConnectionUnusable, "needs the primary",
    ),
    "40001": Caused(was_overtaken, LockUnavailable, "roll back and try again"),
    "40P01": Caused(locks_crosswise, LockUnavailable, "roll back and try again"),
    "55P03": Caused(waits_for_a_lock, LockUnavailable, "roll back and try again"),
    "57014": Caused(
        lambda _, conn: conn.execute("SET statement_timeout = '1ms'; SELECT pg_sleep(9)"), ConnectionUnusable,
        "raise that, or try again",
    ),
    "57P01": Caused(
        lambda _, conn: conn.execute("SELECT pg_terminate_backend(pg_backend_pid())"), ConnectionUnusable,
        "connect anew",
    ),
    "25P02": Caused(goes_on_in_a_failed_transaction, ConnectionUnusable, "roll it back first"),
    "42P01": Caused(lambda _, conn: conn.execute("SELECT FROM gone"), ProtectionUnavailable, "alembic upgrade head"),
    "3F000": Caused(lambda _, conn: conn.execute("CREATE TABLE a.t ()"), ProtectionUnavailable, "alembic upgrade head"),
    "42883": Caused(lambda _, conn: conn.execute("SELECT gone()"), ProtectionUnavailable, "alembic upgrade head"),
    "42703": Caused(
        lambda database, conn: database.query(conn, "SELECT gone FROM {leads}"), ProtectionUnavailable,
        "leadprotect pin status",
    ),
    "26000": Caused(lambda _, conn: conn.execute("EXECUTE gone"), ConnectionUnusable, "pool in session mode"),
}  # fmt: skip


@pytest.mark.parametrize("state", CASES)
def test_what_a_user_can_cause_has_a_class_and_a_sentence_that_helps(database: Database, state: str) -> None:
    case = CASES[state]
    with (
        psycopg.connect(database.url, autocommit=True) as conn,
        pytest.raises(LeadProtectError, match=re.escape(case.helps)) as caught,
        mapped_errors(),
    ):
        case.cause(database, conn)
    assert (case.kind, state) == (type(caught.value), getattr(caught.value.__cause__, "sqlstate", None))


def test_a_denied_function_is_told_with_the_grant_that_helps(database: Database) -> None:
    office, login = database.settings.role("operator"), database.profile.login("outsider")
    refused = run(database.login_url("outsider"), "audit", "seal")
    assert f'A DBA can run: GRANT "{office}" TO "{login}";' in refused
    database.sql(f'GRANT "{office}" TO "{login}"')
    try:
        assert "rows sealed" in run(database.login_url("outsider"), "audit", "seal")
    finally:
        database.sql(f'REVOKE "{office}" FROM "{login}"')


def test_a_session_without_row_security_is_told_of_that_and_of_no_role(database: Database) -> None:
    with database.connect("seller_de") as conn:
        conn.execute("SET row_security = off")
        query = database.text("SELECT FROM {schema}.user_lead_assignments")
        with pytest.raises(ProtectionUnavailable, match="RESET row_security") as caught, conn.transaction():
            rows(conn, query)
        assert "role" not in str(caught.value)
        conn.execute("RESET row_security")
        assert rows(conn, query) == []


def run(url: str, *words: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", url)
        settings.current.cache_clear()
        ran = CliRunner().invoke(main, words)
    settings.current.cache_clear()
    assert ran.exception is None or isinstance(ran.exception, SystemExit), ran.exception
    return ran.output


def test_no_such_database_login_or_server_is_told_with_what_tries_the_same(database: Database) -> None:
    """libpq tells no SQLSTATE of these, and nobody parses its text: it is repeated, without a password."""
    login = database.profile.login("outsider")
    database.sql(f'ALTER ROLE "{login}" CONNECTION LIMIT 0')
    try:
        unreached = {
            "does not exist": run(database.server.url("no_such_database"), "status"),
            "no_such_login": run(database.server.url(database.name, "no_such_login"), "status"),
            "too many connections": run(database.login_url("outsider"), "status"),
            "refused": run("postgresql://somebody:secret@127.0.0.1:1/nowhere", "status"),
        }
    finally:
        database.sql(f'ALTER ROLE "{login}" CONNECTION LIMIT -1')
    for told, said in unreached.items():
        assert said.startswith("Error: no connection to the database: ")
        assert told in said
        assert "DATABASE_URL; what tries the same: psql -h " in said
    assert "secret" not in "".join(unreached.values())


def test_a_statement_that_no_command_was_ready_for_is_an_error_and_no_stack_trace(database: Database) -> None:
    database.sql("DROP FUNCTION {schema}.backfill_status() CASCADE")
    said = run(database.url, "backfill", "status")
    assert said.startswith("Error: ")
    assert "Traceback" not in said


def test_a_value_of_the_user_is_not_repeated(database: Database) -> None:
    with database.connect() as conn, pytest.raises(InvalidRequest) as caught:
        rows(conn, "SELECT %s::uuid", ("a secret",))
    assert "secret" not in str(caught.value)
