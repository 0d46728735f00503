"""What somebody reads in a terminal of 60, 80 and 140 columns: the screens are files beside the tests.

In none of them is an id or a remedy cut: what the terminal breaks, a mouse copies whole.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

import leadprotect
from leadprotect import backfill
from leadprotect.cli.terminal import laid_out, pasted, remedy_lines
from tests.support.leads import old_leads
from tests.support.screens import WIDTHS, compare, normal, terminal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.database import Database

ONCE = pytest.mark.crossed("a screen each for states and widths by day")


@dataclass(frozen=True)
class State:
    """A database in some state, and the command whose screen it is."""

    command: str
    phase: str = "head"
    prepare: Callable[[Database], object] = lambda _: None
    login: str | None = None


def waiting(database: Database) -> None:
    """Owners are missing, and a login reads without a role of ours."""
    old_leads(database, 1600)
    database.sql(f'GRANT SELECT, UPDATE ON {{leads}} TO "{database.profile.login("outsider")}"')


def opened(database: Database) -> None:
    database.lead("DE", owner=database.user(1))
    database.sql("ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY")


def recorded(database: Database) -> None:
    """An edit by the owner, one by somebody else, a transfer, and a rule."""
    lead = database.lead("DE", owner=database.user(1))
    for number in (1, 2):
        with database.acting("seller_de", number) as conn:
            leadprotect.can_edit(conn, lead)
            try:
                leadprotect.assert_edit(conn, lead, note="call back in the afternoon, after four o'clock")
            except leadprotect.LeadAccessDenied:
                conn.rollback()
    with database.acting("manager_de", 3) as conn:
        leadprotect.transfer(conn, lead, database.user(2))
        leadprotect.suspend(conn, database.user(4), note="on leave")


LEAD = "00000000-a000-0000-0000-000000000001"
STATES = {
    "status-waiting": State("status", "expanded", waiting),
    "status-contracted": State("status", "head", lambda database: database.lead("DE", owner=database.user(1))),
    "status-broken": State("status", "head", opened),
    "doctor-danger": State("doctor", "head", opened),
    "audit-list": State("audit list", "head", recorded, "auditor_both"),
    "audit-who": State(f"audit who {LEAD} --at $(date -u +%Y-%m-%dT%H:%M:%S.%6NZ)", "head", recorded, "auditor_both"),
    "audit-denied": State("audit seal", "head", recorded, "outsider"),
    "owner-show": State(f"owner show {LEAD} --territory DE", "head", recorded, "manager_de"),
    "rules-list": State("rules list --territory DE", "head", recorded, "manager_de"),
    "rules-denied": State("rules list --territory CH", "head", recorded, "manager_de"),
    "territory-list": State("territory list"),
    "territory-used": State("territory remove DE", "head", recorded),
    "redteam": State("redteam", "head", recorded, "seller_de"),
    "roles": State("roles"),
    "pin-status": State("pin status"),
    "gate": State("gate check --no-database"),
    "backfill-status": State("backfill status", "expanded", lambda database: backfill(database.url, "DE")),
    "backfill-estimate": State("backfill DE --dry-run", "expanded", waiting),
    "backfill-unknown": State("backfill FR", "expanded"),
    "apply": State("apply --dry-run"),
    "repair": State("repair --json | head -c 60", "head", opened),
    "purge-left": State("purge --left"),
    "not-installed": State("status", "host"),
    "usage": State("backfill"),
    "usage-command": State("new"),
}


@pytest.mark.profiles("screens")
@ONCE
@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("state", STATES)
def test_a_screen_is_as_somebody_has_seen_and_liked_it(
    make_database: Callable[..., Database], tmp_path: Path, state: str, columns: int
) -> None:
    wanted = STATES[state]
    database = make_database(wanted.phase)
    wanted.prepare(database)
    url = database.login_url(wanted.login) if wanted.login else database.url
    with terminal(columns, tmp_path, database.environment | {"DATABASE_URL": url}) as shown:
        shown.run(f"leadprotect {wanted.command}")
        compare(state, columns, normal(shown.seen(), {}))
        lines = shown.copied()
    whole = [line.strip() for line in "\n".join(lines).splitlines()]
    assert [] == [line for line in whole if line.endswith("…")]


BAR = """
import sys, time
from dataclasses import replace
from leadprotect.backfilling.progress import Progress
from leadprotect.cli.console import Console
from leadprotect.cli.progress import Bar
full = Progress(("DE", "CH"), 450_000, 400_000, 0, 1_000_000, 60.0, 7_500.0, 1_407, 1.0, None)
told = {
    "full": full,
    "slowed": replace(full, factor=0.5, reason="the server writes 5 MiB of WAL a second, and may write 4"),
    "held": replace(full, factor=0.0, rate=0.0, reason="a replica is 12 s behind, and may be 10"),
    "locked": replace(full, rate=0.0, deferred=3, scanned=1_000_000, reason="3 leads are locked by "
                      "pid 4711 (some importer, idle in transaction, transaction 340 s old): UPDATE leads SET a = ?"),
    "many": replace(full, territories=tuple(f"REGION_{number}" for number in range(12))),
}
with Bar(Console(stderr=True)) as bar:
    bar(told[sys.argv[1]])
"""


@ONCE
@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize("situation", ["full", "slowed", "held", "locked", "many"])
def test_the_bar_stands_on_one_line_and_why_it_waits_below(tmp_path: Path, situation: str, columns: int) -> None:
    script = tmp_path / "bar.py"
    script.write_text(BAR)
    with terminal(columns, tmp_path, {}) as shown:
        shown.run(f"{sys.executable} {script} {situation}")
        compare(f"bar-{situation}", columns, shown.seen())


@pytest.mark.profiles("screens")
def test_a_no_is_red_and_a_yes_is_not(make_database: Callable[..., Database], tmp_path: Path) -> None:
    database = make_database("expanded")
    waiting(database)
    with terminal(140, tmp_path, database.environment) as shown:
        shown.run("leadprotect status")
        lines = shown.painted().splitlines()
    said = {re.sub(r"\x1b\[[\d;]*m", "", line): "\x1b[31m" in line for line in lines}
    refused = {line: red for line, red in said.items() if line.startswith("no ")}
    assert {"no   owners": True, "no   logins": True} == refused
    assert [] == [line for line, red in said.items() if line.startswith("yes") and red]


@pytest.mark.parametrize("columns", WIDTHS)
@pytest.mark.parametrize(
    ("said", "prose", "to_run"),
    [
        ("stopped; go on with: leadprotect backfill DE CH", "stopped; go on with:", "leadprotect backfill DE CH"),
        (
            "it lacks the role. A DBA can run: GRANT a_role_with_quite_a_long_name TO another_one_that_is_long",
            "it lacks the role. A DBA can run:",
            "GRANT a_role_with_quite_a_long_name TO another_one_that_is_long",
        ),
        (
            'it has to let go: UPDATE "public"."leads" SET "parent" = NULL WHERE "id" = \'7\';',
            "it has to let go:",
            'UPDATE "public"."leads" SET "parent" = NULL WHERE "id" = \'7\';',
        ),
    ],
)  # fmt: skip
def test_what_is_to_be_run_has_a_line_of_its_own(columns: int, said: str, prose: str, to_run: str) -> None:
    assert [prose, f"  {to_run}"] == laid_out(said, columns)


def test_a_command_that_a_sentence_goes_on_about_stays_in_it() -> None:
    said = "alembic upgrade head takes every row back; leadprotect purge deletes them"
    assert [said] == laid_out(said, 140)


def test_a_remedy_of_several_statements_and_another_way_is_told_line_by_line() -> None:
    remedy = "GRANT a TO b; GRANT c TO d; or name it in exempt_roles"
    assert ["GRANT a TO b;", "GRANT c TO d;", "or name it in exempt_roles"] == remedy_lines(remedy)
    assert [True, True, False] == [pasted(step) for step in remedy_lines(remedy)]


def test_a_file_gets_every_line_as_it_is() -> None:
    said = "a word and " * 40 + "run: leadprotect backfill DE"
    assert [said] == laid_out(said, None)
