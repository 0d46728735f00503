"""One test per rule of env.py; the command runs as a process wherever its output or its end matters."""

from __future__ import annotations

import logging
import re
import signal
import subprocess
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from alembic import command
from alembic.util import CommandError
from sqlalchemy import Engine, create_engine, event, pool

from leadprotect.migration import gate
from tests.support.alembic import COMMAND, alembic, started, until, waiting
from tests.support.database import ROOT
from tests.support.revisions import CONTRACT, HEAD, NAMED, REVISIONS, SCRIPTS
from tests.support.revisions import MIGRATE_HEAD as MIGRATE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.database import Database

ONE_SERVER = pytest.mark.profiles("pg18")
RUNNING = re.compile(r"Running (?:upgrade|downgrade) .*-> (\w*)")

REFUSE_VIEWS = """
CREATE FUNCTION public.refuse() RETURNS event_trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'no views today' USING DETAIL = 'row (12, secret)', HINT = 'try tomorrow'; END $$;
CREATE EVENT TRIGGER refuse_views ON ddl_command_start WHEN TAG IN ('CREATE VIEW') EXECUTE FUNCTION public.refuse();
"""
NOTE_TIMEOUTS = """
CREATE TABLE public.ddl (tag text, lock_timeout text, search_path text);
CREATE FUNCTION public.note() RETURNS event_trigger LANGUAGE plpgsql SECURITY DEFINER AS
$$ BEGIN
  INSERT INTO public.ddl VALUES (TG_TAG, current_setting('lock_timeout'), current_setting('search_path'));
END $$;
-- not of DROP INDEX CONCURRENTLY, which must be the first action of its transaction
CREATE EVENT TRIGGER note_timeouts ON ddl_command_start
WHEN TAG IN ('ALTER TABLE', 'CREATE FUNCTION', 'CREATE INDEX', 'CREATE POLICY', 'CREATE TRIGGER', 'DROP TRIGGER')
EXECUTE FUNCTION public.note();
"""


@contextmanager
def blocker(database: Database, statement: str, name: str = "nightly report") -> Iterator[psycopg.Connection[Any]]:
    """A session that holds its locks until the end of the block, or until it is committed."""
    with psycopg.connect(database.url, application_name=name) as conn:
        database.query(conn, statement)
        yield conn


def engine_of(database: Database) -> Engine:
    return create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(database.url), poolclass=pool.NullPool
    )


def upgrade_with(database: Database, engine: Any, revision: str = "head", **x: str) -> None:
    config = database.config(**x)
    config.attributes["connection"] = engine
    command.upgrade(config, revision)


# --- one transaction per revision


@pytest.mark.nightly_elsewhere("by day each revision is undone and done again there")
def test_a_revision_that_fails_leaves_those_before_it(host: Database) -> None:
    host.sql_script(REFUSE_VIEWS)
    done = alembic(host, "upgrade", "head")
    assert done.returncode != 0
    assert "no views today. try tomorrow (SQLSTATE P0001)" in done.stderr
    assert "secret" not in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    failed = next(script for script in SCRIPTS if "CREATE VIEW" in Path(script.path).read_text(encoding="utf-8"))
    assert host.revision() == failed.down_revision
    made_before_its_view = "SELECT to_regproc('{schema}.has_rules')"
    assert host.sql(made_before_its_view) == [None]
    host.sql("DROP EVENT TRIGGER refuse_views")
    host.upgrade()
    assert host.revision() == HEAD
    assert host.sql(made_before_its_view) != [None]


# --- locks


@ONE_SERVER
def test_every_step_waits_100_ms_for_a_lock_whatever_the_step_before_it_set(host: Database) -> None:
    host.sql_script(NOTE_TIMEOUTS)
    host.upgrade(HEAD, lock_budget="77s")
    host.downgrade("base", lock_budget="77s")
    host.sql("DROP EVENT TRIGGER note_timeouts")
    found = host.sql("SELECT DISTINCT tag, lock_timeout FROM public.ddl")
    quick = {"ALTER TABLE", "CREATE FUNCTION", "CREATE POLICY", "CREATE TRIGGER", "DROP TRIGGER"}
    assert {tag for tag, timeout in found if timeout == "100ms"} - {"CREATE INDEX"} == quick
    # a build on a host table blocks nobody while it waits: as long as the budget lasts
    assert {tag for tag, timeout in found if timeout != "100ms"} == {"CREATE INDEX"}
    # the second is that of our functions
    assert set(host.sql("SELECT search_path FROM public.ddl")) == {"pg_catalog", "pg_catalog, pg_temp"}


@ONE_SERVER
def test_a_lock_that_is_held_for_a_while_is_tried_again_and_its_holder_named(host: Database) -> None:
    host.upgrade(NAMED["expand_indexes"])
    write = "UPDATE {leads} SET city = 'Zürich' WHERE city = 'secret'"
    with blocker(host, write) as conn, started(host, "upgrade", MIGRATE) as process:
        pid = conn.info.backend_pid
        said = until(process, f"blocked by pid {pid} ")  # on a busy machine an attempt ends before anybody has looked
        assert f"blocked by pid {pid} (nightly report, idle in transaction, transaction " in said
        assert 'UPDATE "public"."leads" SET city = ? WHERE city = ?' in said
        assert "trying again" in said
        assert "secret" not in said
        conn.commit()
        process.communicate()
        assert process.returncode == 0
    assert host.revision() == MIGRATE


@ONE_SERVER
def test_live_traffic_gets_through_between_two_attempts(host: Database) -> None:
    lead = host.lead("DE")
    host.upgrade(NAMED["expand_indexes"])
    with (
        blocker(host, "LOCK TABLE {leads} IN ROW EXCLUSIVE MODE") as conn,
        started(host, "upgrade", MIGRATE) as process,
    ):
        until(process, "trying again")
        # a writer that would queue behind CREATE TRIGGER: it never waits longer than one attempt
        host.sql("SET lock_timeout = '2s'; UPDATE {leads} SET city = 'Bern'")
        assert host.sql("SELECT city FROM {leads} WHERE {lead_id} = %s", lead) == ["Bern"]
        conn.commit()
        process.communicate()
        assert process.returncode == 0


@ONE_SERVER
def test_without_the_lock_the_budget_ends_in_one_clear_error(host: Database) -> None:
    host.upgrade(NAMED["expand_indexes"])
    with blocker(host, "LOCK TABLE {leads} IN ACCESS SHARE MODE") as reader:
        with blocker(host, "LOCK TABLE {leads} IN SHARE MODE") as conn:
            done = alembic(host, "-x", "lock_budget=1s", "upgrade", "head")
            assert done.returncode != 0
            assert f"no lock within the budget of 1 s; blocked by pid {conn.info.backend_pid}" in done.stderr
            assert "Nothing is half done" in done.stderr
            assert "Traceback" not in done.stderr
            assert host.revision() == NAMED["expand_indexes"]
        # readers are in nobody's way
        assert alembic(host, "-x", "lock_budget=1s", "upgrade", MIGRATE).returncode == 0
        reader.commit()


@ONE_SERVER
def test_an_index_build_says_for_whom_it_waits_and_ends_with_the_budget(host: Database) -> None:
    host.upgrade(NAMED["expand_rules"])
    with blocker(host, "LOCK TABLE {leads} IN ROW EXCLUSIVE MODE") as conn:
        done = alembic(host, "-x", "lock_budget=1s", "upgrade", "head")
        assert done.returncode != 0
        assert (
            f"no lock within the budget of 1 s; blocked by pid {conn.info.backend_pid} (nightly report" in done.stderr
        )
    assert index_validity(host) == [False]
    host.upgrade(MIGRATE)
    assert index_validity(host) == [True, True]


@ONE_SERVER
@pytest.mark.parametrize("text", ["", "soon", "-1s", "1 month", "60 s s"])
def test_a_bad_lock_budget_is_refused(host: Database, text: str) -> None:
    with pytest.raises(CommandError, match="-x lock_budget"):
        host.upgrade("head", lock_budget=text)


# --- one upgrade at a time


@ONE_SERVER
@pytest.mark.parametrize("deploys", [2, 5])
@pytest.mark.nightly_elsewhere("an advisory lock is the same on each version")
def test_of_many_upgrades_at_once_one_does_the_work(host: Database, deploys: int) -> None:
    with ExitStack() as stack:
        processes = [stack.enter_context(started(host, "upgrade", "head")) for _ in range(deploys)]
        said = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * deploys
    ran = [RUNNING.findall(text) for text in said]
    assert sorted(ran) == [[]] * (deploys - 1) + [REVISIONS]


@ONE_SERVER
def test_an_upgrade_that_waits_for_another_says_so_and_blocks_no_index_build(host: Database) -> None:
    host.upgrade(NAMED["expand_rules"])
    with blocker(host, "LOCK TABLE {leads} IN ROW EXCLUSIVE MODE") as conn, started(host, "upgrade", "head") as first:
        waiting(host)  # the build waits for the writer, and the second upgrade for the build
        with started(host, "upgrade", "head") as second:
            until(second, "another migration of schema leadprotect is running")
            conn.commit()
            assert [RUNNING.findall(process.communicate()[1])[-1:] for process in (first, second)] == [[HEAD], []]
            assert (first.returncode, second.returncode) == (0, 0)


# --- indexes


def index_validity(database: Database) -> list[bool]:
    return database.sql(
        "SELECT indisvalid FROM pg_index WHERE indexrelid IN "
        "(to_regclass('{leads_index_path}'), to_regclass('{activities_index_path}')) ORDER BY indexrelid"
    )


def test_an_index_that_a_cancelled_build_left_invalid_is_built_again(host: Database) -> None:
    host.upgrade(NAMED["expand_rules"])
    with blocker(host, "LOCK TABLE {leads} IN ROW EXCLUSIVE MODE"), started(host, "upgrade", "head") as process:
        host.sql("SELECT pg_cancel_backend(%s)", waiting(host))
        said = process.communicate()[1]
        assert process.returncode != 0
        assert "canceling statement due to user request (SQLSTATE 57014)" in said
        assert "Traceback" not in said
    assert host.revision() == NAMED["expand_rules"]
    assert index_validity(host) == [False]
    host.upgrade(MIGRATE)
    assert index_validity(host) == [True, True]


# --- nothing before configure()


def test_nothing_is_executed_on_the_migrations_connection_before_it_is_configured(host: Database) -> None:
    order: list[str] = []

    class Configured(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            order.append(record.getMessage())

    engine = engine_of(host)

    def executed(*_: Any) -> None:
        order.append("executed")

    event.listen(engine, "begin", executed)
    event.listen(engine, "before_cursor_execute", executed)
    logger, handler = logging.getLogger("alembic.runtime.migration"), Configured()
    logger.addHandler(handler)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        upgrade_with(host, engine, NAMED["expand_territories"])
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
    assert order[:3] == ["Context impl PostgresqlImpl.", "Will assume transactional DDL.", "executed"]
    assert order.count("Context impl PostgresqlImpl.") == 1


@ONE_SERVER
def test_an_engine_of_the_host_is_used(host: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATABASE_URL")
    upgrade_with(host, engine_of(host))
    assert host.revision() == HEAD


@ONE_SERVER
def test_a_connection_instead_of_an_engine_is_refused(host: Database) -> None:
    with engine_of(host).connect() as connection, pytest.raises(CommandError, match="must be an Engine"):
        upgrade_with(host, connection)


# --- the gate


def close_the_gate(database: Database) -> None:
    """A lead with a qualifying activity that the trigger did not see, because it is older."""
    database.activity(database.lead("DE"), database.user(1))


@pytest.mark.nightly_elsewhere("by day the gate's own tests close it there")
def test_a_closed_gate_stops_before_contract_with_one_warning_that_says_what_to_run(host: Database) -> None:
    close_the_gate(host)
    done = alembic(host, "upgrade", "head")
    warnings = [line for line in done.stderr.splitlines() if line.startswith("WARNING")]
    expected = (
        f"stopped before {CONTRACT}, its gate is closed: "
        "1 leads in DE have a qualifying activity but no owner (leadprotect backfill DE)"
    )
    assert [re.sub(r"^\S+\s+\[\w+\] ", "", line) for line in warnings] == [expected]
    assert done.returncode == 0
    assert host.revision() == MIGRATE
    host.upgrade()  # and again, in the next deploy
    assert host.revision() == MIGRATE


@ONE_SERVER
def test_contract_may_be_required(host: Database) -> None:
    close_the_gate(host)
    done = alembic(host, "-x", "contract=require", "upgrade", "head")
    assert done.returncode != 0
    assert f"{CONTRACT} is required, but its gate is closed: 1 leads in DE" in done.stderr
    assert "Traceback" not in done.stderr
    assert host.revision() == MIGRATE
    host.sql("SELECT {schema}.own_leads('DE', ARRAY(SELECT {schema}.unowned_leads('DE')))")
    host.upgrade("head", contract="require")
    assert host.revision() == HEAD


@ONE_SERVER
def test_contract_may_be_held_back(host: Database, caplog: pytest.LogCaptureFixture) -> None:
    host.upgrade("head", contract="hold")
    assert f"stopped before {CONTRACT}: -x contract=hold" in caplog.text
    assert host.revision() == MIGRATE


@ONE_SERVER
def test_a_script_may_hold_contract_back(host: Database) -> None:
    held = host.script("upgrade", "head", contract="hold")
    assert RUNNING.findall(held)[-1] == MIGRATE
    assert RUNNING.findall(host.script("upgrade", "head")) == REVISIONS


@ONE_SERVER
def test_a_closed_gate_can_not_be_forced(host: Database) -> None:
    close_the_gate(host)
    done = alembic(host, "-x", "contract=force", "upgrade", "head")
    assert done.returncode != 0
    assert "-x contract=force: only waiting or data opens the gate" in done.stderr
    assert "Traceback" not in done.stderr
    assert host.revision() is None


@ONE_SERVER
@pytest.mark.parametrize(("key", "value"), [("contract", ""), ("contrakt", "hold"), ("force", "yes")])
def test_no_argument_is_ignored(host: Database, key: str, value: str) -> None:
    with pytest.raises(CommandError, match=f"-x {key}"):
        host.upgrade("head", **{key: value})
    assert host.revision() is None


@ONE_SERVER
@pytest.mark.parametrize(("contract", "refused"), [("auto", False), ("require", True)])
def test_the_gate_is_asked_again_inside_the_transaction(
    host: Database, contract: str, caplog: pytest.LogCaptureFixture, *, refused: bool
) -> None:
    host.upgrade(MIGRATE)
    lead = host.lead("DE")
    host.activity(lead, host.user(1))
    engine = engine_of(host)

    @event.listens_for(engine, "before_cursor_execute")
    def close_it_meanwhile(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "require_open_gate(" in statement:
            host.sql("DELETE FROM {schema}.user_lead_assignments")

    if refused:
        with pytest.raises(CommandError, match="the gate of contract is closed: 1 leads in DE"):
            upgrade_with(host, engine, contract=contract)
    else:
        upgrade_with(host, engine, contract=contract)
        assert "the gate of contract is closed: 1 leads in DE" in caplog.text
    assert host.revision() == MIGRATE


@ONE_SERVER
def test_the_gate_is_asked_once_before_the_first_contract_revision_and_then_in_the_transaction_of_each(
    host: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    before = gate.conditions

    def outside(*given: Any, **more: Any) -> Any:
        asked.append("outside")
        return before(*given, **more)

    monkeypatch.setattr(gate, "conditions", outside)
    engine = engine_of(host)

    @event.listens_for(engine, "before_cursor_execute")
    def inside(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "require_open_gate(" in statement and "CREATE" not in statement:
            asked.append("inside")

    upgrade_with(host, engine)
    assert ["outside", *["inside"] * len(REVISIONS[REVISIONS.index(CONTRACT) :])] == asked
    assert host.revision() == HEAD


# --- every deploy, and the other commands


@ONE_SERVER
def test_upgrading_twice_is_quiet(host: Database) -> None:
    assert RUNNING.findall(alembic(host, "upgrade", "head").stderr) == REVISIONS
    again = alembic(host, "upgrade", "head")
    assert (again.returncode, RUNNING.findall(again.stderr)) == (0, [])
    assert again.stderr.count("Context impl") == 1


@ONE_SERVER
def test_the_other_commands_of_alembic_work(host: Database, capfd: pytest.CaptureFixture[str]) -> None:
    command.current(host.config())
    assert capfd.readouterr().out == ""
    assert host.sql("SELECT to_regnamespace({schema_name})") == [None]
    host.upgrade(MIGRATE)
    command.current(host.config())
    assert capfd.readouterr().out.strip() == MIGRATE
    command.heads(host.config())
    assert capfd.readouterr().out.strip() == f"{HEAD} (leadprotect) (head)"
    command.history(host.config(), f"{NAMED['expand_rules']}:current")
    assert re.findall(r"-> (\w+)", capfd.readouterr().out) == list(
        reversed(REVISIONS[REVISIONS.index(NAMED["expand_rules"]) : REVISIONS.index(MIGRATE) + 1])
    )
    command.stamp(host.config(), NAMED["expand_activity_triggers"], purge=True)
    assert host.revision() == NAMED["expand_activity_triggers"]


@ONE_SERVER
def test_a_downgrade_of_some_steps_goes_no_further_after_a_retry(database: Database) -> None:
    shared = "LOCK TABLE {activities} IN SHARE MODE"
    with blocker(database, shared) as conn, started(database, "downgrade", "-2") as process:
        until(process, "trying again")
        conn.commit()
        assert RUNNING.findall(process.communicate()[1])[-1] == REVISIONS[-3]
        assert process.returncode == 0
    assert database.revision() == REVISIONS[-3]


@ONE_SERVER
def test_the_hosts_own_alembic_is_left_alone(host: Database) -> None:
    host.sql_script(
        "CREATE TABLE public.alembic_version (version_num text); INSERT INTO public.alembic_version VALUES ('abc')"
    )
    host.upgrade()
    host.downgrade()
    assert host.sql("SELECT * FROM public.alembic_version") == ["abc"]


@ONE_SERVER
def test_an_ini_file_without_loggers_and_without_settings_is_enough(host: Database, tmp_path: Path) -> None:
    (tmp_path / "alembic.ini").write_text(
        f"[alembic]\nscript_location = {host.config().get_main_option('script_location')}\n"
    )
    close_the_gate(host)
    done = alembic(host, "upgrade", "head", cwd=tmp_path)
    assert done.returncode == 0
    assert done.stderr.count("its gate is closed") == 1


# --- a mistake is answered in one sentence


@ONE_SERVER
def test_a_refusal_is_said_once_on_a_terminal(host: Database) -> None:
    message = "-x contract=now: only waiting or data opens the gate"
    arguments = ("-x", "contract=now", "upgrade", "head")
    terminal = subprocess.run(
        [*COMMAND, *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    assert (terminal.returncode != 0, terminal.stdout.count(message)) == (True, 1)
    apart = alembic(host, *arguments)  # who reads but one of them misses nothing
    assert (apart.stdout.count(message), apart.stderr.count(message)) == (1, 1)


SECRET = "correct-horse"  # noqa: S105 - it must not show up anywhere


@ONE_SERVER
@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"DATABASE_URL": f"postgresql://me:a@{SECRET}@db/crm"}, "percent-encode it"),
        ({"DATABASE_URL": f"postgresql://me:{SECRET}@127.0.0.1:1/crm"}, "no connection to the database"),
        ({"LEADPROTECT_NO_SUCH_KEY": "1"}, "LEADPROTECT_NO_SUCH_KEY"),
    ],
)
def test_a_mistake_is_named_without_a_stack_trace_and_without_a_password(
    host: Database, environ: dict[str, str], expected: str
) -> None:
    done = alembic(host, "upgrade", "head", environ=environ)
    assert done.returncode != 0
    assert expected in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert host.revision() is None


@ONE_SERVER
@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"DATABASE_URL": ""}, "database_url is missing"),
        ({"DATABASE_URL": f"mysql://me:{SECRET}@db/crm"}, "database_url is not a URL"),
        ({"DATABASE_URL": f"postgresql://me:{SECRET}@host.invalid/crm"}, "no connection to the database"),
        ({"LEADPROTECT_LEADS_TABLE": "leads"}, "leads_table"),
        ({"LEADPROTECT_LEADS_TABLE": "public.clients"}, "leads_table: there is no table public.clients"),
        (
            {"LEADPROTECT_VERSION_TABLE": "leads", "LEADPROTECT_VERSION_TABLE_SCHEMA": "public"},
            "public.leads exists and belongs to postgres, not to leadprotect_owner",
        ),
        ({"LEADPROTECT_VERSION_TABLE_SCHEMA": "nowhere"}, "there is no schema nowhere"),
    ],
)
def test_every_mistake_becomes_an_error_that_alembic_prints(
    host: Database, environ: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CommandError) as caught:
        host.upgrade()
    assert expected in str(caught.value)
    assert SECRET not in str(caught.value)


@ONE_SERVER
def test_an_unknown_revision_is_named(host: Database) -> None:
    with pytest.raises(CommandError, match="lp_9999_contract_nothing"):
        host.upgrade("lp_9999_contract_nothing")


@ONE_SERVER
def test_a_lost_connection_is_told_and_the_same_command_goes_on(host: Database) -> None:
    host.upgrade(NAMED["expand_indexes"])
    with blocker(host, "LOCK TABLE {leads} IN SHARE MODE"), started(host, "upgrade", "head") as process:
        host.sql("SELECT pg_terminate_backend(%s)", waiting(host))
        said = process.communicate()[1]
        assert process.returncode != 0
        assert "no connection to the database" in said
        assert "run the same command again" in said
        assert "Traceback" not in said
    host.upgrade()
    assert host.revision() == HEAD


@ONE_SERVER
def test_ctrl_c_while_an_index_waits_says_so_too(host: Database) -> None:
    host.upgrade(NAMED["expand_rules"])
    with host.connect() as writer:
        host.query(writer, "UPDATE {leads} SET {territory} = {territory}")
        with started(host, "upgrade", "head") as process:
            waiting(host)
            process.send_signal(signal.SIGINT)
            said = process.communicate()[1]
    assert process.returncode != 0
    assert "interrupted; nothing is half done" in said
    assert "no connection" not in said
    assert "Traceback" not in said
    host.upgrade()
    assert host.revision() == HEAD


@ONE_SERVER
def test_ctrl_c_says_that_nothing_is_half_done(host: Database) -> None:
    host.upgrade(NAMED["expand_indexes"])
    with blocker(host, "LOCK TABLE {leads} IN SHARE MODE"), started(host, "upgrade", "head") as process:
        until(process, "trying again")
        process.send_signal(signal.SIGINT)
        said = process.communicate()[1]
        assert process.returncode != 0
        assert "interrupted; nothing is half done" in said
        assert "Traceback" not in said
    host.upgrade()
    assert host.revision() == HEAD


@ONE_SERVER
def test_settings_are_read_before_the_database_is_asked(host: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@host.invalid/nothing")
    monkeypatch.setenv("LEADPROTECT_HOST_RLS", "perhaps")
    with pytest.raises(CommandError, match="host_rls"):
        host.upgrade()
