"""A rollout over two databases: real guards, processes and rollbacks; only what the gates say comes from files."""

from __future__ import annotations

import json
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Self

import pytest
from click.testing import CliRunner

from leadprotect.cli import main
from leadprotect.errors import InvalidRequest, SettingsError
from leadprotect.fleet.guards import FleetGuard, FleetOutcome, GuardedDatabase, Heard
from leadprotect.settings import load, parse
from leadprotect.settings.files import CONFIG
from tests.integration.test_fleet import DEAD, ini
from tests.support.database import ROOT
from tests.support.revisions import MIGRATE_HEAD, NAMED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from leadprotect.settings import Settings
    from tests.support.database import Database

pytestmark = pytest.mark.profiles("pg18")

NEXT = NAMED["contract_indexes"]
EVERY = ("--interval", "1s", "--resume-after", "1", "--bake")


def up(file: Path) -> tuple[str, ...]:
    return ("--", "alembic", "-c", str(file), "upgrade", NEXT)


class Fleet:
    """A fleet of guards that runs in a thread; what is said is kept, and waited for."""

    def __init__(self, file: Path, script: Path, **options: Any) -> None:
        self.script = script
        self.heard: list[Heard] = []
        self.outcome: FleetOutcome | None = None
        bake = options.pop("bake", "0s")
        self.guards = FleetGuard(
            load_from(file), (*EVERY, bake, *up(file)), tell=self.heard.append,
            program=("tests.support.scripted", str(script)), **options,
        )  # fmt: skip
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        self.outcome = self.guards.run()

    def gates(self, code: str, verdict: str) -> None:
        """What those of a territory say from now on."""
        beside = self.script.with_suffix(".new")
        beside.write_text(verdict)
        beside.replace(f"{self.script}{code}")

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.guards.interrupt("the test is over")
        self.thread.join(120)

    def said(self, code: str) -> str:
        return "\n".join(str(one.event.get("what", one.line)) for one in self.heard if one.database == code)

    def until(self, code: str, text: str) -> None:
        while text not in self.said(code):
            assert self.thread.is_alive(), self.heard
            time.sleep(0.02)

    def until_gone(self, code: str) -> None:
        """Until its guard has ended, which takes longer than to say that all is well."""
        while self.guards._all[code].running:  # noqa: SLF001
            assert self.thread.is_alive(), self.heard
            time.sleep(0.02)

    def ended(self) -> dict[str, GuardedDatabase]:
        self.thread.join(120)
        assert self.outcome, self.heard
        return {one.name: one for one in self.outcome.databases}


def load_from(file: Path) -> Settings:
    os.environ[CONFIG] = str(file)
    return load()


@pytest.fixture
def two(make_database: Callable[..., Database], monkeypatch: pytest.MonkeyPatch) -> tuple[Database, Database]:
    """Two databases before contract."""
    made = make_database("expanded"), make_database("expanded")
    monkeypatch.delenv("DATABASE_URL")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv(CONFIG, "")
    return made


def script(folder: Path, **verdicts: str) -> Path:
    for code in ("DE", "CH"):
        (folder / f"gates{code}").write_text(verdicts.get(code, "PROCEED"))
    return folder / "gates"


def revisions(two: tuple[Database, Database]) -> list[str | None]:
    return [one.revision() for one in two]


def codes(found: dict[str, GuardedDatabase]) -> list[int | None]:
    return [one.exit_code for one in found.values()]


def test_the_others_wait_for_the_canary_and_a_second_run_does_what_is_left(
    two: tuple[Database, Database], tmp_path: Path
) -> None:
    here, there = two
    broken = ini(tmp_path, DE=here.url, AT=here.url, CH=DEAD)
    with Fleet(broken, script(tmp_path), canary="DE") as fleet:
        found = fleet.ended()
    assert [0, 1] == codes(found)
    assert "no connection to the database" in found["CH"].why
    assert [NEXT, MIGRATE_HEAD] == revisions(two)
    mended = ini(tmp_path, DE=here.url, AT=here.url, CH=there.url)
    with Fleet(mended, script(tmp_path), canary="DE") as fleet:
        found = fleet.ended()
    assert [0, 0] == codes(found)
    assert "there is nothing to do" in found["DE+AT"].why
    assert [NEXT, NEXT] == revisions(two)


def test_nobody_follows_a_canary_that_went_back(two: tuple[Database, Database], tmp_path: Path) -> None:
    here, there = two
    file = ini(tmp_path, DE=here.url, AT=here.url, CH=there.url)
    with Fleet(file, script(tmp_path), canary="CH", bake="10min") as fleet:
        fleet.until("CH", "every step is done")
        assert "" == fleet.said("DE+AT")
        fleet.gates("CH", "ROLLBACK")
        found = fleet.ended()
    assert [None, 20] == codes(found)
    assert ("not begun", "CH went first, and ended rolled back") == (found["DE+AT"].ended, found["DE+AT"].why)
    assert [MIGRATE_HEAD, MIGRATE_HEAD] == revisions(two)


@pytest.mark.nightly("by day tests/unit/test_fleet_guards.py decides it, and others here run guards")
def test_each_is_on_its_own_unless_told(two: tuple[Database, Database], tmp_path: Path) -> None:
    here, there = two
    file = ini(tmp_path, DE=here.url, AT=here.url, CH=there.url)
    with Fleet(file, script(tmp_path), canary=None, bake="10min") as fleet:
        for code in ("DE+AT", "CH"):
            fleet.until(code, "every step is done")
        fleet.gates("CH", "ROLLBACK")
        fleet.until_gone("CH")
        fleet.guards.interrupt("enough")
        found = fleet.ended()
    assert [10, 20] == codes(found)
    assert [NEXT, MIGRATE_HEAD] == revisions(two)


def test_together_one_that_pauses_holds_the_others_and_one_that_goes_back_takes_them_along(
    two: tuple[Database, Database], tmp_path: Path
) -> None:
    here, there = two
    file = ini(tmp_path, DE=here.url, AT=here.url, CH=there.url)
    with Fleet(file, script(tmp_path), canary=None, bake="10min", together=True) as fleet:
        for code in ("DE+AT", "CH"):
            fleet.until(code, "every step is done")
        fleet.gates("CH", "PAUSE")
        fleet.until("DE+AT", "paused: fleet: CH says PAUSE: scripted: the file says PAUSE")
        fleet.gates("CH", "PROCEED")
        fleet.until("DE+AT", "watching again")
        fleet.gates("CH", "ROLLBACK")
        found = fleet.ended()
    assert [20, 20] == codes(found)
    assert "fleet: CH goes back: scripted: the file says ROLLBACK" in found["DE+AT"].why
    assert [MIGRATE_HEAD, MIGRATE_HEAD] == revisions(two)


def test_together_a_canary_that_was_done_goes_back_with_the_others(
    two: tuple[Database, Database], tmp_path: Path
) -> None:
    here, there = two
    file = ini(tmp_path, DE=here.url, AT=here.url, CH=there.url)
    with there.connect() as reader:
        there.query(reader, "SELECT FROM {leads}")  # the step of CH waits for it until it is cancelled
        with Fleet(file, script(tmp_path), canary="DE", together=True) as fleet:
            fleet.until("CH", "runs alembic")
            fleet.gates("CH", "ROLLBACK")
            found = fleet.ended()
    assert [20, 20] == codes(found)
    assert [MIGRATE_HEAD, MIGRATE_HEAD] == revisions(two)
    assert "verified" in fleet.said("DE+AT")


@pytest.mark.nightly("by day tests/unit/test_fleet_guards.py decides it, and others here run guards")
def test_together_a_canary_that_was_done_in_an_earlier_run_stays_and_is_named(
    two: tuple[Database, Database], tmp_path: Path
) -> None:
    here, there = two
    broken = ini(tmp_path, DE=here.url, AT=here.url, CH=DEAD)
    with Fleet(broken, script(tmp_path), canary="DE", together=True) as fleet:
        assert [0, 1] == codes(fleet.ended())
    file = ini(tmp_path, DE=here.url, AT=here.url, CH=there.url)
    with Fleet(file, script(tmp_path), canary="DE", together=True, bake="10min") as fleet:
        fleet.until("CH", "every step is done")
        fleet.gates("CH", "ROLLBACK")
        found = fleet.ended()
    assert [0, 20] == codes(found)
    assert [NEXT, MIGRATE_HEAD] == revisions(two)
    assert f"it had {NEXT} before this run" in found["DE+AT"].why
    assert (f"leadprotect --on DE rollback --to {MIGRATE_HEAD}",) == found["DE+AT"].following


def test_a_guard_whose_fleet_dies_leaves_everything_paused(two: tuple[Database, Database], tmp_path: Path) -> None:
    here, there = two
    file = ini(tmp_path, DE=here.url, AT=here.url, CH=there.url)
    with Fleet(file, script(tmp_path), canary="CH", bake="10min") as fleet:
        fleet.until("CH", "every step is done")
        process = fleet.guards._children["CH"].process  # noqa: SLF001 - as its end closes it
        assert process
        assert process.stdin
        process.stdin.close()
        found = fleet.ended()
    assert 10 == found["CH"].exit_code
    assert "whoever leads the fleet is gone" in found["CH"].why
    assert NEXT == there.revision()


# --- the command


def guard(file: Path, *words: str) -> Any:
    return CliRunner().invoke(main, ["guard", *words, *up(file)])


def test_the_command_says_where_each_stands_in_lines_and_as_json(
    two: tuple[Database, Database], tmp_path: Path
) -> None:
    """Without a Prometheus nothing is known, so each refuses to begin: one row for each, and nothing is touched."""
    here, there = two
    file = ini(tmp_path, DE=here.url, AT=here.url, CH=there.url)
    done = guard(file, "--fleet", "--canary", "none", "--report", str(tmp_path / "page.html"))
    assert 30 == done.exit_code, done.output
    assert "DE+AT |" in done.stderr
    assert "refused at the start, UNKNOWN" in done.stderr
    assert 2 == done.stdout.count("unknown")
    assert ["page-CH.html", "page-DE+AT.html"] == sorted(one.name for one in tmp_path.glob("page*"))
    done = guard(file, "--fleet", "--canary", "CH", "--json")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert (30, "fleet") == (done.exit_code, lines[-1]["event"])
    assert [["DE", "AT"], ["CH"]] == [one["territories"] for one in lines[-1]["databases"]]
    assert [None, 30] == [one["exit_code"] for one in lines[-1]["databases"]]
    assert {"CH"} == {code for line in lines[:-1] for code in line["database"]}
    assert [MIGRATE_HEAD, MIGRATE_HEAD] == revisions(two)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--fleet",), "say whose database goes first"),
        (("--canary", "CH"), "--canary is for a rollout over all databases: --fleet"),
        (("--together",), "--together is for a rollout over all databases: --fleet"),
        (("--fleet", "--canary", "CH", "--serve", "127.0.0.1:0"), "--serve shows one guard"),
        (("--fleet", "--canary", "FR"), "'FR' is in no database"),
    ],
)
def test_what_can_t_be_meant_is_refused(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CONFIG, "")
    done = guard(ini(tmp_path, DE=DEAD, AT=DEAD, CH=DEAD), *words)
    assert done.exit_code in (1, 2)
    assert said in " ".join(done.stderr.split())


def test_a_fleet_needs_databases_and_a_canary_that_is_one() -> None:
    with pytest.raises(SettingsError, match="there is no section"):
        FleetGuard(parse({}), (), canary=None, tell=lambda _: None)
    urls = {"DE": DEAD, "CH": DEAD}
    with pytest.raises(InvalidRequest, match=r"'FR' is in no database .* those hold DE, CH"):
        FleetGuard(parse({}, {}, urls), (), canary="FR", tell=lambda _: None)
