"""rules, grant, revoke, suspend: what SQL has, in Python; a denial keeps its row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import leadprotect
from tests.support.database import Database

NOW = datetime.now(UTC)


def told(found: tuple[leadprotect.LeadRule, ...]) -> list[tuple[str, str, Any, str | None]]:
    """User, protection, lead and sharer."""
    return [(str(r.user_id), r.protection, r.lead_id, r.shared_by and str(r.shared_by)) for r in found]


def test_a_manager_suspends_somebody_and_ends_it(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.acting("manager_de", 9) as conn:
        assert leadprotect.suspend(conn, database.user(1), note="left the firm").reason == "manager"
        assert leadprotect.explain(conn, lead, user_id=database.user(1)).reason == "suspended"
        assert [(database.user(1), "VIEW_ONLY", None, None)] == told(leadprotect.rules(conn))
        assert leadprotect.revoke(conn, database.user(1), "VIEW_ONLY").reason == "manager"
        assert leadprotect.explain(conn, lead, user_id=database.user(1)).reason == "owner"
        assert () == leadprotect.rules(conn)
        (over,) = leadprotect.rules(conn, ended=True)
        assert (False, True) == (over.active, over.effective_to is not None)
    suspended = database.user(1)
    assert database.audit("action::text, outcome::text, reason, territory, note") == [
        ("ASSIGN", "ALLOW", "manager", "DE", f"left the firm; grant VIEW_ONLY to {suspended}"),
        ("UNASSIGN", "ALLOW", "manager", "DE", f"revoke VIEW_ONLY from {suspended}, 1 rules ended"),
    ]


def test_a_rule_holds_for_one_lead_and_its_time_only(database: Database) -> None:
    lead, other = (database.lead("DE", owner=database.user(1)) for _ in range(2))
    with database.acting("manager_de", 9) as conn:
        until = NOW + timedelta(days=14)
        leadprotect.grant(conn, database.user(2), "COLLABORATOR", lead_id=lead, effective_to=until)
        leadprotect.grant(conn, database.user(3), "COLLABORATOR", effective_from=NOW + timedelta(days=1))
        reasons = {
            (number, asked): leadprotect.explain(conn, asked, user_id=database.user(number)).reason
            for number in (2, 3)
            for asked in (lead, other)
        }
        assert reasons == {(2, lead): "collaborator", (2, other): "not_owner", (3, lead): "not_owner",
                           (3, other): "not_owner"}  # fmt: skip
        (of_lead,) = leadprotect.rules(conn, lead_id=lead)
        assert (str(of_lead.user_id), of_lead.effective_to, of_lead.made_by) == (
            database.user(2), until, database.profile.login("manager_de"),
        )  # fmt: skip
        assert [database.user(3)] == [str(rule.user_id) for rule in leadprotect.rules(conn, user_id=database.user(3))]


def test_a_share_is_a_rule_that_names_its_owner(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.acting("seller_de", 1) as conn:
        leadprotect.share(conn, lead, database.user(2))
    with database.acting("manager_de", 9) as conn:
        assert [(database.user(2), "COLLABORATOR", lead, database.user(1))] == told(leadprotect.rules(conn))


@pytest.mark.parametrize("change", [leadprotect.grant, leadprotect.revoke])
def test_a_seller_makes_no_rule_and_the_denial_is_kept(database: Database, change: Any) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        for more in ({}, {"lead_id": lead}):
            with pytest.raises(leadprotect.LeadAccessDenied) as denied:
                change(conn, database.user(1), "COLLABORATOR", **more)
            assert denied.value.decision == leadprotect.Decision(more.get("lead_id"), "not_manager")
        conn.rollback()
    verb = "ASSIGN" if change is leadprotect.grant else "UNASSIGN"
    assert [(verb, "DENY", "not_manager")] * 2 == database.audit()
    assert [0] == database.sql("SELECT count(*) FROM {schema}.lead_protection_rules")


def test_a_manager_makes_no_rule_in_a_territory_that_is_not_his_nor_for_a_lead_of_another(database: Database) -> None:
    swiss = database.lead("CH")
    with database.acting("manager_de", 9, "CH") as conn:
        with pytest.raises(leadprotect.LeadAccessDenied) as denied:
            leadprotect.suspend(conn, database.user(1))
    assert "not_found" == denied.value.decision.reason
    with database.acting("manager_de", 9) as conn:
        for lead in (swiss, database.new_id()):
            with pytest.raises(leadprotect.LeadAccessDenied) as denied:
                leadprotect.suspend(conn, database.user(1), lead_id=lead)
            assert "not_found" == denied.value.decision.reason
    assert [0] == database.sql("SELECT count(*) FROM {schema}.lead_protection_rules")


def test_what_can_t_be_a_rule_costs_no_transaction(database: Database) -> None:
    with database.acting("manager_de", 9) as conn:
        for wrong, words in (
            ({"protection": "OWNER"}, "protection"),
            ({"user_id": ""}, "user_id"),
            ({"lead_id": object()}, "lead_id"),
            ({"effective_from": datetime(2030, 1, 1)}, "time zone"),  # noqa: DTZ001
            ({"effective_to": "tomorrow"}, "datetime"),
            ({"note": 7}, "note"),
        ):
            given: Any = {"user_id": database.user(1), "protection": "COLLABORATOR"} | wrong
            with pytest.raises(leadprotect.InvalidRequest, match=words):
                leadprotect.grant(conn, given.pop("user_id"), given.pop("protection"), **given)
        leadprotect.suspend(conn, database.user(1))
        with pytest.raises(leadprotect.InvalidRequest, match="not after"):
            leadprotect.suspend(conn, database.user(1), effective_to=NOW - timedelta(days=1))


def test_rules_are_for_managers_and_auditors_of_the_territory_in_context(database: Database) -> None:
    database.rule(database.user(1), "VIEW_ONLY")
    database.rule(database.user(2), "VIEW_ONLY", territory="CH")
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        with pytest.raises(leadprotect.ProtectionUnavailable, match="lacks the role"):
            leadprotect.rules(conn)
    with database.acting("auditor_both", 1, "CH") as conn:
        assert [database.user(2)] == [str(rule.user_id) for rule in leadprotect.rules(conn)]
    with database.acting("auditor_de", 1, "CH") as conn:
        assert () == leadprotect.rules(conn)
    with database.connect("manager_de") as conn, pytest.raises(leadprotect.ContextMissing, match="no territory"):
        leadprotect.rules(conn)
