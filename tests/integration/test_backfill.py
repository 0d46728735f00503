"""The backfill gives every lead with a qualifying activity the owner that its newest one names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from click.testing import CliRunner

from leadprotect.backfill import backfill
from leadprotect.cli import main

if TYPE_CHECKING:
    from tests.support.database import Database


def test_the_user_of_the_newest_qualifying_activity_becomes_the_owner(expanded: Database) -> None:
    lead = before_the_trigger(expanded)

    (result,) = backfill(expanded.url, "DE")

    assert expanded.user(2) == expanded.owner(lead)
    assert (2, 1, 0) == (result.scanned, result.assigned, result.verified.missing)


def test_the_command_line_backfills_several_territories(expanded: Database) -> None:
    lead = before_the_trigger(expanded)

    answer = CliRunner().invoke(main, ["backfill", "DE", "CH", "--batch-size", "1", "--workers", "2"])

    assert (0, expanded.user(2)) == (answer.exit_code, expanded.owner(lead)), answer.output
    assert "DE: 2 leads" in answer.stdout


def before_the_trigger(database: Database) -> object:
    """Leads and activities as from before the first revision: one lead with an owner to be, one without."""
    lead = database.lead()
    database.lead()
    database.activity(lead, database.user(2), at="2026-02-01")
    database.activity(lead, database.user(1), at="2026-01-01")
    database.activity(lead, database.user(3), "NOTE", at="2026-03-01")
    database.sql("DELETE FROM {schema}.user_lead_assignments")
    return lead
