"""Down to the base and up again: what the old application did meanwhile is no secret to the gate."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

import leadprotect
from leadprotect.backfilling import jobs
from leadprotect.cli import main
from leadprotect.doctor.status import status
from leadprotect.migration import gate
from tests.support.revisions import HEAD, NAMED
from tests.support.revisions import MIGRATE_HEAD as MIGRATE

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadprotect.migration.gate import Condition
    from tests.support.database import Database

BELOW = ["base", NAMED["expand_lead_triggers"], NAMED["expand_activity_triggers"]]


def closed(database: Database) -> list[Condition]:
    with database.connect() as conn:
        return [found for found in gate.conditions(conn, settings=database.settings) if not found.met]


def derived(database: Database, number: int = 1) -> object:
    """A lead of DE whose owner rests on an activity of this user."""
    lead = database.lead("DE")
    database.activity(lead, database.user(number), at="2026-01-01")
    return lead


@pytest.mark.parametrize("below", BELOW)
def test_an_owner_that_became_stale_without_the_triggers_is_repaired_before_contract(
    expanded: Database, below: str
) -> None:
    lead = derived(expanded)
    leadprotect.backfill(expanded.url, ["DE", "CH"])
    expanded.upgrade()
    expanded.downgrade(below)
    newer = expanded.activity(lead, expanded.user(2), at="2026-02-01")
    if below == NAMED["expand_activity_triggers"]:  # its triggers are there: as if they had not been
        expanded.sql("UPDATE {schema}.user_lead_assignments SET user_id = %s", expanded.user(1))

    expanded.upgrade()

    assert MIGRATE == expanded.revision()
    (found,) = closed(expanded)
    assert "owners" == found.name
    assert "1 leads in DE have another owner than their newest qualifying activity says" == found.detail
    assert "leadprotect backfill DE" == found.remedy
    answer = CliRunner().invoke(main, shlex.split(str(found.remedy))[1:], catch_exceptions=False)
    assert 0 == answer.exit_code, answer.output
    assert expanded.user(2) == expanded.owner(lead)
    assert [newer] == expanded.sql("SELECT activity_id FROM {schema}.user_lead_assignments")
    expanded.upgrade()
    assert HEAD == expanded.revision()


@pytest.mark.profiles("pg18", "other_names")
def test_with_nothing_changed_meanwhile_it_goes_straight_back_to_head(expanded: Database) -> None:
    lead = derived(expanded)
    leadprotect.backfill(expanded.url, ["DE", "CH"])
    expanded.upgrade()
    expanded.downgrade()
    expanded.upgrade()
    assert HEAD == expanded.revision()
    assert expanded.user(1) == expanded.owner(lead)
    with expanded.connect() as conn:  # no word of a walk that nobody made since
        assert {(None, None, 0)} == {(job.started_at, job.ended_at, job.scanned) for job in status(conn).backfill}


@pytest.mark.profiles("pg18", "other_names")
def test_the_observation_window_begins_anew(make_database: Callable[..., Database]) -> None:
    database = make_database("expanded", observation_window="7 days")
    leadprotect.backfill(database.url, ["DE", "CH"])
    database.sql(
        "UPDATE {schema}.backfill_jobs SET registered_at = registered_at - interval '8 days', "
        "started_at = started_at - interval '8 days', ended_at = ended_at - interval '8 days', "
        "finished_at = finished_at - interval '8 days'"
    )
    assert [] == closed(database)  # the control: the window is over
    database.downgrade()
    database.upgrade()
    assert MIGRATE == database.revision()
    assert ["observation_window"] == [found.name for found in closed(database)]


@pytest.mark.profiles("pg18", "other_names")
def test_a_walk_that_was_interrupted_before_begins_anew(expanded: Database) -> None:
    """Leads before its cursor would keep the owners of the time before the downgrade."""
    lead = derived(expanded)
    with expanded.connect(autocommit=True) as conn:
        expanded.query(conn, "SELECT {schema}.backfill_start('DE', {schema}.backfill_settings())")
        expanded.query(conn, "SELECT {schema}.backfill_claim('DE', 10, 'a worker', interval '30 seconds')")
        expanded.query(conn, "SELECT {schema}.backfill_slice('DE', 1, 1, 10)")
    expanded.downgrade()
    expanded.activity(lead, expanded.user(2), at="2026-02-01")
    expanded.upgrade()
    with expanded.connect() as conn:
        assert {"new"} == {job.state for job in jobs.list_jobs(conn)}
    (result,) = leadprotect.backfill(expanded.url, "DE")
    assert (1, 1) == (result.scanned, result.assigned)
    assert expanded.user(2) == expanded.owner(lead)


@pytest.mark.profiles("pg18")
def test_contract_compares_no_owners_once_the_index_for_it_is_gone(expanded: Database) -> None:
    """A scan of all activities for each lead would hold up contract for hours."""
    for _ in range(50):
        derived(expanded)
    expanded.downgrade()
    expanded.upgrade(NAMED["contract_indexes"])
    with expanded.connect() as conn:
        assert all(found.met for found in gate.conditions(conn, settings=expanded.settings))
        scans = expanded.query(conn, "SELECT pg_stat_get_xact_numscans({activities_name}::regclass)")[0]
    assert scans <= 2  # one for each territory
