"""Up, down and up again: nothing is lost, and the same schema stands."""

from __future__ import annotations

from tests.support.database import Database


def test_upgrading_twice_changes_nothing(database: Database) -> None:
    database.upgrade()
    assert database.revision() == "lp_0009_contract_triggers"


def test_what_was_assigned_survives_a_downgrade_to_the_base(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    database.downgrade("base")
    assert database.revision() is None
    database.upgrade()
    assert database.owner(lead) == database.user(1)
