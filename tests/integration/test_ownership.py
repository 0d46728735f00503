"""assign, claim, release, transfer, share: who may change who may edit."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from typing import Any

import psycopg
import pytest

import leadprotect
from tests.support.database import Database


def denied(call: Any, *args: Any) -> str:
    with pytest.raises(leadprotect.LeadAccessDenied) as caught:
        call(*args)
    return caught.value.decision.reason


def test_a_lead_that_nobody_owns_can_be_claimed(database: Database) -> None:
    lead = database.lead("DE")
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        assert leadprotect.claim(conn, lead, note="met at the fair").reason == "owner"
        assert leadprotect.can_edit(conn, lead) is True
    assert database.audit("action::text, reason, note") == [
        ("ASSIGN", "owner", f"met at the fair; claim to {database.user(1)}")
    ]


def test_an_owned_lead_can_t_be_claimed(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(2))
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        assert denied(leadprotect.claim, conn, lead) == "not_owner"
    assert database.owner(lead) == database.user(2)
    assert database.audit() == [("ASSIGN", "DENY", "not_owner")]


def test_a_denied_claim_leaves_no_trace_on_the_lead(database: Database) -> None:
    """A suspended seller must not be able to keep the backfill away from a lead."""
    lead = database.lead("DE")
    database.rule(database.user(1), "VIEW_ONLY")
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        assert denied(leadprotect.claim, conn, lead) == "suspended"
    assert database.sql("SELECT count(*) FROM {schema}.user_lead_assignments") == [0]


def test_of_two_claims_at_the_same_moment_one_wins(database: Database) -> None:
    leads = [database.lead("DE") for _ in range(10)]
    together = threading.Barrier(2)

    def claim(number: int) -> list[str]:
        reasons: list[str] = []
        for lead in leads:
            with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(number), "DE"):
                together.wait(timeout=120)
                try:
                    reasons.append(leadprotect.claim(conn, lead).reason)
                except leadprotect.LeadAccessDenied as error:
                    reasons.append(error.decision.reason)
        return reasons

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.map(claim, (1, 2))
    assert [sorted(pair) for pair in zip(first, second, strict=True)] == [["not_owner", "owner"]] * 10


def test_a_released_lead_belongs_to_nobody_and_can_be_claimed(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn:
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            leadprotect.release(conn, lead)
            assert leadprotect.explain(conn, lead).reason == "unassigned"
        with leadprotect.acting_as(conn, database.user(2), "DE"):
            leadprotect.claim(conn, lead)
    assert database.owner(lead) == database.user(2)


def test_only_the_owner_or_a_manager_releases(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    database.rule(database.user(2), "COLLABORATOR", lead)
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(2), "DE"):
        assert denied(leadprotect.release, conn, lead) == "not_owner"
    with database.acting("manager_de", 9) as conn:
        assert leadprotect.release(conn, lead).reason == "manager"
    assert database.owner(lead) is None


def test_only_a_manager_assigns_and_transfers(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        assert denied(leadprotect.transfer, conn, lead, database.user(2)) == "not_manager"
        assert denied(leadprotect.assign, conn, lead, database.user(2)) == "not_manager"
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            database.query(conn, "SELECT {schema}.transfer_lead(%s, %s)", lead, database.user(2))
    assert database.owner(lead) == database.user(1)
    with database.acting("manager_de", 9) as conn:
        assert leadprotect.transfer(conn, lead, database.user(2)).reason == "manager"
    assert database.owner(lead) == database.user(2)


def test_a_manager_of_another_territory_finds_nothing(database: Database) -> None:
    lead = database.lead("CH", owner=database.user(1))
    with database.acting("manager_de", 9) as conn:
        assert denied(leadprotect.assign, conn, lead, database.user(2)) == "not_found"
        with leadprotect.acting_as(conn, database.user(1), "CH"):
            assert denied(leadprotect.transfer, conn, lead, database.user(2)) == "not_found"
    assert database.audit("reason") == ["other_territory", "other_territory"]


def test_only_an_owned_lead_is_transferred(database: Database) -> None:
    lead = database.lead("DE")
    with database.acting("manager_de", 9) as conn:
        assert denied(leadprotect.transfer, conn, lead, database.user(2)) == "unassigned"
        assert leadprotect.assign(conn, lead, database.user(2)).reason == "manager"


def test_a_lead_is_not_given_to_who_is_suspended(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    database.rule(database.user(2), "VIEW_ONLY")
    with database.acting("manager_de", 9) as conn:
        with pytest.raises(leadprotect.InvalidRequest, match="suspended in territory DE"):
            leadprotect.transfer(conn, lead, database.user(2))
        conn.rollback()
    assert database.owner(lead) == database.user(1)


def test_an_owner_shares_his_lead_and_ends_it(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de", autocommit=True) as conn:
        with conn.transaction(), leadprotect.acting_as(conn, database.user(1), "DE"):
            leadprotect.share(conn, lead, database.user(2))
        assert leadprotect.explain(conn, lead, user_id=database.user(2), territory="DE").reason == "collaborator"
        with conn.transaction(), leadprotect.acting_as(conn, database.user(1), "DE"):
            leadprotect.unshare(conn, lead, database.user(2))
        assert leadprotect.explain(conn, lead, user_id=database.user(2), territory="DE").reason == "not_owner"


def test_who_does_not_own_a_lead_can_t_share_it(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    database.rule(database.user(2), "COLLABORATOR", lead)
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(2), "DE"):
        assert denied(leadprotect.share, conn, lead, database.user(3)) == "not_owner"
    assert database.sql("SELECT count(*) FROM {schema}.lead_protection_rules") == [1]


def test_a_share_ends_after_it_begins(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    now = datetime.now(UTC)
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        with pytest.raises(leadprotect.InvalidRequest, match="time zone"):
            leadprotect.share(conn, lead, database.user(2), effective_to=datetime(2030, 1, 1))  # noqa: DTZ001
        with pytest.raises(leadprotect.InvalidRequest, match="not a datetime"):
            leadprotect.share(conn, lead, database.user(2), effective_to=date(2030, 1, 1))  # type: ignore[arg-type]
        with pytest.raises(leadprotect.InvalidRequest, match="effective_to is not after effective_from"):
            leadprotect.share(conn, lead, database.user(2), effective_from=now, effective_to=now - timedelta(days=1))


def test_a_transfer_waits_for_an_asserted_edit(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as seller, leadprotect.acting_as(seller, database.user(1), "DE"):
        leadprotect.assert_edit(seller, lead)
        with database.acting("manager_de", 9) as manager:
            manager.execute("SET lock_timeout = '100ms'")
            with pytest.raises(leadprotect.LeadProtectError):
                leadprotect.transfer(manager, lead, database.user(2))
        seller.rollback()
    with database.acting("manager_de", 9) as manager:
        assert leadprotect.transfer(manager, lead, database.user(2)).reason == "manager"


def test_an_assertion_that_waited_for_a_transfer_is_decided_after_it(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.acting("manager_de", 9) as manager, ThreadPoolExecutor(1) as thread:
        leadprotect.transfer(manager, lead, database.user(2))

        def edit() -> str:
            with database.connect("seller_de") as seller, leadprotect.acting_as(seller, database.user(1), "DE"):
                return denied(leadprotect.assert_edit, seller, lead)

        waiting = thread.submit(edit)
        wait_for_a_waiter(database)
        manager.commit()
        assert waiting.result(timeout=120) == "not_owner"


def test_an_assertion_that_waited_for_a_revocation_is_decided_after_it(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    database.rule(database.user(2), "COLLABORATOR", lead)
    with database.connect("seller_de") as owner, ThreadPoolExecutor(1) as thread:

        def edit() -> str:
            with database.connect("seller_de") as seller, leadprotect.acting_as(seller, database.user(2), "DE"):
                return denied(leadprotect.assert_edit, seller, lead)

        with leadprotect.acting_as(owner, database.user(1), "DE"):
            leadprotect.unshare(owner, lead, database.user(2))
        waiting = thread.submit(edit)
        wait_for_a_waiter(database)
        owner.commit()
        assert waiting.result(timeout=120) == "not_owner"


def wait_for_a_waiter(database: Database) -> None:
    blocked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    for _ in range(1000):
        if database.sql(blocked) != [0]:
            return
    pytest.fail("nobody waits")


def test_former_assignments_are_kept(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.acting("manager_de", 9) as conn:
        leadprotect.transfer(conn, lead, database.user(2))
        leadprotect.release(conn, lead)
    history = "SELECT user_id::text, source FROM {schema}.user_lead_assignment_history ORDER BY id"
    assert database.sql(history) == [(database.user(1), "assign"), (database.user(2), "transfer")]


def test_a_manager_grants_and_revokes_rules(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("manager_de", autocommit=True) as conn:
        database.query(conn, "SELECT {schema}.grant_protection(%s, 'DE', 'VIEW_ONLY')", database.user(1))
        assert leadprotect.explain(conn, lead, user_id=database.user(1), territory="DE").reason == "suspended"
        database.query(conn, "SELECT {schema}.revoke_protection(%s, 'DE', 'VIEW_ONLY')", database.user(1))
        assert leadprotect.explain(conn, lead, user_id=database.user(1), territory="DE").reason == "owner"
        with pytest.raises(psycopg.DatabaseError) as denied_there:
            database.query(conn, "SELECT {schema}.grant_protection(%s, 'CH', 'VIEW_ONLY')", database.user(1))
    assert ("LP403", "not_manager") == (denied_there.value.sqlstate, denied_there.value.diag.message_detail)
    with database.connect("seller_de") as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        database.query(conn, "SELECT {schema}.grant_protection(%s, 'DE', 'COLLABORATOR')", database.user(3))


def test_what_a_manager_does_without_a_context_is_recorded_in_the_lead_s_territory(database: Database) -> None:
    lead = database.lead("DE")
    assign = "SELECT {schema}.assign_lead(%s, %s)"
    with database.connect("manager_de") as conn:
        database.query(conn, assign, lead, database.user(2))
    assert database.audit("territory, reason") == [("DE", "manager")]
    with database.connect("auditor") as conn:
        assert database.query(conn, "SELECT lead_id FROM {schema}.lead_access_audit") == []


@pytest.mark.profiles("pg18", "pg15")
def test_a_manager_who_declares_a_malformed_user_changes_nothing(database: Database) -> None:
    lead = database.lead("DE")
    for change in ("assign_lead(%s, %s)", "share_lead(%s, %s)"):
        with database.connect("manager_de") as conn:
            database.context(conn, "nonsense", "DE")
            with pytest.raises(psycopg.errors.DatabaseError) as denied:
                database.query(conn, f"SELECT {{schema}}.{change}", lead, database.user(2))
            assert (denied.value.sqlstate, denied.value.diag.message_detail) == ("LP403", "no_context")
    assert database.owner(lead) is None


def test_without_a_context_nothing_is_changed_by_a_manager_either(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    calls: list[Any] = [
        lambda conn: leadprotect.assign(conn, lead, database.user(2)),
        lambda conn: leadprotect.transfer(conn, lead, database.user(2)),
        lambda conn: leadprotect.claim(conn, lead),
        lambda conn: leadprotect.release(conn, lead),
        lambda conn: leadprotect.share(conn, lead, database.user(2)),
        lambda conn: leadprotect.unshare(conn, lead, database.user(2)),
    ]
    with database.connect("manager_de") as conn:
        for user, territory in ((None, None), (database.user(9), None), (None, "DE")):
            database.context(conn, user, territory)
            for call in calls:
                with pytest.raises(leadprotect.ContextMissing):
                    call(conn)
    assert (database.user(1), []) == (database.owner(lead), database.audit())


def test_an_id_that_is_no_user_costs_no_transaction(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    wrong = [None, "", 7, b"seller 2", "a\0b"]
    if database.settings.user_id_type == "uuid":
        wrong += ["nobody", "0x" + "0" * 30, "1_" + "0" * 30, f" {database.user(2)}"]
    with database.acting("manager_de", 9) as conn:
        for user in wrong:
            for call in (leadprotect.assign, leadprotect.transfer, leadprotect.share, leadprotect.unshare):
                with pytest.raises(leadprotect.InvalidRequest, match="user_id"):
                    call(conn, lead, user)  # type: ignore[arg-type]
        assert leadprotect.assign(conn, lead, database.user(2)).reason == "manager"


@pytest.mark.profiles("pg18")
def test_a_new_owner_is_named_in_every_form_of_a_uuid(database: Database) -> None:
    owner = uuid.uuid4()
    lead = database.lead("DE")
    with database.acting("manager_de", 9) as conn:
        for form in (owner, str(owner).upper(), f"{{{owner}}}", owner.hex, owner.urn):
            leadprotect.assign(conn, lead, form)
            assert database.query(conn, "SELECT user_id FROM {schema}.user_lead_assignments") == [owner]
            leadprotect.release(conn, lead)


def test_a_note_that_can_t_be_stored_costs_no_transaction(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.acting("seller_de", 1) as conn:
        for note in ("a\0b", "\ud800", 7):
            for call in (leadprotect.release, leadprotect.assert_edit):
                with pytest.raises(leadprotect.InvalidRequest, match="note"):
                    call(conn, lead, note=note)  # type: ignore[arg-type]
        assert leadprotect.assert_edit(conn, lead).reason == "owner"
