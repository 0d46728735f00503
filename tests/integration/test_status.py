"""leadprotect status: where the database stands, for a person and for a program."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from leadprotect.cli import main
from leadprotect.doctor.status import status
from leadprotect.errors import ProtectionUnavailable
from leadprotect.settings import current
from tests.support.database import Database
from tests.support.profiles import NIGHTLY
from tests.support.revisions import HEAD, MIGRATE_HEAD, NAMED, SCRIPTS


def test_before_the_first_revision_nothing_stands(host: Database) -> None:
    with host.connect() as conn:
        found = status(conn)
    assert (found.revision, found.phase, found.conditions, found.backfill) == (None, "none", (), ())


def test_at_the_migrate_step_the_gate_and_the_backfill_are_shown(expanded: Database) -> None:
    lead = expanded.lead("DE")
    expanded.sql("ALTER TABLE {activities} DISABLE TRIGGER USER")
    expanded.activity(lead, expanded.user(1))
    with expanded.connect("operator") as conn:
        found = status(conn)
    assert (found.revision, found.phase) == (expanded.revision(), "migrate")
    assert [(c.name, c.met) for c in found.conditions if not c.met and c.name == "owners"] == [("owners", False)]
    assert [(job.territory, job.started_at, job.state) for job in found.backfill] == [
        ("CH", None, "new"),
        ("DE", None, "new"),
    ]


@pytest.mark.profiles("pg18")
def test_wherever_an_upgrade_stopped_it_says_where(host: Database) -> None:
    reached = []
    scripts = SCRIPTS if NIGHTLY else SCRIPTS[::3]
    for script in scripts:
        host.upgrade(script.revision)
        with host.connect() as conn:
            found = status(conn)
        assert (script.revision, HEAD) == (found.revision, found.head)
        reached.append(found.phase)
    assert [script.module.phase for script in scripts] == reached


def test_after_a_downgrade_the_quarantine_is_shown(database: Database) -> None:
    database.downgrade("base")
    with database.connect() as conn:
        found = status(conn)
    assert found.phase == "none"
    assert {"user_lead_assignments", "lead_access_audit", "backfill_jobs"} <= set(found.quarantine)


def test_at_the_head_it_says_contract(database: Database) -> None:
    with database.connect("operator") as conn:
        found = status(conn)
    assert (found.revision, found.phase) == (found.head, "contract")


@pytest.mark.nightly_elsewhere("who blocks is read from the same view on each version")
def test_who_waits_for_whom_is_shown_and_the_gate_does_not_wait_with_him(database: Database) -> None:
    with database.connect() as holder, database.connect() as waiter, database.connect(autocommit=True) as conn:
        database.query(holder, "LOCK TABLE {leads} IN ACCESS EXCLUSIVE MODE")
        conn.execute("SET lock_timeout = '50ms'")
        pids = [each.info.backend_pid for each in (waiter, holder)]
        thread = threading.Thread(target=lambda: database.query(waiter, "SELECT count(*) FROM {leads}"))
        thread.start()
        while not (found := status(conn)).waiting:
            assert thread.is_alive()
        holder.rollback()
        thread.join()
    assert [(session.pid, session.blocked_by) for session in found.waiting] == [(pids[0], (pids[1],))]
    assert [(c.name, c.met) for c in found.conditions] == [("gate", False)]


def test_status_writes_nothing(database: Database) -> None:
    with database.connect("operator") as conn:
        conn.read_only = True
        assert status(conn).phase == "contract"


def test_a_login_without_the_operator_s_role_gets_one_clear_error(database: Database) -> None:
    with database.connect("outsider") as conn, pytest.raises(ProtectionUnavailable, match="lacks the role"):
        status(conn)


@pytest.mark.profiles("pg18")
def test_the_command_prints_tables_and_json(make_database: Callable[..., Database]) -> None:
    make_database("expanded")
    shown = CliRunner().invoke(main, ["status"])
    assert shown.exit_code == 0, shown.output
    assert "phase     migrate" in shown.output
    as_json = json.loads(CliRunner().invoke(main, ["status", "--json"]).output)
    assert (as_json["phase"], as_json["backfill"][0]["territory"]) == ("migrate", "CH")


def verdict(*arguments: str) -> tuple[int, str]:
    """Exit code and first line of the command."""
    done = CliRunner().invoke(main, ["status", *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output.splitlines()[0]


def test_the_first_line_is_a_verdict_in_every_phase(host: Database) -> None:
    assert verdict() == (0, "not installed: alembic upgrade head begins")
    host.upgrade(NAMED["expand_rules"])
    assert verdict() == (0, "nothing is enforced yet: alembic upgrade head goes on")
    host.upgrade(MIGRATE_HEAD)
    assert verdict() == (0, "nothing is enforced yet: the gate is open, alembic upgrade head enforces")
    host.lead("AT")
    assert verdict() == (0, "nothing is enforced yet: the gate waits for territories")
    host.sql("DELETE FROM {leads}")
    host.sql("DELETE FROM {schema}.contextless_writes")
    host.upgrade()
    assert verdict() == (0, "protected: everything that contract put on the leads is there")


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY", "row security of {label}"),
        ("DROP POLICY {border_policy} ON {leads}", "policy {border}"),
        ("ALTER TABLE {leads} DISABLE TRIGGER {audit_edit}", "trigger {edit}, which does not fire always"),
        ("ALTER TABLE {leads} ENABLE TRIGGER {forget}", "trigger {gone}, which does not fire always"),
        ("DROP TRIGGER {refuse_move} ON {leads}", "trigger {move}"),
        ("DROP TABLE {schema}.denial_secret", "{schema}.denial_secret"),
    ],
)
def test_nothing_says_protected_when_what_contract_put_there_is_gone(
    database: Database, damage: str, found: str
) -> None:
    database.sql(damage)
    role = database.settings.role
    names = {"border": role("border"), "edit": role("audit_edit"), "gone": role("forget"), "move": role("refuse_move")}
    names |= {"label": database.settings.leads_table, "schema": database.settings.schema}
    assert verdict() == (1, f"NOT PROTECTED: {found.format(**names)}")


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        ("ALTER TABLE {schema}.lead_access_audit DISABLE TRIGGER lp_append_only", "guard-off"),
        ("ALTER TABLE {schema}.user_lead_assignments NO FORCE ROW LEVEL SECURITY", "row-security-off"),
        ("ALTER FUNCTION {schema}.audit_edit() RESET search_path", "function-unpinned"),
        ("GRANT DELETE ON {schema}.lead_access_audit TO PUBLIC", "table-grants"),
        ("CREATE POLICY p ON {schema}.lead_access_audit USING (true)", "policy-stray"),
    ],
)
def test_status_and_doctor_say_one_thing_of_a_danger(database: Database, damage: str, check: str) -> None:
    assert verdict() == (0, "protected: everything that contract put on the leads is there")  # the control
    database.sql(damage)
    done = CliRunner().invoke(main, ["status"])
    told = json.loads(CliRunner().invoke(main, ["doctor", "--json"]).output)["findings"]
    assert check in {one["check"] for one in told}
    assert (1, True) == (done.exit_code, done.output.startswith("NOT PROTECTED: "))
    assert [f"danger  {one['check']}  {one['where']}: {one['what']}" for one in told if one["level"] == "danger"] == [
        line for line in done.output.splitlines() if line.startswith("danger  ")
    ]


def test_before_contract_a_danger_is_said_as_well(expanded: Database) -> None:
    expanded.sql("ALTER TABLE {schema}.lead_access_audit DISABLE TRIGGER lp_append_only")
    code, line = verdict()
    assert (1, True) == (code, line.startswith("BROKEN: "))


def test_what_a_login_may_not_ask_is_named(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator is told what he was not told: silence is no good news."""
    with database.connect("operator") as conn:
        found = status(conn)
    assert () == found.dangers
    monkeypatch.setenv("DATABASE_URL", database.login_url("operator"))
    current.cache_clear()
    shown = CliRunner().invoke(main, ["status"]).output
    assert all(name in shown for name in found.not_judged)


def test_a_view_that_was_made_after_contract_is_said_with_what_mends_it(database: Database) -> None:
    lead = database.lead("CH")
    database.sql("CREATE VIEW crm.report AS SELECT * FROM {leads}")
    database.sql(f'GRANT SELECT ON crm.report TO "{database.profile.login("seller_de")}"')
    done = CliRunner().invoke(main, ["status"])
    assert done.exit_code == 1
    assert done.output.startswith("NOT PROTECTED: crm.report reads leads as its owner")
    assert "ALTER VIEW crm.report SET (security_invoker = true);" in done.output
    with database.connect("seller_de") as conn:  # the control: it does show the lead
        assert database.query(conn, "SELECT {lead_id} FROM crm.report") == [lead]
    database.sql("ALTER VIEW crm.report SET (security_invoker = true)")
    assert verdict()[0] == 0


@pytest.mark.nightly_elsewhere("by day the verdict of each phase is read there")
def test_ready_is_what_this_version_can_work_with(make_database: Callable[..., Database]) -> None:
    host = make_database("host")
    assert verdict("--ready") == (1, "not ready: not installed: alembic upgrade head begins")
    host.upgrade(NAMED["expand_rules"])
    assert verdict("--ready")[0] == 1
    host.upgrade(NAMED["expand_activity_triggers"])
    assert verdict("--ready") == (0, "ready")
    database = make_database("head")
    assert verdict("--ready") == (0, "ready")
    database.sql_script(NEWER)
    assert verdict("--ready") == (0, "ready")


def test_ready_is_not_what_lost_a_table(database: Database) -> None:
    database.sql("DROP TABLE {schema}.denial_secret")
    lost = f"{database.settings.schema}.denial_secret"
    assert verdict("--ready") == (1, f"not ready: NOT PROTECTED: {lost}")


def test_json_carries_the_verdict(database: Database) -> None:
    database.sql("ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY")
    done = CliRunner().invoke(main, ["status", "--json"])
    found = json.loads(done.output)
    assert (done.exit_code, found["sound"], found["ready"]) == (1, False, False)
    assert found["verdict"].startswith("NOT PROTECTED: row security of ")


def test_a_quarantine_that_nobody_has_counted_is_not_called_empty(database: Database) -> None:
    database.lead("DE", owner=database.user(1))
    database.downgrade("base")
    with database.connect() as conn:
        found = status(conn).quarantine
    assert (found["user_lead_assignments"], found["lead_protection_rules"]) == (None, 0)
    assert re.search(
        r"^user_lead_assignments +not counted yet$", CliRunner().invoke(main, ["status"]).output, re.MULTILINE
    )


@pytest.mark.usefixtures("database")
def test_watch_shows_tables_only() -> None:
    assert verdict("--watch", "--json")[0] == 2


NEWER = "UPDATE {versions} SET version_num = 'lp_9999_expand_tomorrow'"


def test_a_revision_of_a_newer_version_is_shown_and_not_explained(database: Database) -> None:
    """Two releases side by side: the old one is still installed where somebody asks."""
    database.sql_script(NEWER)
    with database.connect("operator") as conn:
        found = status(conn)
    assert ("lp_9999_expand_tomorrow", "unknown", ()) == (found.revision, found.phase, found.conditions)
    shown = CliRunner().invoke(main, ["status"], catch_exceptions=False)
    assert 0 == shown.exit_code
    assert "revision  lp_9999_expand_tomorrow (applied by a newer version)" in shown.stdout
