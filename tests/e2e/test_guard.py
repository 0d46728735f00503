"""leadprotect guard over real rollouts: a real Prometheus says what it sees, and a real database goes back."""

from __future__ import annotations

import re
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx
import psycopg
import pytest

from tests.support.browser import opened
from tests.support.leads import old_leads
from tests.support.profiles import NIGHTLY
from tests.support.revisions import MIGRATE_HEAD, NAMED
from tests.support.stage import QUICK, Stage, guarding, stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.database import Database
    from tests.support.servers import Server

pytestmark = [
    pytest.mark.profiles("pg18"),
    pytest.mark.xdist_group("guard"),
]

NEXT = NAMED["contract_indexes"]
UP = ("alembic", "upgrade", NEXT)
LONG = ("--interval", "1s", "--bake", "10min", "--resume-after", "2")
FILL = ("leadprotect", "backfill", "DE", "CH", "--hold-unless", "SELECT to_regclass('crm.not_yet') IS NULL")
PHONE, DESK = 390, 1280
WITHIN_S = 10.0 if NIGHTLY else 60.0  # by day other tests have the machine, too


@pytest.fixture(scope="module")
def watched(running: Callable[[int], Server], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One Prometheus with all that it scrapes, for every test here."""
    with stage(tmp_path_factory.mktemp("stage"), running(18)) as found:
        yield found


@pytest.fixture
def healthy(watched: Stage) -> Stage:
    """The stage, once every alert is quiet."""
    watched.heal()
    return watched


@pytest.fixture
def filling(expanded: Database) -> Database:
    """A database whose backfill goes on until a table is dropped."""
    old_leads(expanded, 3)
    expanded.sql("CREATE TABLE crm.not_yet ()")
    return expanded


def test_rules_about_a_metric_that_nobody_has_are_refused_at_the_start(healthy: Stage, expanded: Database) -> None:
    expanded.overrides["prometheus_service"] = "mistaken"
    with guarding(healthy, expanded, *UP) as guard:
        assert 30 == guard.ended(), guard.said
    assert "refused at the start, UNKNOWN" in guard.said
    assert "latency: " in guard.said
    assert MIGRATE_HEAD == expanded.revision()


def test_a_slow_service_is_rolled_back_and_verified_in_time(healthy: Stage, expanded: Database, tmp_path: Path) -> None:
    page = tmp_path / "guard.html"
    with guarding(healthy, expanded, *UP, options=(*LONG, "--report", str(page), "--serve", "127.0.0.1:0")) as guard:
        guard.until("every step is done")
        served(guard.said)
        assert "looks again every 5 s" in page.read_text()
        healthy.service.slow = True
        fired = healthy.firing("LeadprotectLatencyHigh")
        guard.until("rollback  verified")
        assert WITHIN_S > time.monotonic() - fired
        assert 20 == guard.ended(), guard.said
    assert MIGRATE_HEAD == expanded.revision()
    look_at(page.read_text())


def served(said: str) -> None:
    """The page and its data, for who asks by the right name."""
    (url,) = re.findall(r"the page is at (http://127\.0\.0\.1:\d+/)", said)
    data = httpx.get(f"{url}data.json").json()
    assert (True, "alembic upgrade " + NEXT) == (data["running"], data["command"])
    assert "Guard of a rollout" in httpx.get(url).text
    assert 404 == httpx.get(f"{url}elsewhere").status_code
    assert 403 == httpx.get(f"{url}data.json", headers={"Host": "somewhere.example"}).status_code


def look_at(page: str) -> None:
    """What a reader sees of it, on a phone and on a desk."""
    for width in (PHONE, DESK):
        seen = opened(page, width=width, count=("#timeline .span", "#gates tbody tr", "#steps tbody tr", ".spark path"))
        assert (0, [], [], ()) == (
            seen.measured["wider"],
            seen.measured["outside"],
            seen.measured["small"],
            seen.console,
        )
        assert "Guard: rolled back" == seen.measured["title"]
        assert 1 == seen.count("#steps tbody tr")
        assert 10 <= seen.count("#gates tbody tr") == seen.count(".spark path")
        assert 6 <= seen.count("#timeline .span")
        assert "LeadprotectLatencyHigh is firing" in seen.measured["text"]
        assert "leadprotect guard -- alembic upgrade" in seen.measured["text"]


def test_five_errors_in_a_hundred_end_a_backfill_and_leave_it_paused(healthy: Stage, filling: Database) -> None:
    with guarding(healthy, filling, *FILL, options=LONG) as guard:
        guard.until("the SQL condition is not true")
        healthy.service.failing = True
        assert 20 == guard.ended(), guard.said
    assert "LeadprotectErrorsHigh is firing" in guard.said
    assert "the backfill of CH, DE stays paused until then" in guard.said


@pytest.mark.nightly("by day tests/unit/test_guard_machine.py says so, and one rollout goes back")
def test_a_deadlock_pauses_the_backfill_until_it_is_forgotten(healthy: Stage, filling: Database) -> None:
    with guarding(healthy, filling, *FILL, options=QUICK) as guard:
        guard.until("the SQL condition is not true")
        deadlock(filling)
        guard.until("paused the backfill of CH, DE: no slice is under way")
        guard.until("resumed the backfill of CH, DE")
        filling.sql("DROP TABLE crm.not_yet")
        assert 0 == guard.ended(), guard.said
    assert "deadlocks: " in guard.said
    assert "ROLLBACK" not in guard.said


def deadlock(database: Database) -> None:
    """Two sessions that wait for each other, until the server ends one of them."""
    first, second = database.sql("SELECT {lead_id} FROM {leads} ORDER BY {lead_id} LIMIT 2")
    touch = database.text("UPDATE {leads} SET {territory} = {territory} WHERE {lead_id} = %s")
    with database.connect() as one, database.connect() as other:
        one.execute(touch.encode(), (first,))
        other.execute(touch.encode(), (second,))

        def wait() -> None:
            with suppress(psycopg.errors.DeadlockDetected):
                other.execute(touch.encode(), (first,))

        waiting = threading.Thread(target=wait)
        waiting.start()
        with suppress(psycopg.errors.DeadlockDetected):
            one.execute(touch.encode(), (second,))
        one.rollback()
        waiting.join()
        other.rollback()


@pytest.mark.nightly("by day tests/unit/test_guard_machine.py says so, and one rollout goes back")
def test_whoever_sees_nothing_pauses_goes_on_when_it_sees_again_and_never_goes_back(
    healthy: Stage, expanded: Database
) -> None:
    with guarding(healthy, expanded, *UP, options=LONG) as guard:
        guard.until("every step is done")
        troubles: list[tuple[Callable[[], None], Callable[[], None]]] = [
            (lambda: setattr(healthy.service, "idle", True), healthy.service.heal),
            (healthy.prometheus.hang, healthy.prometheus.go_on),
            (lambda: healthy.prometheus.stop(signal.SIGKILL), healthy.prometheus.start),
        ]
        for number, (blind, sees) in enumerate(troubles, 1):
            blind()
            guard.until("guard     paused: ", times=number)
            sees()
            guard.until("every step is done", times=number + 1)
        guard.process.terminate()
        assert 10 == guard.ended(), guard.said
    assert 3 <= guard.said.count("gates     UNKNOWN: ")
    assert "ROLLBACK" not in guard.said
    assert NEXT == expanded.revision()
