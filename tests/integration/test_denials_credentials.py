"""A denial is recorded after a change of password, with credentials that rotate, and by few connections."""

from __future__ import annotations

import itertools
import os
import stat
import sys
import threading
import time
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import psycopg
import pytest
from sqlalchemy import create_engine, event, pool
from sqlalchemy.orm import Session

import leadprotect
from leadprotect import settings
from leadprotect.access import denials, ways
from tests.support import passwords

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.database import Database
    from tests.support.passwords import Login

pytestmark = pytest.mark.profiles("pg18", "pg15")


@pytest.fixture
def login(database: Database) -> Iterator[Login]:
    ways.close()
    with passwords.login(database) as made:
        yield made
        ways.close()


def denied(database: Database, conn: Any, lead: Any) -> None:
    with leadprotect.acting_as(conn, database.user(1), "DE"), pytest.raises(leadprotect.LeadAccessDenied):
        leadprotect.assert_edit(conn, lead)
    conn.rollback()


def recorded(database: Database) -> int:
    found: int = database.sql("SELECT count(*) FROM {schema}.lead_access_audit WHERE outcome = 'DENY'")[0]
    return found


def own_sessions(database: Database) -> int:
    found: int = database.sql(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'leadprotect audit' AND datname = %s",
        database.name,
    )[0]
    return found


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("leadprotect-audit")]


def lost(database: Database, login: Login) -> None:
    """What a restart or an idle timeout does to the connection of the denials."""
    database.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
        "WHERE application_name = 'leadprotect audit' AND usename = %s",
        login.name,
    )


def unrecorded(database: Database, conn: Any, lead: Any) -> str:
    """What is said where no credentials are good, and at once: what waits as long as it may outlasts the test."""
    with patch.object(denials, "TIMEOUT_S", 3600.0), leadprotect.acting_as(conn, database.user(1), "DE"):
        with pytest.raises(leadprotect.AuditUnavailable, match="no answer is given") as caught:
            leadprotect.assert_edit(conn, lead)
    conn.rollback()
    return str(caught.value)


def test_with_a_password_that_is_good_no_more_it_is_said_at_once_and_why(database: Database, login: Login) -> None:
    """The control of all others here: nothing that they use is there, and nothing is recorded."""
    lead = database.lead("DE", owner=database.user(2))
    with login.connect() as conn:
        old, _ = login.password, login.change()
        said = unrecorded(database, conn, lead)
    assert f'password authentication failed for user "{login.name}"' in said
    assert "a function in the setting database_url" in said
    assert old not in said
    assert login.password not in said
    assert 0 == recorded(database)


def test_a_new_connection_of_the_caller_brings_its_password(database: Database, login: Login) -> None:
    lead = database.lead("DE", owner=database.user(2))
    for number in range(1, 4):
        with login.connect() as conn:
            denied(database, conn, lead)
            lost(database, login)
            denied(database, conn, lead)
            login.change()
            denied(database, conn, lead)  # the connection of the denials stands, as the caller's does
        lost(database, login)
        assert 3 * number == recorded(database)


@pytest.mark.parametrize("way", ["do_connect", "creator", "creator without a pool"])
def test_the_caller_s_engine_knows_the_password_of_now(database: Database, login: Login, way: str) -> None:
    lead = database.lead("DE", owner=database.user(2))
    if way == "do_connect":
        query = {"host": database.server.host, "user": login.name}
        engine = create_engine(
            f"postgresql+psycopg:///{database.name}", connect_args=query, pool_size=1, max_overflow=0
        )

        @event.listens_for(engine, "do_connect")
        def token(_dialect: Any, _record: Any, _args: Any, parameters: dict[str, Any]) -> None:
            parameters["password"] = login.password
    else:
        kind = pool.QueuePool if way == "creator" else pool.NullPool
        engine = create_engine("postgresql+psycopg://", creator=login.connect, poolclass=kind)
    with Session(engine) as session:
        session.connection()
        login.change()
        denied(database, session, lead)
    with engine.connect() as conn:
        login.change()
        lost(database, login)
        denied(database, conn, lead)
    engine.dispose()
    assert 2 == recorded(database)
    assert 1 == own_sessions(database)


def test_an_engine_that_gives_the_caller_s_own_connection_records_nothing_on_it(
    database: Database, login: Login
) -> None:
    lead = database.lead("DE", owner=database.user(2))
    with login.connect() as only:
        engine = create_engine("postgresql+psycopg://", creator=lambda: only, poolclass=pool.StaticPool)
        with engine.connect() as conn:
            login.change()
            assert "password authentication failed" in unrecorded(database, conn, lead)
            assert 1 == conn.exec_driver_sql("SELECT 1").scalar()
    assert 0 == recorded(database)


def test_libpq_s_password_file_is_read_anew(
    database: Database, login: Login, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead, file = database.lead("DE", owner=database.user(2)), tmp_path / "pgpass"

    def write() -> None:
        file.write_text(f"*:*:*:{login.name}:{login.password}\n", encoding="utf-8")
        file.chmod(stat.S_IRUSR | stat.S_IWUSR)

    write()
    monkeypatch.setenv("PGPASSFILE", str(file))
    with login.connect(password=None) as conn:
        login.change()
        write()
        denied(database, conn, lead)
    assert 1 == recorded(database)


def test_a_service_file_is_read_anew(
    database: Database, login: Login, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead, file = database.lead("DE", owner=database.user(2)), tmp_path / "pg_service.conf"

    def write() -> None:
        lines = ["[crm]", f"host={database.server.host}", f"dbname={database.name}", f"user={login.name}"]
        file.write_text("\n".join([*lines, f"password={login.password}", ""]), encoding="utf-8")

    write()
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    with psycopg.connect("service=crm") as conn:
        login.change()
        write()
        denied(database, conn, lead)
    assert 1 == recorded(database)


@pytest.mark.parametrize("user", ["same", "another"])
def test_the_function_of_the_setting_is_asked_for_the_same_login_only(
    database: Database, login: Login, monkeypatch: pytest.MonkeyPatch, user: str
) -> None:
    lead = database.lead("DE", owner=database.user(2))
    asked = itertools.count()

    class Vault:
        @staticmethod
        def url() -> str:
            next(asked)
            return login.url() if user == "same" else database.url

    monkeypatch.setitem(sys.modules, "vault_of_the_host", Vault)
    monkeypatch.setenv("DATABASE_URL", "vault_of_the_host:url")
    settings.current.cache_clear()
    with login.connect() as conn:
        login.change()
        if user == "same":
            denied(database, conn, lead)
        else:
            assert "password authentication failed" in unrecorded(database, conn, lead)
    assert next(asked) > 0
    assert (user == "same") == recorded(database)


def test_twenty_five_passwords_are_one_way_and_two_threads(database: Database, login: Login) -> None:
    lead = database.lead("DE", owner=database.user(2))
    for _ in range(25):
        login.change()
        with login.connect() as conn:
            denied(database, conn, lead)
    assert 25 == recorded(database)
    assert 1 == own_sessions(database)
    assert len(threads()) <= 2


def test_the_number_of_ways_is_bounded(database: Database) -> None:
    """A login each, as where every user of the host has one."""
    lead = database.lead("DE", owner=database.user(2))
    names = [f"{database.profile.name}_many_{number}" for number in range(ways.WAYS + 4)]
    for name in names:
        database.sql(f'CREATE ROLE "{name}" LOGIN IN ROLE "{database.profile.login("seller_de")}"')
    try:
        for name in names:
            with psycopg.connect(database.server.url(database.name, name)) as conn:
                denied(database, conn, lead)
        assert len(names) == recorded(database)
        assert own_sessions(database) <= ways.WAYS
    finally:
        ways.close()
        for name in names:
            database.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", name)
            database.sql(f'DROP ROLE "{name}"')


def test_what_is_idle_is_closed_and_its_thread_ends(
    database: Database, login: Login, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ways, "IDLE_S", 0.2)
    lead = database.lead("DE", owner=database.user(2))
    with login.connect() as conn:
        denied(database, conn, lead)
        until(lambda: own_sessions(database) == 0 and threads() == [])
        denied(database, conn, lead)
    assert 2 == recorded(database)


def test_a_child_of_a_fork_ends_no_session_of_its_parent(database: Database, login: Login) -> None:
    lead = database.lead("DE", owner=database.user(2))
    with login.connect() as conn:
        denied(database, conn, lead)
    (pid,) = database.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'leadprotect audit'")
    child = os.fork()
    if not child:
        ways.close()
        os._exit(0)
    os.waitpid(child, 0)
    with login.connect() as conn:
        denied(database, conn, lead)
    assert [pid] == database.sql("SELECT pid FROM pg_stat_activity WHERE application_name = 'leadprotect audit'")


@pytest.mark.parametrize("limit", ["statement_timeout = '25ms'", "default_transaction_isolation = 'serializable'"])
def test_limits_of_the_login_are_for_its_services(database: Database, login: Login, limit: str) -> None:
    lead = database.lead("DE", owner=database.user(2))
    with login.connect() as conn:
        database.sql(f'ALTER ROLE "{login.name}" SET {limit}')
        database.sql(
            "CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN PERFORM pg_sleep(0.05); RETURN NEW; END$$"
        )
        database.sql(
            "CREATE TRIGGER slow BEFORE INSERT ON {schema}.lead_access_audit "
            "FOR EACH ROW EXECUTE FUNCTION public.slow()"
        )
        denied(database, conn, lead)
    assert 1 == recorded(database)


def until(condition: Any) -> None:
    while not condition():
        time.sleep(0.05)
