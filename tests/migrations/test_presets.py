"""What a DBA presets for logins and databases, encodings and event triggers: it works, or is answered by name."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from alembic.util import CommandError
from click.testing import CliRunner

import leadprotect
from leadprotect.cli import main
from leadprotect.database import opening
from leadprotect.database.connection import connect
from leadprotect.errors import ConnectionUnusable, InvalidRequest, PreflightError
from tests.conftest import use
from tests.support.alembic import alembic
from tests.support.database import Database
from tests.support.leads import old_leads, owners
from tests.support.revisions import HEAD, MIGRATE_HEAD

if TYPE_CHECKING:
    from collections.abc import Iterator

PROFILES = pytest.mark.profiles("pg18", "pg15")

PRESETS = {
    "statement_timeout": "'25ms'",
    "lock_timeout": "'1ms'",
    "idle_session_timeout": "'50ms'",
    "idle_in_transaction_session_timeout": "'50ms'",
    "client_encoding": "'SQL_ASCII'",
    "search_path": "'nowhere'",
    "row_security": "off",
    "default_transaction_isolation": "'serializable'",
    "standard_conforming_strings": "off",
    "quote_all_identifiers": "on",
    '"DateStyle"': "'German, DMY'",
    '"IntervalStyle"': "'sql_standard'",
    "session_replication_role": "'replica'",
}


def run(*arguments: str) -> str:
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == 0, done.output
    return done.output


@contextmanager
def presets(database: Database, *values: tuple[str, str]) -> Iterator[None]:
    for name, value in values:
        database.sql(f'ALTER DATABASE "{database.name}" SET {name} = {value}')
    yield
    with psycopg.connect(database.server.url(), autocommit=True) as conn:
        conn.execute(f'ALTER DATABASE "{database.name}" RESET ALL')


@PROFILES
@pytest.mark.parametrize("preset", PRESETS.items(), ids=PRESETS)
def test_a_preset_changes_nothing_of_what_we_open(host: Database, preset: tuple[str, str]) -> None:
    known = {**opening.PINNED, "lock_timeout": "1min", "session_replication_role": "origin"}
    with connect(host.settings) as conn:
        plain = [conn.execute(f"SHOW {name}").fetchone() for name in known]
    with presets(host, preset):
        with connect(host.settings) as conn:
            assert plain == [conn.execute(f"SHOW {name}").fetchone() for name in known]
        with host.connect() as conn:  # the control: it is there for everybody else
            assert plain != [conn.execute(f"SHOW {name}").fetchone() for name in known]


@PROFILES
@pytest.mark.nightly_elsewhere("by day the shapes of a host live there")
def test_with_every_preset_at_once_the_whole_life_is_as_ever(host: Database) -> None:
    wanted = old_leads(host, 400)
    with presets(host, *PRESETS.items()):
        assert alembic(host, "upgrade", MIGRATE_HEAD).returncode == 0
        assert "DE: 400 leads scanned, 350 owners assigned" in run("backfill", "DE", "CH")
        assert "complete" in run("backfill", "DE", "--verify")
        with connect(host.settings) as conn:
            assert {lead: owner for lead, owner in wanted.items() if owner} == dict(
                host.query(conn, "SELECT lead_id, user_id::text FROM {schema}.user_lead_assignments")
            )
        assert alembic(host, "-x", "contract=require", "upgrade", "head").returncode == 0
        status = CliRunner().invoke(main, ["status"])
        # its own session is as ever; those of services are what is dangerous
        assert (1, True) == (status.exit_code, "(the head)" in status.output)
        assert "its sessions begin with session_replication_role = replica" in status.output
        assert "verified" in run("rollback", "--to", "base")
        assert "deleted" in run("purge", "--yes")


@pytest.mark.profiles("pg18")
def test_a_transaction_timeout_is_lifted_where_there_is_one(host: Database) -> None:
    with presets(host, ("transaction_timeout", "'50ms'")), connect(host.settings) as conn:
        with conn.transaction():
            conn.execute("SELECT pg_sleep(0.2)")


@PROFILES
def test_a_login_that_may_not_write_is_refused_before_anything_is_touched(host: Database) -> None:
    """Somebody meant it: it is no limit to be lifted."""
    with presets(host, ("default_transaction_read_only", "on")):
        with pytest.raises(CommandError, match=r"refused before anything was touched(.|\n)*read-only"):
            host.upgrade()
    assert host.revision() is None
    host.upgrade()
    with presets(host, ("default_transaction_read_only", "on")):
        with pytest.raises(CommandError, match=r"refused before anything was touched(.|\n)*read-only"):
            host.downgrade()
        assert "refused" in CliRunner().invoke(main, ["rollback"]).output
    assert host.revision() == HEAD


@PROFILES
def test_triggers_that_a_preset_switches_off_are_named_to_a_login_that_can_t_switch_them_on(host: Database) -> None:
    name = f"{host.profile.name}_switched_off"
    host.sql(f'CREATE ROLE "{name}" LOGIN')
    host.sql(f'ALTER ROLE "{name}" SET session_replication_role = replica')
    try:
        with pytest.raises(PreflightError, match="session_replication_role"):
            opening.open_connection(host.server.url(host.name, name), application="a test")
    finally:
        host.sql(f'DROP ROLE "{name}"')


# --- encodings


@pytest.fixture
def ascii_database(host: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Database]:
    """A database in SQL_ASCII: the server converts nothing, and the driver gives bytes for text."""
    name = f"{host.name}_ascii"
    with psycopg.connect(host.server.url(), autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE \"{name}\" TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    made = Database(host.server, host.profile, name)
    use(made, monkeypatch)
    try:
        made.create_host_tables()
        yield made
    finally:
        with psycopg.connect(host.server.url(), autocommit=True) as conn:
            conn.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@PROFILES
@pytest.mark.nightly_elsewhere("by day the shapes of a host live there")
def test_in_a_database_without_an_encoding_everything_works(ascii_database: Database) -> None:
    database, wanted = ascii_database, old_leads(ascii_database, 40)
    assert alembic(database, "upgrade", MIGRATE_HEAD).returncode == 0
    database.create_logins()
    run("backfill", "DE", "CH")
    assert wanted == {lead: owner and decoded(owner) for lead, owner in owners(database).items()}
    assert alembic(database, "upgrade", "head").returncode == 0
    lead = next(lead for lead, owner in wanted.items() if owner)
    for more in ({}, {"client_encoding": "UTF8"}):
        with psycopg.connect(database.login_url("seller_de"), **more) as conn:  # type: ignore[arg-type]
            with leadprotect.acting_as(conn, str(wanted[lead]), "DE"):
                assert leadprotect.can_edit(conn, lead)
                assert {lead: True} == leadprotect.can_edit_many(conn, [lead])
                assert "owner" == leadprotect.assert_edit(conn, lead, note="Grüße aus Zürich").reason
            with leadprotect.acting_as(conn, database.user(99), "DE"):
                with pytest.raises(leadprotect.LeadAccessDenied):
                    leadprotect.assert_edit(conn, lead)
    listed = run("audit", "list", "--json")
    assert 2 == listed.count("Gr\\u00fc\\u00dfe aus Z\\u00fcrich") + listed.count("Grüße aus Zürich")
    run("audit", "seal")
    run("audit", "verify")
    run("rollback", "--to", "base")


def decoded(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@PROFILES
def test_text_that_is_no_text_in_such_a_database_is_answered_in_one_sentence(ascii_database: Database) -> None:
    ascii_database.upgrade()
    ascii_database.create_logins()
    with ascii_database.connect(autocommit=True) as conn:
        ascii_database.query(conn, "INSERT INTO {schema}.territories (code, name) VALUES ('AT', E'\\303')")
    for encoding in ("UTF8", "SQL_ASCII"):
        with psycopg.connect(ascii_database.login_url("seller_de"), client_encoding=encoding) as conn:
            with pytest.raises(ConnectionUnusable, match="holds text that is no UTF-8"):
                leadprotect.territory(conn, "AT")


@PROFILES
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
def test_a_client_of_another_encoding_gets_the_same_answers(database: Database, encoding: str) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with psycopg.connect(database.login_url("seller_de"), client_encoding=encoding) as conn:
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            assert leadprotect.can_edit(conn, lead)
            assert [lead] == [decision.lead_id for decision in leadprotect.editable_leads(conn).leads]
            assert "owner" == leadprotect.assert_edit(conn, lead, note="call").reason
            assert "EUR" == leadprotect.territory(conn, "DE").currency
            if encoding != "SQL_ASCII":
                with pytest.raises(InvalidRequest, match="client_encoding; use UTF8"):
                    leadprotect.assert_edit(conn, lead, note="😀")
                assert conn.execute("SELECT 1").fetchone() == (1,)


# --- event triggers of the host


LOG_DDL = """
CREATE TABLE public.ddl_log (tag text);
CREATE FUNCTION public.log_ddl() RETURNS event_trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO public.ddl_log VALUES (TG_TAG); END $$;
CREATE EVENT TRIGGER keep_a_log ON ddl_command_end EXECUTE FUNCTION public.log_ddl();
"""


@PROFILES
@pytest.mark.nightly_elsewhere("by day the shapes of a host live there")
def test_an_event_trigger_that_lacks_a_right_is_named_with_what_to_grant(host: Database) -> None:
    name = f"{host.profile.name}_deployer"
    modern = host.server.major > 15
    host.sql_script(
        f'CREATE ROLE "{name}" LOGIN CREATEROLE; GRANT CREATE ON DATABASE "{host.name}" TO "{name}";'
        f'GRANT CREATE ON SCHEMA public TO "{name}";'
        f'ALTER TABLE {{leads}} OWNER TO "{name}"; ALTER TABLE {{activities}} OWNER TO "{name}"'
    )
    for office in map(host.settings.role, ("owner", "reader")):
        if host.sql("SELECT 1 FROM pg_roles WHERE rolname = %s", office):  # another database of the server made it
            host.sql(f'GRANT "{office}" TO "{name}" WITH ADMIN OPTION' + (", INHERIT TRUE, SET TRUE" if modern else ""))
    environ = {"DATABASE_URL": host.server.url(host.name, name)}
    try:
        host.sql_script(LOG_DDL)
        done = alembic(host, "upgrade", "head", environ=environ)
        assert done.returncode != 0
        assert "permission denied for table ddl_log (SQLSTATE 42501): the event trigger keep_a_log" in done.stderr
        assert "failed in its function public.log_ddl(), not leadprotect" in done.stderr
        assert f"the rights of {name} or leadprotect_owner" in done.stderr
        assert "ALTER FUNCTION public.log_ddl() SECURITY DEFINER;" in done.stderr
        assert "Traceback" not in done.stderr
        host.sql("ALTER FUNCTION public.log_ddl() SECURITY DEFINER")
        assert "event trigger" not in alembic(host, "upgrade", "head", environ=environ).stderr
    finally:
        host.sql_script(
            f'DROP EVENT TRIGGER IF EXISTS keep_a_log; REASSIGN OWNED BY "{name}" TO postgres; DROP OWNED BY "{name}";'
            f'DROP ROLE "{name}"'
        )


@PROFILES
def test_an_event_trigger_that_refuses_is_named(host: Database) -> None:
    host.sql_script(
        "CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'not today'; END $$;"
        "CREATE EVENT TRIGGER no_views ON ddl_command_start WHEN TAG IN ('CREATE VIEW') "
        "EXECUTE FUNCTION public.refuse()"
    )
    with pytest.raises(
        CommandError, match=r"not today \(SQLSTATE P0001\): the event trigger no_views of this database"
    ):
        host.upgrade()
    host.sql("DROP EVENT TRIGGER no_views")
    host.upgrade()
    assert host.revision() == HEAD
