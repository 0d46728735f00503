"""leadprotect rollback and purge: down to a safe revision, nothing lost, nothing open on the way."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from click.testing import CliRunner

import leadprotect
from leadprotect.cli import main
from leadprotect.errors import InvalidRequest, ProtectionUnavailable, RollbackError
from leadprotect.migration.rollback import SAFE, rollback
from tests.support.database import ROOT
from tests.support.fingerprint import contents, difference, fingerprint
from tests.support.leads import without_triggers
from tests.support.profiles import NIGHTLY
from tests.support.revisions import CONTRACT, HEAD, NAMED, REVISIONS
from tests.support.topology import pooler, replica

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from click.testing import Result

    from tests.support.database import Database


def run(*arguments: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(main, [*arguments], input=answer, catch_exceptions=False)


def rows_of(database: Database) -> dict[str, list[str]]:
    with database.connect(autocommit=True) as conn:
        found = contents(conn, database.settings)
    for memory in ("host_row_security", "lead_table_row_security"):
        found.pop(memory, None)  # made by contract, undone with it
    return found


def host_of(database: Database) -> dict[str, str]:
    with database.connect(autocommit=True) as conn:
        return fingerprint(conn, database.settings, only="host")


def fill(database: Database) -> Any:
    """Owners, a rule and an audit, in both territories; returns a lead of user 1 in DE."""
    lead = database.lead("DE", owner=database.user(1))
    database.lead("CH", owner=database.user(2))
    database.rule(database.user(3), "COLLABORATOR", lead)
    with database.connect("seller_de") as conn:
        database.context(conn, database.user(1), "DE")
        database.query(conn, "SELECT {schema}.assert_edit_and_audit(%s)", lead)
    return lead


# --- how far, and what is left


def test_contract_is_undone_and_nothing_else(database: Database) -> None:
    lead = fill(database)
    before = rows_of(database)

    done = rollback()

    assert (HEAD, SAFE, ()) == (done.before, done.after, done.problems)
    assert SAFE == database.revision()
    assert {} == difference(before, rows_of(database))
    assert [f"undid {revision}" for revision in reversed(REVISIONS[REVISIONS.index(SAFE) + 1 :])] == [
        event.what for event in done.timeline if event.what.startswith("undid")
    ]
    with database.connect("seller_de") as conn:  # the host is open as before, the decision still protects
        assert [2] == database.query(conn, "SELECT count(*) FROM {leads}")
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            assert leadprotect.can_edit(conn, lead)


@pytest.mark.parametrize("host_rls", ["enforce", "force"])
def test_the_base_gives_the_host_back_and_keeps_every_row(
    make_database: Callable[..., Database], host_rls: str
) -> None:
    database = make_database("host", host_rls=host_rls)
    before = host_of(database)
    database.upgrade()
    database.lead("DE", owner=database.user(1))
    kept = rows_of(database)

    done = rollback("base")

    assert (None, ()) == (done.after, done.problems)
    assert {} == difference(kept, rows_of(database))
    assert {} == difference(before, host_of(database))
    database.upgrade()
    assert {} == difference(kept, rows_of(database))


@pytest.mark.profiles("pg18", "other_names")
def test_a_rollback_goes_to_any_revision_below(database: Database) -> None:
    assert NAMED["contract_enforce"] == rollback(NAMED["contract_enforce"][:7]).after
    assert NAMED["expand_indexes"] == rollback(NAMED["expand_indexes"]).after
    assert NAMED["expand_indexes"] == database.revision()


@pytest.mark.profiles("pg18", "other_names")
def test_a_second_rollback_finds_nothing_to_undo(database: Database) -> None:
    rollback()
    again = rollback()
    assert SAFE == database.revision()
    assert (SAFE, SAFE, ()) == (again.before, again.after, again.timeline)
    rollback("base")
    answer = run("rollback")
    assert (0, "nothing to undo: the database stands at the base\n") == (answer.exit_code, answer.stdout)


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("target", [HEAD[:7], "lp_0042", "tomorrow"])
def test_a_rollback_never_upgrades(expanded: Database, target: str) -> None:
    before = rows_of(expanded)
    with pytest.raises(InvalidRequest, match=f"--to {target}: "):
        rollback(target)
    assert 1 == run("rollback", "--to", target).exit_code
    assert {} == difference(before, rows_of(expanded))
    assert SAFE == expanded.revision()


# --- what on-call sees


@pytest.mark.profiles("pg18", "other_names")
def test_the_timeline_tells_each_step_with_its_seconds(database: Database) -> None:
    fill(database)
    answer = run("rollback")
    assert 0 == answer.exit_code, answer.output
    lines = answer.stdout.splitlines()
    steps = [re.sub(r"\d+ tables", "N tables", line.split(" s  ", 1)[1]) for line in lines if " s  " in line]
    assert [
        "looked at N tables",
        *(f"undid {revision}" for revision in reversed(REVISIONS[REVISIONS.index(CONTRACT) :])),
        "verified N tables",
        f"in all, from {HEAD} to {SAFE}",
    ] == steps
    assert "verified: no table of leadprotect was open after any step, and every row is there" in lines
    assert "until the cause is found, deploy with: alembic -x contract=hold upgrade head" in lines
    counted = [line.split() for line in lines if "user_lead_assignments" in line]
    assert [["user_lead_assignments", "2", "2"]] == [[word for word in words if word != "│"] for words in counted]


@pytest.mark.profiles("pg18", "other_names")
@pytest.mark.nightly_elsewhere("who blocks is read from the same view on each version")
def test_who_blocks_a_rollback_is_named_and_the_same_command_goes_on(database: Database) -> None:
    with database.connect() as blocker:
        database.query(blocker, "SELECT count(*) FROM {leads}")
        answer = run("rollback", "--lock-budget", "1s")
        assert 1 == answer.exit_code
        assert f"blocked by pid {blocker.info.backend_pid}" in answer.stderr
        assert f"stopped at {NAMED['contract_enforce']}; the same command goes on" in answer.stderr
    assert NAMED["contract_enforce"] == database.revision()
    assert 0 == run("rollback").exit_code
    assert SAFE == database.revision()


@pytest.mark.profiles("pg18")
def test_a_rollback_that_got_no_lock_says_that_nothing_was_undone(database: Database) -> None:
    database.downgrade(NAMED["contract_triggers"])
    with database.connect() as blocker:
        database.query(blocker, "LOCK TABLE {activities} IN SHARE MODE")
        answer = run("rollback", "--lock-budget", "1s")
    assert 1 == answer.exit_code
    assert f"Nothing was undone: the database stands at {NAMED['contract_triggers']}" in answer.stderr
    assert "stopped at" not in answer.stderr


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("between", ["pooler", "replica"])
def test_a_rollback_is_refused_where_it_can_t_run_and_touches_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch, between: str
) -> None:
    database.sql("UPDATE {schema}.backfill_jobs SET started_at = now()")
    way = pooler(database.server, "transaction") if between == "pooler" else replica(database.server)
    with way as front:
        monkeypatch.setenv("DATABASE_URL", front.url(database.name))
        answer = run("rollback")
    assert 1 == answer.exit_code
    assert "Error: refused before anything was touched" in answer.stderr
    assert {"pooler": "transaction pooler", "replica": "read replica"}[between] in answer.stderr
    assert "goes on" not in answer.stderr
    assert ["run", "run"] == database.sql("SELECT request FROM {schema}.backfill_jobs")


@pytest.mark.profiles("pg18")
def test_a_budget_that_is_none_is_refused_before_a_backfill_is_paused(database: Database) -> None:
    database.sql("UPDATE {schema}.backfill_jobs SET started_at = now()")
    answer = run("rollback", "--lock-budget", "soon")
    assert 2 == answer.exit_code
    assert "'--lock-budget': 'soon' is not a duration; write " in answer.stderr
    assert ["run", "run"] == database.sql("SELECT request FROM {schema}.backfill_jobs")


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("target", [SAFE, "base"])
def test_what_a_newer_version_applied_and_left_nothing_of_is_not_rolled_back_by_this_one(
    database: Database, target: str
) -> None:
    database.sql("UPDATE {versions} SET version_num = 'lp_9999_expand_tomorrow'")
    answer = run("rollback", "--to", target)
    assert 1 == answer.exit_code
    assert (
        "Error: lp_9999_expand_tomorrow was applied by a newer version of leadprotect and left no way down: "
        "roll back with that version\n" == answer.stderr
    )


BREAK = """
CREATE FUNCTION public.break_it() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
  IF EXISTS (SELECT FROM pg_event_trigger_ddl_commands()
             WHERE objid = to_regclass('{quarantine}.lead_protection_rules') AND command_tag = 'ALTER TABLE') THEN
    %s
  END IF;
END $$;
CREATE EVENT TRIGGER break_it ON ddl_command_end WHEN TAG IN ('ALTER TABLE') EXECUTE FUNCTION public.break_it();
"""


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("ALTER TABLE {quarantine}.user_lead_assignments DISABLE ROW LEVEL SECURITY;", "row security is not forced on"),
        ("GRANT SELECT ON {quarantine}.user_lead_assignments TO PUBLIC;", "PUBLIC may reach"),
        ("CREATE POLICY all_of_it ON {quarantine}.user_lead_assignments USING (true);", "a policy was added to"),
        ("DROP POLICY lp_border ON {quarantine}.user_lead_assignments;", "a floor is gone from"),
    ],
)
def test_a_step_that_would_open_row_security_is_not_committed(database: Database, damage: str, found: str) -> None:
    fill(database)
    before = rows_of(database)
    database.sql_script(BREAK % damage)
    with pytest.raises(RollbackError, match=f"{NAMED['expand_assignments']} would open row security") as caught:
        rollback("base")
    assert f"{found} " in str(caught.value)
    assert f"The rollback stopped at {NAMED['expand_assignments']}" in str(caught.value)
    assert NAMED["expand_assignments"] == database.revision()
    assert {} == difference(before, rows_of(database))
    database.sql_script("DROP EVENT TRIGGER break_it")
    assert () == rollback("base").problems


@pytest.mark.profiles("pg18", "other_names")
def test_a_row_that_is_lost_on_the_way_is_noticed(database: Database) -> None:
    fill(database)
    database.sql_script(BREAK % "DELETE FROM {quarantine}.lead_protection_rules;")
    answer = run("rollback", "--to", "base")
    assert 3 == answer.exit_code
    assert "NOT AS IT MUST BE: lead_protection_rules has 0 rows and had 1\n" == answer.stderr
    assert "verified" not in answer.stdout.splitlines()[-1]


# --- services that call in meanwhile


@pytest.mark.profiles("pg18", "other_names")
def test_services_are_told_that_protection_is_unavailable(database: Database) -> None:
    lead = fill(database)
    rollback("base")
    calls: list[Callable[[psycopg.Connection[Any]], object]] = [
        lambda conn: leadprotect.can_edit(conn, lead, user_id=database.user(1), territory="DE"),
        lambda conn: leadprotect.explain(conn, lead),
        lambda conn: leadprotect.can_edit_many(conn, [lead]),
        leadprotect.editable_leads,
        lambda conn: leadprotect.assert_edit(conn, lead),
        lambda conn: leadprotect.claim(conn, lead),
        lambda conn: leadprotect.acting_as(conn, database.user(1), "DE").__enter__(),
    ]
    for call in calls:
        with database.connect("seller_de") as conn, pytest.raises(ProtectionUnavailable, match="was rolled back"):
            call(conn)


class Reader(threading.Thread):
    """Polls as a login of DE that declares CH; keeps what it should never have seen."""

    def __init__(self, database: Database) -> None:
        super().__init__()
        self.database, self.ended = database, threading.Event()
        self.polls = 0
        self.leaked: list[str] = []
        self.unsafe: list[str] = []  # saw leads of CH although the host's row security was on
        self.saw_host: list[bool] = []
        self.errors: set[str | None] = set()

    def run(self) -> None:
        with self.database.connect("seller_de", autocommit=True) as conn:
            conn.execute(self.database.text("SELECT set_config({territory_guc}, 'CH', false)"))
            while not self.ended.is_set():
                self.poll(conn)

    def poll(self, conn: psycopg.Connection[Any]) -> None:
        self.polls += 1
        for schema in ("{schema}", "{quarantine}"):
            for table in ("user_lead_assignments", "v_lead_protection"):
                found = self.ask(conn, f"SELECT count(*) FROM {schema}.{table} WHERE territory = 'CH'")
                if found and found[0][0]:
                    self.leaked.append(table)
        # the lock that the query takes keeps both answers to one state
        found = self.ask(
            conn,
            "SELECT (SELECT count(*) FROM {leads} WHERE {territory} = 'CH'), "
            "(SELECT relrowsecurity FROM pg_class WHERE oid = {leads_name}::regclass)",
        )
        if found:
            seen, secured = found[0]
            self.saw_host.append(seen > 0)
            if seen and secured:
                self.unsafe.append(f"{seen} leads")

    def ask(self, conn: psycopg.Connection[Any], query: str) -> list[Any]:
        try:
            return conn.execute(self.database.text(query)).fetchall()
        except psycopg.Error as error:
            self.errors.add(error.sqlstate)
            return []

    def look(self) -> None:
        """Wait until a poll that began later than this call has ended."""
        begun = self.polls
        wait_for(lambda: self.polls > begun + 1)


class Between(logging.Handler):
    """Has a reader look once more whenever a step begins: what was before it is committed, and it holds no lock yet."""

    def __init__(self, reader: Reader) -> None:
        super().__init__()
        self.reader, self.steps = reader, 0

    def emit(self, record: logging.LogRecord) -> None:
        if record.msg.startswith("Running"):
            self.reader.look()
            self.steps += 1


@contextmanager
def reading(database: Database) -> Iterator[Reader]:
    """A reader that has polled before the block, and once more after it."""
    reader = Reader(database)
    reader.start()
    try:
        reader.look()
        yield reader
        reader.look()
    finally:
        reader.ended.set()
        reader.join()


@contextmanager
def looking_between(reader: Reader) -> Iterator[Between]:
    """Steps of Alembic in the block are looked at one by one."""
    between, log = Between(reader), logging.getLogger("alembic.runtime.migration")
    level = log.level
    log.addHandler(between)
    log.setLevel(logging.INFO)
    try:
        yield between
    finally:
        log.setLevel(level)
        log.removeHandler(between)


def test_a_login_of_one_territory_never_reads_the_other_while_it_goes_down_and_up(database: Database) -> None:
    fill(database)
    with reading(database) as down, looking_between(down) as undone:
        rollback("base")
    with reading(database) as up, looking_between(up) as done:
        database.upgrade()
    assert (down.leaked, down.unsafe, up.leaked, up.unsafe) == ([], [], [], [])
    assert len(REVISIONS) == undone.steps == done.steps
    # the host's own table changes once, in the transaction that gives it back or protects it
    assert [False, True] == changes(down.saw_host)
    assert [True, False] == changes(up.saw_host)
    # nothing but: no such table, no such schema, no privilege
    assert down.errors | up.errors <= {"42P01", "3F000", "42501"}


@pytest.mark.profiles("pg18", "other_names")
def test_the_reader_would_notice_an_open_table(database: Database) -> None:
    fill(database)
    with reading(database) as reader:
        database.sql("ALTER TABLE {schema}.user_lead_assignments DISABLE ROW LEVEL SECURITY")
        wait_for(lambda: bool(reader.leaked))
        database.sql("CREATE POLICY stray ON {leads} USING (true)")
        database.sql_script(f'DROP POLICY "{database.settings.schema}_border" ON {{leads}}')
        wait_for(lambda: bool(reader.unsafe))
    assert "user_lead_assignments" in reader.leaked


def changes(seen: list[bool]) -> list[bool]:
    return [now for number, now in enumerate(seen) if number == 0 or now != seen[number - 1]]


def wait_for(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    ticks = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        ticks.wait(0.02)
    pytest.fail("it never happened")


class Service(threading.Thread):
    """Asks about a lead of its user and one of somebody else, over and over."""

    def __init__(self, database: Database, mine: Any, other: Any) -> None:
        super().__init__()
        self.database, self.mine, self.other = database, mine, other
        self.ended = threading.Event()
        self.answers: set[tuple[str, object]] = set()
        self.unavailable = 0

    def run(self) -> None:
        with self.database.connect("seller_de", autocommit=True) as conn:
            while not self.ended.is_set():
                for name, lead in (("mine", self.mine), ("other", self.other)):
                    try:
                        answer = leadprotect.can_edit(conn, lead, user_id=self.database.user(1), territory="DE")
                        self.answers.add((name, answer))
                    except ProtectionUnavailable:
                        self.unavailable += 1


@pytest.mark.profiles("pg18")
def test_a_service_gets_the_right_answer_or_none(database: Database) -> None:
    mine, other = fill(database), database.lead("DE", owner=database.user(2))
    right = {("mine", True), ("other", False)}
    service = Service(database, mine, other)
    service.start()
    try:
        wait_for(lambda: right <= service.answers)
        for _ in range(2):
            rollback("base")
            refused = service.unavailable
            wait_for(lambda told=refused: service.unavailable > told)  # type: ignore[misc]
            database.upgrade()
    finally:
        service.ended.set()
        service.join()
    assert right == service.answers


@pytest.mark.profiles("pg18")
def test_what_is_written_between_two_steps_survives(database: Database) -> None:
    fill(database)
    written = []
    each = 1 if NIGHTLY else 3
    for number, revision in enumerate(reversed(["base", *REVISIONS[:-1]][::each])):
        rollback(revision)
        lead = database.lead("DE")
        database.activity(lead, database.user(10 + number))
        written.append((lead, database.user(10 + number)))
    for revision in reversed(REVISIONS[-4::-each]):
        database.upgrade(revision)
    leadprotect.backfill(database.url, ("DE", "CH"))
    database.upgrade()
    assert [user for _, user in written] == [database.owner(lead) for lead, _ in written]


# --- a backfill that runs


def many_leads(database: Database, leads: int) -> None:
    """Leads with an activity each, as from before the first revision."""
    numbers = {"uuid": "gen_random_uuid()", "bigint": "n", "text": "'lead ' || n"}[database.settings.lead_id_type]
    with database.connect() as conn:
        with without_triggers(database, conn):
            for statement in (
                (
                    "INSERT INTO {leads} ({lead_id}, {territory}) "
                    f"SELECT {numbers}, 'DE' FROM generate_series(1, {leads}) AS n"
                ),
                (
                    "INSERT INTO {activities} ({activity_lead_id}, {activity_user_id}, {activity_kind}, {activity_at}) "
                    f"SELECT {{lead_id}}, '{database.user(1)}', 'QUALIFIED_CALL', now() FROM {{leads}}"
                ),
            ):
                database.query(conn, statement)
        database.query(conn, "ANALYZE {leads}, {activities}")


@contextmanager
def backfilling(database: Database) -> Iterator[subprocess.Popen[str]]:
    """The command in a process of its own, once it has assigned something."""
    process = subprocess.Popen(
        [sys.executable, "-m", "leadprotect", "backfill", "DE", "--batch-size", "10"],
        cwd=ROOT,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            wait_for(lambda: database.sql("SELECT count(*) FROM {schema}.backfill_chunks")[0] > 0)
            yield process
        finally:
            process.kill()


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("how", ["alembic", "rollback"])
@pytest.mark.nightly_elsewhere("by day a backfill is paused and stopped there by the test of the throttle")
def test_a_downgrade_pauses_a_running_backfill_which_ends_with_one_clear_error(expanded: Database, how: str) -> None:
    many_leads(expanded, 60_000)
    with backfilling(expanded) as process:
        if how == "alembic":
            expanded.downgrade()
        else:
            done = rollback("base")
            assert () == done.problems
            assert "paused the backfill of DE" in [event.what for event in done.timeline]
        messages = process.communicate(timeout=120)[1]
    assert 5 == process.returncode, messages  # failed midway: what was done stays
    errors = [line for line in messages.splitlines() if line.startswith("Error")]
    assert 1 == len(errors)
    assert "leadprotect is not installed in this database, or was rolled back" in errors[0]
    assert "Traceback" not in messages
    # nothing is lost or half done, and nobody has to resume what the downgrade paused
    expanded.upgrade(SAFE)
    assigned = expanded.sql("SELECT count(*) FROM {schema}.user_lead_assignments")[0]
    assert 0 < assigned < 60_000
    (result,) = leadprotect.backfill(expanded.url, "DE")
    assert expanded.sql("SELECT {schema}.unowned_leads('DE')") == []
    assert 60_000 == assigned + result.assigned  # nothing was repeated


@pytest.mark.profiles("pg18")
def test_a_rollback_to_the_migrate_step_leaves_the_backfill_paused(database: Database) -> None:
    database.sql("UPDATE {schema}.backfill_jobs SET started_at = now() WHERE territory = 'DE'")
    answer = run("rollback")
    assert 0 == answer.exit_code
    assert "paused the backfill of DE" in answer.stdout
    assert "the backfill stays paused until: leadprotect backfill resume" in answer.stdout
    assert [("CH", "run", None), ("DE", "pause", "leadprotect rollback")] == database.sql(
        "SELECT territory, request, request_reason FROM {schema}.backfill_jobs ORDER BY territory"
    )


# --- purge


@pytest.mark.profiles("pg18", "other_names")
def test_purge_shows_what_it_would_delete_and_asks(database: Database) -> None:
    fill(database)
    rollback("base")
    kept = rows_of(database)
    answer = run("purge", answer="n\n")
    assert 1 == answer.exit_code
    assert "Delete all of it for ever?" in answer.stdout
    shown = [line.split() for line in answer.stdout.splitlines() if "lead_protection_rules" in line]
    assert [["lead_protection_rules", "1"]] == [[word for word in words if word != "│"] for words in shown]
    assert {} == difference(kept, rows_of(database))


@pytest.mark.nightly_elsewhere("by day nothing is left there after a downgrade and a purge")
def test_purge_deletes_the_quarantine_and_nothing_else(database: Database) -> None:
    fill(database)
    rollback("base")
    host = host_of(database)
    answer = run("purge", "--yes")
    assert 0 == answer.exit_code, answer.output
    assert [None] == database.sql("SELECT to_regnamespace({quarantine_name})::text")
    assert {} == difference(host, host_of(database))
    assert [2] == database.sql("SELECT count(*) FROM {leads}")
    database.upgrade()
    assert [0] == database.sql("SELECT count(*) FROM {schema}.user_lead_assignments WHERE source = 'assign'")


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("phase", ["head", "host"])
def test_purge_refuses_where_there_is_no_quarantine(make_database: Callable[..., Database], phase: str) -> None:
    database = make_database(phase)
    before = rows_of(database)
    answer = run("purge", "--yes")
    assert 1 == answer.exit_code
    assert f"there is no schema {database.settings.quarantine}" in answer.stderr
    assert (f"revision {HEAD} is applied" in answer.stderr) == (phase == "head")
    assert {} == difference(before, rows_of(database))


@pytest.mark.profiles("pg18", "other_names")
def test_purge_deletes_nothing_that_somebody_depends_on(database: Database) -> None:
    fill(database)
    rollback("base")
    database.sql("CREATE VIEW public.report AS SELECT count(*) AS attempts FROM {quarantine}.lead_access_audit")
    kept = rows_of(database)
    answer = run("purge", "--yes")
    assert 1 == answer.exit_code
    assert "nothing was deleted: somebody's objects depend on the quarantine: view" in answer.stderr
    assert {} == difference(kept, rows_of(database))


@pytest.mark.profiles("pg18", "other_names")
def test_only_who_acts_as_the_owner_may_purge(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(database)
    rollback("base")
    kept = rows_of(database)
    monkeypatch.setenv("DATABASE_URL", database.login_url("operator"))
    leadprotect.settings.current.cache_clear()
    answer = run("purge", "--yes")
    assert 1 == answer.exit_code
    assert "the login lacks the role for this call" in answer.stderr
    assert {} == difference(kept, rows_of(database))


@pytest.mark.profiles("pg18")
def test_what_a_dba_made_by_hand_is_listed_and_its_statements_leave_nothing(host: Database) -> None:
    """The last statement drops the roles, where no other database of the cluster uses them."""
    before, login = dump(host), f"left_{host.name}"
    host.upgrade("head")
    host.sql_script(
        f"""
        CREATE ROLE "{login}" LOGIN;
        GRANT {{app}} TO "{login}";
        CREATE POLICY for_us ON {{activities}} TO {{reader}} USING (true);
        CREATE POLICY for_both ON {{activities}} TO {{reader}}, "{login}" USING (true);
        GRANT SELECT ON {{activities}} TO {{auditor}};
        GRANT CREATE ON SCHEMA public TO {{manager}};
        ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO {{operator}};
        """
    )
    try:
        rollback("base")
        early = run("purge", "--left")
        assert (1, True) == (early.exit_code, "needs what was made for it" in early.stderr)
        purged = run("purge", "--yes")
        assert 0 == purged.exit_code, purged.output
        listed = run("purge", "--left")
        assert 1 == listed.exit_code
        assert purged.stdout.endswith(listed.stdout)
        statements = listed.stdout.partition("\n\n")[2].splitlines()
        mine = [one for one in statements if not one.startswith(('REVOKE "', "--", "DROP ROLE")) or login in one]
        mine = [one.rpartition("': ")[2] for one in mine]  # other databases of the server have our roles, too
        assert {
            'DROP POLICY "for_us" ON public.activities;',
            f'ALTER POLICY "for_both" ON public.activities TO {login};',
            'REVOKE ALL ON TABLE public.activities FROM "leadprotect_auditor";',
            'REVOKE ALL ON SCHEMA public FROM "leadprotect_manager";',
            'DROP OWNED BY "leadprotect_operator";',
            f'REVOKE "leadprotect_app" FROM "{login}";',
        } == set(mine)
        for statement in mine:
            host.sql(statement)
        host.sql("DROP POLICY for_both ON {activities}")  # the host's own by now
        assert before == dump(host)
    finally:
        host.sql(f'DROP OWNED BY "{login}"')
        host.sql(f'DROP ROLE "{login}"')


def dump(database: Database) -> list[str]:
    """The schema as pg_dump writes it, without the random key of its restricted mode."""
    words = [str(database.server.programs / "pg_dump"), "--schema-only", database.url]
    said = subprocess.run(words, check=True, capture_output=True, text=True).stdout
    return [line for line in said.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]
