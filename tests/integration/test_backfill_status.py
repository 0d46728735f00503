"""Where the backfill stands: one answer, whichever command is asked."""

from __future__ import annotations

import json
import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

from leadprotect.backfilling import jobs
from leadprotect.backfilling.run import backfill
from leadprotect.cli import main
from leadprotect.settings.sources import fingerprint
from tests.support.forked import Forked
from tests.support.leads import old_leads
from tests.support.revisions import MIGRATE_HEAD

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

pytestmark = pytest.mark.profiles("pg18")

LEASE_S = 0.5
# with slices enough that whoever looks for the first is there before the last, however busy the machine is
RUN = ("tests.support.backfilling", "100", "1", str(LEASE_S))


def said(*command: str) -> str:
    told = CliRunner().invoke(main, [*command], catch_exceptions=False)
    assert 0 == told.exit_code, told.output
    return told.stdout


def agreed(territory: str = "DE") -> dict[str, Any]:
    """What both commands say of a territory, to a program and to a person."""
    job: dict[str, Any] = next(
        one for one in json.loads(said("status", "--json"))["backfill"] if one["territory"] == territory
    )
    (line,) = said("backfill", "status", territory, "--json").splitlines()
    other = json.loads(line)
    # the server may gather statistics between the two, from which the total is estimated
    assert job | {"event": "job", "total": other["total"]} == other
    assert said("backfill", "status", territory).startswith(f"{territory}: {job['state']}")
    (row,) = (row for row in said("status").splitlines() if row.startswith(f"{territory} "))
    assert job["state"] in row
    return job


def test_the_total_of_a_territory_that_an_expression_tells_is_no_share_of_nothing(
    make_database: Callable[..., Database],
) -> None:
    """Of an expression there are no statistics: the planner takes a two hundredth of the leads for each value."""
    database = make_database("host", territory_expression="coalesce(nullif(territory, ''), city)")
    database.sql(
        "INSERT INTO {leads} (id, territory, city) "
        "SELECT gen_random_uuid(), CASE WHEN n % 4 > 0 THEN 'DE' END, 'CH' FROM generate_series(1, 800) AS n"
    )
    database.upgrade(MIGRATE_HEAD)
    assert {"DE": 600, "CH": 200} == dict(
        database.sql("SELECT t.code, {schema}.backfill_estimate(t.code) FROM {schema}.territories AS t")
    )


def test_what_was_walked_to_its_end_is_done(expanded: Database) -> None:
    assert "new" == agreed()["state"]
    old_leads(expanded, 50)
    backfill(expanded.url, "DE")
    job = agreed()
    assert ("done", 50, 0) == (job["state"], job["scanned"], job["workers"])
    assert job["started_at"] < job["ended_at"]


def test_a_second_walk_under_way_is_running(expanded: Database) -> None:
    old_leads(expanded, 50)
    backfill(expanded.url, "DE")
    with expanded.connect("operator", autocommit=True) as conn:
        start = "SELECT {schema}.backfill_start('DE', %s)"
        expanded.query(conn, start, fingerprint(expanded.settings))
        expanded.query(conn, "SELECT {schema}.backfill_claim('DE', 10, 'a worker', interval '1 minute')")
        job = agreed()
    assert ("running", None, 1) == (job["state"], job["ended_at"], job["workers"])


def test_a_paused_backfill_is_paused_and_then_goes_on(expanded: Database) -> None:
    with expanded.connect("operator", autocommit=True) as conn:
        jobs.pause(conn, ["DE"], reason="month end", settings=expanded.settings)
        job = agreed()
        assert ("paused", "month end") == (job["state"], job["request_reason"])
        jobs.resume(conn, ["DE"], settings=expanded.settings)
    assert "new" == agreed()["state"]


def test_what_a_dead_worker_left_is_interrupted_once_its_lease_is_over(expanded: Database) -> None:
    old_leads(expanded, 16_000)
    claimed = "SELECT count(*) FROM {schema}.backfill_chunks"
    with Forked(RUN, os.environ | expanded.environment) as process:
        while expanded.sql(claimed) == [0] and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert -signal.SIGKILL == process.returncode
    held = "SELECT count(*) FROM {schema}.backfill_chunks WHERE finished_at IS NULL AND lease_until > clock_timestamp()"
    while expanded.sql(held) != [0]:
        time.sleep(LEASE_S / 10)
    job = agreed()
    assert ("interrupted", None, 0) == (job["state"], job["ended_at"], job["workers"])
    backfill(expanded.url, "DE")
    assert ("done", 16_000) == (agreed()["state"], agreed()["scanned"])
