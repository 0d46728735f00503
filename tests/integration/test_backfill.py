"""The backfill gives every lead with a qualifying activity the owner that its newest one names."""

from __future__ import annotations

import csv
import json
from typing import TYPE_CHECKING

import psycopg
import pytest
from click.testing import CliRunner, Result

import leadprotect
from leadprotect.backfilling.jobs import list_jobs
from leadprotect.backfilling.run import backfill
from leadprotect.backfilling.verify import verify_owners
from leadprotect.cli import main
from leadprotect.errors import BackfillIncomplete
from leadprotect.settings import current
from tests.support.leads import old_leads, owners

if TYPE_CHECKING:
    from pathlib import Path

    from leadprotect.backfilling.progress import Progress
    from tests.support.database import Database


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["backfill", *arguments])


def test_the_user_of_the_newest_qualifying_activity_becomes_the_owner(expanded: Database) -> None:
    german, swiss = old_leads(expanded, 100), old_leads(expanded, 30, "CH")

    de, ch = leadprotect.backfill(expanded.url, ["DE", "CH"], batch_size=40)

    assert (german, swiss) == (owners(expanded), owners(expanded, "CH"))
    assert (100, 88, 12) == (de.scanned, de.assigned, de.verified.ownerless)
    assert (30, 27, 3) == (ch.scanned, ch.assigned, ch.verified.ownerless)


@pytest.mark.parametrize("batch_size", [1, 7, 50, 51, 1000])
def test_the_size_of_a_chunk_changes_nothing(expanded: Database, batch_size: int) -> None:
    expected = old_leads(expanded, 51)

    (result,) = backfill(expanded.url, "DE", batch_size=batch_size, workers=2)

    assert expected == owners(expanded)
    assert 51 == result.scanned


def test_of_two_activities_at_one_time_the_higher_id_wins_and_one_without_time_comes_last(expanded: Database) -> None:
    undated, tied = expanded.lead(), expanded.lead()
    expanded.activity(undated, expanded.user(1), at="2026-01-01")
    expanded.activity(undated, expanded.user(2), at=None)
    expanded.activity(tied, expanded.user(3))
    expanded.activity(tied, expanded.user(4))
    expanded.activity(tied, None, at="2026-05-05")
    expanded.sql("DELETE FROM {schema}.user_lead_assignments")

    backfill(expanded.url, "DE")

    assert {undated: expanded.user(1), tied: expanded.user(4)} == owners(expanded)


def test_a_connection_of_the_caller_names_the_database_and_is_not_touched(expanded: Database) -> None:
    expected = old_leads(expanded, 10)
    with expanded.connect() as conn, expanded.engine() as engine, engine.connect() as core:
        conn.execute("SELECT pg_current_xact_id()")
        backfill(conn, ["DE"])
        assert psycopg.pq.TransactionStatus.INTRANS == conn.info.transaction_status
        assert expected == owners(expanded)
        (again,) = backfill(core, ["DE"])
    assert 0 == again.assigned


def test_a_second_run_assigns_nothing_and_finds_what_came_later(expanded: Database) -> None:
    old_leads(expanded, 20)
    backfill(expanded.url, "DE")
    later = old_leads(expanded, 5)

    (result,) = backfill(expanded.url, "DE")

    assert (25, 5) == (result.scanned, result.assigned)
    assert later.items() <= owners(expanded).items()


def test_a_lead_released_by_hand_before_the_cursor_arrives_stays_released(expanded: Database) -> None:
    lead = next(iter(old_leads(expanded, 3)))
    with expanded.connect("manager_de") as conn, leadprotect.acting_as(conn, expanded.user(9), "DE"):
        leadprotect.assign(conn, lead, expanded.user(4))
        leadprotect.release(conn, lead)

    (result,) = backfill(expanded.url, "DE")

    assert (None, 2, 1) == (owners(expanded)[lead], result.assigned, result.verified.released)


def test_an_owner_made_by_hand_stays(expanded: Database) -> None:
    lead = next(iter(old_leads(expanded, 3)))
    with expanded.connect("manager_de") as conn, leadprotect.acting_as(conn, expanded.user(9), "DE"):
        leadprotect.assign(conn, lead, expanded.user(77))

    backfill(expanded.url, "DE")

    assert expanded.user(77) == owners(expanded)[lead]


def test_an_owner_that_the_trigger_made_gives_way_to_a_newer_activity_from_before_it(expanded: Database) -> None:
    lead, owner = next(iter(old_leads(expanded, 1).items()))
    expanded.activity(lead, expanded.user(99), at="2020-01-01")
    assert expanded.user(99) == expanded.owner(lead)

    (result,) = backfill(expanded.url, "DE")

    assert (owner, 1) == (expanded.owner(lead), result.assigned)


def test_a_lead_that_live_traffic_assigned_costs_the_others_of_its_slice_nothing(expanded: Database) -> None:
    leads = list(old_leads(expanded, 50))
    expanded.activity(leads[20], expanded.user(3))
    with expanded.connect() as conn:
        expanded.query(conn, "SELECT {schema}.own_leads('DE', %s::{lead_id_type}[])", leads)
        looked_up = expanded.query(conn, "SELECT pg_stat_get_xact_numscans('{activities_index_path}'::regclass)")
    assert [50] == looked_up


def test_progress_ends_with_everything_done(expanded: Database) -> None:
    old_leads(expanded, 40)
    seen: list[Progress] = []

    backfill(expanded.url, "DE", on_progress=seen.append)

    assert (True, 40, 35, 40) == (seen[-1].done, seen[-1].scanned, seen[-1].assigned, seen[-1].total)
    assert all(one.reason is None for one in seen[-1:])


def test_the_operator_s_role_is_enough(expanded: Database) -> None:
    expected = old_leads(expanded, 20)

    backfill(expanded.login_url("operator"), "DE", batch_size=5)

    assert expected == owners(expanded)


def test_nobody_but_the_operator_may_call_its_functions(expanded: Database) -> None:
    with expanded.connect("seller_de") as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        expanded.query(conn, "SELECT {schema}.backfill_request('DE', 'stop', NULL)")


# --- the truth at the end


def test_verify_names_what_is_missing_and_what_another_owner_has(expanded: Database) -> None:
    leads = old_leads(expanded, 10)
    backfill(expanded.url, "DE")
    missing, stale, *_ = [lead for lead, owner in leads.items() if owner]
    expanded.sql("DELETE FROM {schema}.user_lead_assignments WHERE lead_id = %s", missing)
    expanded.sql("UPDATE {schema}.user_lead_assignments SET user_id = %s WHERE lead_id = %s", expanded.user(98), stale)
    with expanded.connect("operator") as conn:
        (seen,) = verify_owners(conn, ["DE"])
    answer = run("--verify", "DE")

    assert ((missing,), (stale,), False) == (seen.missing_leads, seen.stale_leads, seen.complete)
    assert 3 == answer.exit_code
    assert f"missing: {missing}" in answer.stdout
    assert f"other owner: {stale}" in answer.stdout

    assert 0 == run("DE").exit_code
    assert 0 == run("--verify", "DE", "CH").exit_code
    assert leads == owners(expanded)


def test_verify_needs_no_right_in_the_schema_of_the_host(expanded: Database) -> None:
    """An operator is a member of one role, and nothing of the host is granted to it."""
    s, login = expanded.settings, expanded.profile.login("operator")
    owner, reader = s.role("owner"), s.role("reader")
    expanded.sql_script(f"""
        REVOKE USAGE ON SCHEMA public, crm FROM PUBLIC, "{login}", "{s.role("operator")}";
        GRANT USAGE ON SCHEMA public, crm TO "{owner}", "{reader}"
        """)
    with expanded.connect("operator") as conn:
        (seen,) = verify_owners(conn, ["DE"])
        assert seen.complete
        # control: to cast the name of a table to its oid, it would need the right
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            expanded.query(conn, "SELECT {activities_name}::regclass")


def test_the_gate_and_the_verification_ask_the_same_query(expanded: Database) -> None:
    old_leads(expanded, 10)
    gate = expanded.sql("SELECT detail FROM {schema}.gate_conditions('0', 'off', '{}') WHERE condition = 'owners'")
    with expanded.connect() as conn:
        (seen,) = verify_owners(conn, ["DE"])

    assert 9 == seen.missing
    assert ["9 leads in DE have a qualifying activity but no owner"] == gate


def test_the_report_lists_every_lead_without_an_owner_and_why(expanded: Database, tmp_path: Path) -> None:
    leads = old_leads(expanded, 8)
    (outside,) = old_leads(expanded, 1, None)
    released = next(iter(leads))
    expanded.sql(
        "INSERT INTO {schema}.user_lead_assignments (lead_id, territory, source) VALUES (%s, 'DE', 'release')", released
    )
    file = tmp_path / "ownerless.csv"
    answer = run("DE", "--report", str(file))
    with file.open() as text:
        listed = {(row["lead_id"], row["territory"], row["reason"]) for row in csv.DictReader(text)}

    (ownerless,) = [lead for lead, owner in leads.items() if owner is None]
    assert 0 == answer.exit_code
    assert {
        (str(released), "DE", "released"),
        (str(ownerless), "DE", "no_qualifying_activity"),
        (str(outside), "", "no_territory"),
    } == listed
    assert "1 leads have no territory: they are outside protection" in answer.stdout


def test_a_dry_run_estimates_and_writes_nothing(expanded: Database) -> None:
    old_leads(expanded, 400)
    before = expanded.sql("SELECT started_at, chunks FROM {schema}.backfill_jobs ORDER BY territory")

    with expanded.connect() as conn:
        (estimate,) = backfill(conn, ["DE"], dry_run=True)
    answer = run("DE", "--dry-run")

    assert (400, 350, 50) == (estimate.leads, estimate.assignable, estimate.ownerless)
    assert estimate.wal_bytes > 0
    assert "350 would get an owner" in answer.stdout
    assert before == expanded.sql("SELECT started_at, chunks FROM {schema}.backfill_jobs ORDER BY territory")
    assert [0] == expanded.sql("SELECT count(*) FROM {schema}.user_lead_assignments")


def test_an_incomplete_end_carries_what_was_done(expanded: Database) -> None:
    lead = next(iter(old_leads(expanded, 3)))
    with expanded.connect() as conn:
        expanded.query(
            conn,
            "INSERT INTO {schema}.user_lead_assignments (lead_id, territory, user_id, source) "
            "VALUES (%s, 'DE', %s, 'assign')",
            *(lead, expanded.user(5)),
        )
        with pytest.raises(BackfillIncomplete, match="is locked by pid") as caught:
            backfill(expanded.url, "DE", patience=0.1)
        conn.rollback()

    (result,) = caught.value.results
    assert (3, 2, lead) == (result.scanned, result.assigned, result.locked[0].lead_id)


# --- the command line


def test_the_command_line_says_what_was_done(expanded: Database) -> None:
    old_leads(expanded, 24)

    answer = run("DE", "CH", "--batch-size", "10", "--workers", "2")

    assert 0 == answer.exit_code, answer.output
    assert "DE: 24 leads scanned, 21 owners assigned, 3 leads have no qualifying activity\n" in answer.stdout
    assert "CH: 0 leads scanned" in answer.stdout
    assert "24 of about 24 leads (100 %)" in answer.stderr


def test_json_lines_are_told_to_programs(expanded: Database) -> None:
    old_leads(expanded, 24)

    answer = run("DE", "--json")
    lines = [json.loads(line) for line in answer.stdout.splitlines()]

    assert ["done", "result"] == [line["event"] for line in lines][-2:]
    assert (24, 21) == (lines[-1]["scanned"], lines[-1]["assigned"])
    assert 0 == lines[-1]["verified"]["missing"]


@pytest.mark.profiles("pg18")
def test_a_login_with_limits_of_its_own_is_told_that_it_is_complete(
    expanded: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A statement_timeout for services must not end the verification, which takes as long as it takes."""
    expected = old_leads(expanded, 16_000)
    login = expanded.profile.login("operator")
    limit = f'ALTER ROLE "{login}" IN DATABASE "{expanded.name}" SET'
    expanded.sql(f"{limit} statement_timeout = '10ms'")
    expanded.sql(f"{limit} transaction_timeout = '10ms'")
    monkeypatch.setenv("DATABASE_URL", expanded.login_url("operator"))
    current.cache_clear()
    done = run("DE", "--report", str(tmp_path / "ownerless.csv"))
    verified = run("--verify", "DE", "--report", str(tmp_path / "again.csv"))

    assert (0, 0) == (done.exit_code, verified.exit_code), done.output + verified.output
    assert "DE: complete" in verified.stdout
    assert expected == owners(expanded)


def test_status_tells_where_each_territory_stands(expanded: Database) -> None:
    old_leads(expanded, 8)
    assert run("status").stdout.startswith("CH: new, ")
    run("DE")

    assert run("status", "DE").stdout == "DE: done, 8 leads scanned, 7 owners assigned, 0 locked, 0 workers\n"
    assert "DE" == json.loads(run("status", "DE", "--json").stdout)["territory"]
    with expanded.connect("operator") as conn:
        assert ["new", "done"] == [job.state for job in list_jobs(conn)]
