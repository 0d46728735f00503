"""leadprotect rehearse: the whole migration under live traffic, and its report in a real browser."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from click.testing import CliRunner

from leadprotect import settings
from leadprotect.cli import main
from leadprotect.errors import PreflightError
from leadprotect.lab.rehearsal import Rehearsal, report
from leadprotect.lab.rehearsal import host as host_side
from leadprotect.lab.rehearsal import rehearse as rehearse_here
from leadprotect.lab.rehearsal.host import NEW, OLD
from leadprotect.lab.rehearsal.run import Plan
from leadprotect.lab.rehearsal.safety import looks_like_production
from leadprotect.lab.rehearsal.steps import Revision, Step, note
from leadprotect.lab.rehearsal.watching import Sample
from leadprotect.lab.traffic import MIXES, Application, Done, Shift, outcome, service_session
from leadprotect.settings import load, parse
from tests.support.browser import opened
from tests.support.database import ROOT
from tests.support.revisions import HEAD, REVISIONS
from tests.support.topology import pooler, replica

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.database import Database

# one worker makes what all of them look at
pytestmark = pytest.mark.xdist_group("rehearsal")

# a test machine may be busy: how long a transaction took is a benchmark's business
PATIENT = ("--max-stall", "60s", "--rate", "60", "--writer", "0.5s", "--reader", "1s")
PHONE, DESK = 390, 1200


@dataclass(frozen=True)
class Rehearsed:
    """A finished rehearsal: how the command ended, and what its report holds."""

    command: subprocess.CompletedProcess[str]
    file: Path
    data: dict[str, Any]


def data_of(file: Path) -> dict[str, Any]:
    found = re.search(r"^const data = (.*);$", file.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    read: dict[str, Any] = json.loads(found[1])
    return read


def rehearse(file: Path, *arguments: str) -> Rehearsed:
    command = subprocess.run(
        [sys.executable, "-m", "leadprotect", "rehearse", "--report", str(file), *PATIENT, *arguments],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("LEADPROTECT_")},
        capture_output=True,
        text=True,
        check=False,
    )
    return Rehearsed(command, file, data_of(file) if file.exists() else {})


@pytest.fixture(scope="session")  # tests of other modules may come between
def generated(tmp_path_factory: pytest.TempPathFactory) -> Rehearsed:
    """On a database of its own."""
    return rehearse(tmp_path_factory.mktemp("rehearsal") / "report.html", "--leads", "2000")


# --- the whole of it


def test_a_generated_database_goes_all_the_way_and_back_without_an_error(generated: Rehearsed) -> None:
    assert 0 == generated.command.returncode, generated.command.stderr
    assert "passed" in generated.command.stdout.splitlines()
    data = generated.data
    assert ([], [], 2000, 10_000) == (data["against"], data["errors"], data["leads"], data["activities"])
    titles = [step["title"] for step in data["steps"]]
    assert ["upgrade", "backfill", "contract", "downgrade", "upgrade again"] == titles[:5]
    assert {0} == {step["code"] for step in data["steps"]}
    contract, downgrade = data["steps"][2:4]
    assert HEAD == contract["revisions"][-1]["name"]
    assert [*reversed(REVISIONS)] == [one["name"] for one in downgrade["revisions"]]


def test_both_versions_work_in_every_step(generated: Rehearsed) -> None:
    kinds = {(k["version"], k["kind"]): k["outcomes"] for k in generated.data["kinds"]}
    old = {"read", "page", "edit", "act"}
    new = {"check", "asserted edit", "own list", "own activity", "foreign"}
    assert {("old", kind) for kind in old} | {("new", kind) for kind in new} == set(kinds)
    assert all({"ok"} == set(kinds["old", kind]) for kind in old)
    assert all(kinds["new", kind]["ok"] > 0 for kind in new)
    # while protection was rolled back, the new version was told so
    assert all(kinds["new", kind]["unavailable"] > 0 for kind in new)


def test_the_locks_of_the_migration_and_the_long_transactions_are_on_record(generated: Rehearsed) -> None:
    locks = generated.data["locks"]
    # the shorter ones may fit between two looks; an index build is longer
    assert "ShareUpdateExclusive" in {span[2] for span in locks["leads"] + locks["activities"]}
    assert {"writer", "reader"} == {name for name, _, _ in generated.data["long"]}
    assert generated.data["looks"] > 100


@pytest.mark.profiles("pg18", "other_names")
def test_the_traffic_fits_a_host_of_any_names_and_types(expanded: Database) -> None:
    leads = [expanded.lead(territory) for territory in ("DE", "CH") for _ in range(15)]
    for number, lead in enumerate(leads):
        expanded.activity(lead, expanded.user(number % 5))
    s = expanded.settings
    with expanded.connect(autocommit=True) as conn:
        logins = host_side.make_logins(conn, s)
        try:
            host_side.join(conn, s)
            sql, work = host_side.statements(conn, s), host_side.sample(conn, s)
            owners = conn.execute(
                expanded.text("SELECT lead_id::text, user_id::text FROM {schema}.user_lead_assignments")
            )
            for version, login in host_side.LOGINS.items():
                shift = Shift(Application(version, logins[login], 1.0, sql, work.leads, work.activities))
                shift.owners.update(owners.fetchall() if version == "new" else [])
                with service_session(shift.app) as session:
                    for kind, (operation, _) in MIXES[version].items():
                        assert ("ok", "") == outcome(shift, session, operation), kind
        finally:
            host_side.drop_logins(conn)
        assert [] == conn.execute("SELECT rolname FROM pg_roles WHERE rolname = ANY (%s)", ([OLD, NEW],)).fetchall()


EVERY_KIND: list[dict[str, str]] = [
    {},
    {"activity_kind_column": "", "lead_tables": "crm.notes (lead_id) append", "excluded_users": str(UUID(int=9))},
    {"owners_from": "column", "owner_column": "seller", "territory_expression": "coalesce(region, 'DE')"},
    {"territories": 'North America: na, "Zurich, city": zh'},
]


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("given", EVERY_KIND, ids=str)
def test_the_settings_of_a_rehearsal_reach_its_commands(host: Database, tmp_path: Path, given: dict[str, str]) -> None:
    sections = {"calls": {"table": "crm.calls", "kind_column": "", "condition": "note LIKE '50%'"}}
    read = parse({"database_url": host.url} | given, {} if "owner_column" in given else sections)
    with host.connect() as conn:
        s = host_side.exempted(conn, read)
    assert (0, True) == (s.observation_window, OLD in s.exempt_roles)
    assert s == load(environ=host_side.environment(s, tmp_path))


@pytest.mark.profiles("pg18")
@pytest.mark.nightly("by day the traffic of such a host is tried above, and a generated one goes all the way")
@pytest.mark.timeout(300)
def test_a_host_whose_owners_stand_in_a_column_alone_is_rehearsed(
    make_database: Callable[..., Database],
) -> None:
    database = make_database("host", owners_from="column", owner_column="seller")
    database.sql("DROP TABLE {activities}")
    database.sql("ALTER TABLE {leads} ADD seller {user_id_type}")
    for number in range(60):
        query = "INSERT INTO {leads} ({lead_id}, {territory}, seller) VALUES (%s, 'DE', %s)"
        database.sql(query, database.new_id(), database.user(number % 7))
    plan = Plan(rate=40, max_stall=60, writer=0.3, reader=0.5)
    done = rehearse_here(database.settings, plan=plan, told_twice=True)
    assert [] == done.failures
    assert ("upgrade", 0) == (done.steps[0].title, done.activities)
    assert {"old", "new"} == {one.version for one in done.done}
    assert {"ok", "denied", "unavailable"} >= {one.outcome for one in done.done}


# --- what it refuses


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("said", [[], ["--this-is-a-copy"], ["--its-rows-may-change"]])
def test_a_database_that_may_be_production_is_refused_until_told_twice(
    host: Database, tmp_path: Path, said: list[str]
) -> None:
    host.lead("DE")
    answer = CliRunner().invoke(main, ["rehearse", "--report", str(tmp_path / "report.html"), *said])
    assert 1 == answer.exit_code
    assert "it was not generated by leadprotect rehearse" in answer.stderr
    assert "--this-is-a-copy --its-rows-may-change" in answer.stderr
    assert not (tmp_path / "report.html").exists()
    assert [] == host.sql("SELECT rolname FROM pg_roles WHERE rolname IN (%s, %s)", OLD, NEW)
    assert host.revision() is None


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("between", ["pooler", "replica"])
def test_a_rehearsal_is_refused_where_no_migration_can_run(
    host: Database, monkeypatch: pytest.MonkeyPatch, between: str
) -> None:
    way = pooler(host.server, "transaction") if between == "pooler" else replica(host.server)
    with way as front:
        monkeypatch.setenv("DATABASE_URL", front.url(host.name))
        settings.current.cache_clear()
        with pytest.raises(PreflightError, match=f"refused before anything was touched(.|\n)*{between}"):
            rehearse_here(told_twice=True)
    assert [] == host.sql("SELECT FROM pg_roles WHERE rolname LIKE 'leadprotect_rehearsal%%'")


@pytest.mark.profiles("pg18")
def test_what_looks_like_production_is_named(host: Database) -> None:
    name = host.name
    with host.connect() as one, host.connect(), host.connect(), host.connect():
        assert "3 other sessions are connected to it" in looks_like_production(one)
    with host.connect() as conn:
        assert ["it was not generated by leadprotect rehearse"] == looks_like_production(conn)
    host.sql(f"COMMENT ON DATABASE \"{name}\" IS 'made by leadprotect rehearse'")
    with host.connect() as conn:
        assert [] == looks_like_production(conn)


@pytest.mark.profiles("pg18")
def test_a_copy_with_too_few_leads_is_refused(host: Database, tmp_path: Path) -> None:
    host.lead("DE")
    arguments = ["rehearse", "--report", str(tmp_path / "r.html"), "--this-is-a-copy", "--its-rows-may-change"]
    answer = CliRunner().invoke(main, arguments)
    assert 1 == answer.exit_code
    assert "has 1 leads of DE, CH: too few to rehearse with" in answer.stderr
    assert [] == host.sql("SELECT rolname FROM pg_roles WHERE rolname IN (%s, %s)", OLD, NEW)


@pytest.mark.parametrize("text", ["250", "fast", "-1s", "2min", ""])
def test_a_budget_that_is_no_duration_is_refused(text: str) -> None:
    answer = CliRunner().invoke(main, ["rehearse", "--leads", "100", "--max-stall", text])
    assert 2 == answer.exit_code
    assert f"Error: Invalid value for '--max-stall': {text!r} is " in answer.stderr


# --- the verdict


def made_up(*done: Done, code: int = 0) -> Rehearsal:
    """A rehearsal of 100 s: upgrade at 10, downgrade at 40, upgrade again at 60, with traffic in each step."""
    r = Rehearsal("crm", "PostgreSQL 18", 1000, 5000, budget=0.25, allowed=0, writer=3, reader=8, began=0, ended=100)
    for title, command, began in (
        ("upgrade", "alembic upgrade head", 10.0),
        ("downgrade", "alembic downgrade base", 40.0),
        ("upgrade again", "alembic upgrade head", 60.0),
    ):
        r.steps.append(Step(title, command, began, began + 10, code))
    r.done = [Done(version, at, 0.01, "read", "ok", "") for version in ("old", "new") for at in range(1, 100, 3)]
    r.done += done
    return r


def test_a_rehearsal_passes_when_nothing_is_in_the_way() -> None:
    assert [] == made_up().verdict()


def test_a_long_stall_fails_it() -> None:
    assert ["the longest stall was 251 ms, the budget is 250 ms"] == made_up(
        Done("old", 50.0, 0.251, "read", "ok", "")
    ).verdict()
    assert [] == made_up(Done("old", 50.0, 0.249, "read", "ok", "")).verdict()


def test_an_error_fails_it() -> None:
    failed = made_up(Done("new", 50.0, 0.01, "check", "error", "XX000: it broke"))
    assert ["1 transactions failed, 0 may"] == failed.verdict()
    assert ["it broke"] == [one["detail"].split(": ")[1] for one in report.report_data(failed)["errors"]]


def test_an_unavailable_protection_is_an_error_only_where_it_was_not_rolled_back() -> None:
    for at, errors in ((5.0, 1), (39.0, 1), (41.0, 0), (55.0, 0), (69.0, 0), (71.0, 1)):
        assert errors == len(made_up(Done("new", at, 0.01, "check", "unavailable", "")).errors()), at
    assert [] == made_up(Done("new", 5.0, 0.01, "check", "denied", "not_owner")).errors()


def test_a_step_without_traffic_proves_nothing() -> None:
    silent = made_up()
    silent.done = [one for one in silent.done if one.version == "old" or not 40 <= one.at <= 50]
    assert ["no transaction of the new version ran during downgrade: nothing is proven"] == silent.verdict()


def test_a_step_that_failed_fails_it() -> None:
    failed = made_up()
    failed.failures.append("contract ended with exit code 1: its gate is closed")
    assert failed.failures == failed.verdict()


def test_a_second_attempt_counts_as_time_lost_to_locks() -> None:
    step = Step("contract", "alembic upgrade head", 0.0)
    for at, line in (
        (1.0, "INFO alembic.runtime.migration Running upgrade lp_0007_x -> lp_0008_y, Row-level security."),
        (2.0, "WARNING leadprotect no lock in time, blocked by pid 7"),
        (3.0, "INFO alembic.runtime.migration Running upgrade lp_0007_x -> lp_0008_y, Row-level security."),
        (4.0, "INFO alembic.runtime.migration Running upgrade lp_0008_y -> lp_0009_z, Triggers."),
    ):
        note(step, line, at)
    assert [Revision("lp_0008_y", 1.0, 3.0, 4.0, 2), Revision("lp_0009_z", 4.0, 4.0)] == step.revisions
    assert (1.0, 2.0) == (step.revisions[0].seconds, step.revisions[0].waited)


# --- the report in a browser

CHARTS = ("#latency circle", "#latency path", "#latency rect", "#locks rect", "#steps > tbody > tr")


@pytest.fixture(scope="session")
def page(generated: Rehearsed) -> str:
    return generated.file.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [DESK, PHONE])
def test_the_report_draws_its_charts_without_a_word_on_the_console_and_is_readable(page: str, width: int) -> None:
    seen = opened(page, width=width, count=CHARTS)
    assert () == seen.console
    drawn = dict(zip(CHARTS, map(seen.count, CHARTS), strict=True))
    assert drawn["#latency circle"] > 50
    assert 2 == drawn["#latency path"]
    assert drawn["#latency rect"] >= 5
    assert drawn["#locks rect"] > 10
    assert drawn["#steps > tbody > tr"] >= 5
    assert "Rehearsal: passed" == seen.measured["title"]
    assert "PASSED" in seen.measured["text"]
    told = seen.measured
    assert (width, 0, [], []) == (told["width"], told["wider"], told["small"], told["outside"])


def test_the_browser_would_tell_of_an_error(page: str) -> None:
    seen = opened(page.replace("fillPage();", "fillPages();"), width=DESK, count=CHARTS)
    assert any("fillPages is not defined" in line for line in seen.console)
    assert 0 == seen.count("#latency circle")


def test_the_browser_would_tell_of_a_page_that_is_too_wide(page: str) -> None:
    broken = page.replace("<h1>", '<h1 style="min-width: 600px; font-size: 8px; text-align: right">')
    seen = opened(broken, width=PHONE).measured
    assert seen["wider"] > 0
    assert (["Rehearsal of the migration"],) * 2 == (seen["small"], seen["outside"])


def test_the_report_needs_nothing_from_anywhere_else(page: str) -> None:
    links = set(re.findall(r"https?://[^\"'\s)]+", page)) - {"http://www.w3.org/2000/svg"}
    assert set() == links
    assert not re.search(r"<(script|img|iframe)[^>]* src=|<link[^>]* href=\"(?!data:)", page)


def test_what_was_said_can_t_break_out_of_the_report(tmp_path: Path) -> None:
    said = "</script><script>console.log('out')</script><b>&amp;"
    nasty = made_up(Done("old", 50.0, 0.01, "edit", "error", said))
    nasty.samples = [
        Sample(50.0, "leads", "AccessExclusiveLock", granted=True, sessions=1, who="leadprotect migration <i>")
    ]
    report.write_report(nasty, tmp_path / "report.html")
    seen = opened((tmp_path / "report.html").read_text(encoding="utf-8"), width=DESK)
    assert () == seen.console
    assert said in seen.measured["text"]
    assert "FAILED" in seen.measured["text"]
