"""Before contract nothing is denied, and what would be is noted."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadprotect.migration.shadow import shadow_report, start_shadow, stop_shadow

if TYPE_CHECKING:
    from tests.support.database import Database


def noted(database: Database) -> set[tuple[str, str, str]]:
    with database.connect() as conn:
        found = shadow_report(conn, settings=database.settings)
    assert found is not None
    return {(one.login.removeprefix(f"{database.profile.name}_"), one.kind, one.reason) for one in found.denied}


def test_a_write_without_a_context_is_noted_and_done(expanded: Database) -> None:
    lead = expanded.lead("DE", owner=expanded.user(1))
    start_shadow(config=expanded.config())
    with expanded.connect("seller_de") as conn:
        expanded.query(conn, "UPDATE {leads} SET city = 'Bern' WHERE {lead_id} = %s", lead)
    assert ["Bern"] == expanded.sql("SELECT city FROM {leads}")
    assert {("seller_de", "UPDATE", "no_context")} == noted(expanded)
    with expanded.acting("seller_de", 2) as conn:
        expanded.query(conn, "UPDATE {leads} SET city = 'Bonn' WHERE {lead_id} = %s", lead)
    with expanded.acting("seller_de", 1) as conn:
        expanded.query(conn, "UPDATE {leads} SET city = 'Ulm' WHERE {lead_id} = %s", lead)
    assert {("seller_de", "UPDATE", "no_context"), ("seller_de", "UPDATE", "not_owner")} == noted(expanded)
    stop_shadow(config=expanded.config())
