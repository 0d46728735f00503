"""leadprotect status: where the database stands, for a person and for a program."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

import pytest
from click.testing import CliRunner

from leadprotect.cli import main
from leadprotect.errors import ProtectionUnavailable
from leadprotect.migration.status import status
from tests.support.database import Database
from tests.support.revisions import HEAD, SCRIPTS


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
@pytest.mark.slow("a status at every revision")
def test_wherever_an_upgrade_stopped_it_says_where(host: Database) -> None:
    reached = []
    for script in SCRIPTS:
        host.upgrade(script.revision)
        with host.connect() as conn:
            found = status(conn)
        assert (script.revision, HEAD) == (found.revision, found.head)
        reached.append(found.phase)
    assert [script.module.phase for script in SCRIPTS] == reached


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


def test_who_waits_for_whom_is_shown_and_the_gate_does_not_wait_with_him(database: Database) -> None:
    with database.connect() as holder, database.connect() as waiter, database.connect(autocommit=True) as conn:
        database.query(holder, "LOCK TABLE {leads} IN ACCESS EXCLUSIVE MODE")
        conn.execute("SET lock_timeout = '50ms'")
        pids = [each.info.backend_pid for each in (waiter, holder)]
        thread = threading.Thread(target=lambda: database.query(waiter, "SELECT count(*) FROM {leads}"))
        thread.start()
        for _ in range(100):
            found = status(conn)
            if found.waiting:
                break
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
