"""assert_edit_many, assign_many, transfer_all: many at once decide, lock and record as one by one."""

from __future__ import annotations

import pickle
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

import leadprotect
from leadprotect.access import bulk
from tests.support.database import Database


def owned(database: Database, count: int, owner: int | None = 1) -> list[Any]:
    return [database.lead("DE", owner=database.user(owner) if owner else None) for _ in range(count)]


def test_many_edits_are_asserted_with_one_record_each(database: Database) -> None:
    mine = owned(database, 3)
    told: list[tuple[int, int]] = []
    with database.acting("seller_de", 1) as conn:
        found = leadprotect.assert_edit_many(
            conn, [*mine, mine[0]], note="mailing", progress=lambda done, total: told.append((done, total))
        )
    assert {lead: leadprotect.Decision(lead, "owner") for lead in mine} == found
    assert [(3, 3)] == told
    assert sorted((lead, "EDIT", "ALLOW", "owner", "mailing") for lead in mine) == sorted(
        database.audit("lead_id, action::text, outcome::text, reason, note")
    )


def test_of_many_each_denial_is_recorded_whatever_becomes_of_the_transaction(database: Database) -> None:
    mine, other, swiss = database.lead("DE", owner=database.user(1)), *owned(database, 1, 2), database.lead("CH")
    with pytest.raises(leadprotect.LeadsAccessDenied) as caught, database.acting("seller_de", 1) as conn:
        leadprotect.assert_edit_many(conn, [other, mine, swiss, None])
    reasons = {decision.lead_id: decision.reason for decision in caught.value.decisions}
    assert {other: "not_owner", swiss: "not_found", None: "not_found"} == reasons
    assert f"access to 3 of 4 leads denied: {other} (not_owner), {swiss} (not_found), None (not_found)" == str(
        caught.value
    )
    assert isinstance(caught.value, leadprotect.LeadAccessDenied)
    assert caught.value.decision == leadprotect.Decision(other, "not_owner")
    kept = {(lead, reason) for lead, reason in database.audit("lead_id, reason")}
    assert {(other, "not_owner"), (swiss, "other_territory")} == kept  # of the rolled back edit nothing


def test_a_denial_of_many_can_be_sent_to_another_process() -> None:
    error = leadprotect.LeadsAccessDenied([leadprotect.Decision(n, "not_owner") for n in range(7)], 9)
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    assert (str(error), error.decisions, error.decision) == (str(again), again.decisions, again.decision)
    assert str(error).endswith("4 (not_owner) and 2 more")


def test_nothing_asked_still_needs_a_context(database: Database) -> None:
    with database.acting("seller_de", 1) as conn:
        assert {} == leadprotect.assert_edit_many(conn, [])
    with database.connect("seller_de") as conn:
        for asked in ([], owned(database, 1)):
            with pytest.raises(leadprotect.ContextMissing):
                leadprotect.assert_edit_many(conn, asked)


def test_a_manager_assigns_many_and_a_seller_none(database: Database) -> None:
    leads = owned(database, 2) + owned(database, 1, None)
    with database.acting("seller_de", 1) as conn, pytest.raises(leadprotect.LeadsAccessDenied) as denied:
        leadprotect.assign_many(conn, leads, database.user(1))
    assert ["not_manager"] * 3 == [decision.reason for decision in denied.value.decisions]
    with database.acting("manager_de", 9) as conn:
        assert {"manager"} == {d.reason for d in leadprotect.assign_many(conn, leads, database.user(2)).values()}
    assert [database.user(2)] * 3 == [database.owner(lead) for lead in leads]
    assert [("ASSIGN", "DENY", "not_manager")] * 3 + [("ASSIGN", "ALLOW", "manager")] * 3 == database.audit()


def test_of_many_that_go_to_somebody_suspended_none_is_assigned(database: Database) -> None:
    leads = owned(database, 2)
    database.rule(database.user(2), "VIEW_ONLY", leads[1])
    with database.acting("manager_de", 9) as conn, pytest.raises(leadprotect.InvalidRequest, match="suspended"):
        leadprotect.assign_many(conn, leads, database.user(2))
    assert [database.user(1)] * 2 == [database.owner(lead) for lead in leads]


def test_all_that_somebody_owns_is_handed_over_in_the_territory_in_context(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "AT_ONCE", 2)
    mine, other, swiss = owned(database, 5), owned(database, 1, 2), database.lead("CH", owner=database.user(1))
    moved_away = database.lead("DE", owner=database.user(1))
    database.sql("UPDATE {leads} SET {territory} = 'CH' WHERE {lead_id} = %s", moved_away)
    told: list[tuple[int, int]] = []
    with database.acting("manager_de", 9) as conn:
        done = leadprotect.transfer_all(
            conn, database.user(1), database.user(3), note="left",
            progress=lambda *so_far: told.append(so_far),
        )  # fmt: skip
        assert 0 == leadprotect.transfer_all(conn, database.user(1), database.user(3))
    assert (5, [(2, 6), (4, 6), (5, 6)]) == (done, told)  # the one that moved away was listed, too
    assert [database.user(3)] * 5 == [database.owner(lead) for lead in mine]
    assert [database.user(2), database.user(1)] == [database.owner(other[0]), database.owner(swiss, "CH")]
    transfers = [row for row in database.audit("lead_id, reason, note") if row[1] == "manager"]
    assert [(lead, "manager", f"left; transfer to {database.user(3)}") for lead in mine] == transfers


def test_a_part_at_a_time_goes_on_where_it_ended(database: Database) -> None:
    owned(database, 5)
    with database.connect("manager_de", autocommit=True) as conn:
        parts: list[int] = []
        while not parts or parts[-1]:
            with conn.transaction(), leadprotect.acting_as(conn, database.user(9), "DE"):
                parts.append(leadprotect.transfer_all(conn, database.user(1), database.user(2), limit=2))
    assert [2, 2, 1, 0] == parts


def test_what_is_somebody_else_s_by_then_stays_with_him(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Listed, then transferred by somebody, then locked: his lead must not be taken from the third."""
    kept, gone = owned(database, 2)
    listing = bulk._leads_of  # noqa: SLF001

    def listed(*args: Any) -> list[Any]:
        found = listing(*args)
        if gone in found:
            with database.acting("manager_de", 9) as other:
                leadprotect.transfer(other, gone, database.user(3))
        return found

    monkeypatch.setattr(bulk, "_leads_of", listed)
    with database.acting("manager_de", 9) as conn:
        assert 1 == leadprotect.transfer_all(conn, database.user(1), database.user(2))
    assert [database.user(2), database.user(3)] == [database.owner(kept), database.owner(gone)]


def test_who_is_no_manager_hands_nothing_over(database: Database) -> None:
    leads = owned(database, 2)
    with database.acting("seller_de", 1) as conn:
        with pytest.raises(leadprotect.LeadsAccessDenied):
            leadprotect.transfer_all(conn, database.user(1), database.user(2))
        for wrong in ({"limit": 0}, {"to_user": database.user(1)}):
            given: Any = {"from_user": database.user(1), "to_user": database.user(2)} | wrong
            with pytest.raises(leadprotect.InvalidRequest):
                leadprotect.transfer_all(conn, **given)
    assert [("ASSIGN", "DENY", "not_manager")] * 2 == database.audit()
    assert [database.user(1)] * 2 == [database.owner(lead) for lead in leads]


def test_a_transfer_waits_for_each_of_many_edits(database: Database) -> None:
    leads = owned(database, 3)
    with database.acting("seller_de", 1) as seller:
        leadprotect.assert_edit_many(seller, leads)
        for lead in leads:
            with database.acting("manager_de", 9) as manager:
                manager.execute("SET LOCAL lock_timeout = '100ms'")
                with pytest.raises(leadprotect.LockUnavailable):
                    leadprotect.transfer(manager, lead, database.user(2))


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("sorted_by_server", [True, False], ids=["in order", "control: as they were given"])
def test_many_in_opposite_orders_never_wait_for_each_other(database: Database, *, sorted_by_server: bool) -> None:
    """The control takes the order out of the function: then PostgreSQL has to end one of them."""
    leads = owned(database, 300)
    if not sorted_by_server:
        (body,) = database.sql("SELECT pg_get_functiondef('{schema}.change_owners'::regproc)")
        database.sql_script(body.replace("ORDER BY u.lead, u.place", "ORDER BY u.place").replace("%", "%%"))
    together = threading.Barrier(2)

    def assign(order: list[Any], number: int) -> str:
        ended = "done"
        for _ in range(5):
            together.wait(timeout=60)
            try:
                with database.acting("manager_de", 9) as conn:
                    leadprotect.assign_many(conn, order, database.user(number))
            except leadprotect.LockUnavailable:
                ended = "deadlock"
        return ended

    with ThreadPoolExecutor(2) as threads:
        ends = set(threads.map(assign, (leads, leads[::-1]), (2, 3)))
    assert ("deadlock" in ends) is not sorted_by_server


@pytest.mark.profiles("pg18")
def test_slices_of_many_are_taken_in_the_server_s_order(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "AT_ONCE", 3)
    leads = owned(database, 10)
    asked: list[list[Any]] = []
    ask = bulk._ask  # noqa: SLF001

    def watched(conn: psycopg.Connection[Any], kind: str, leads: list[Any], *args: Any, **more: Any) -> Any:
        asked.append(leads)
        return ask(conn, kind, leads, *args, **more)

    monkeypatch.setattr(bulk, "_ask", watched)
    with database.acting("seller_de", 1) as conn:
        leadprotect.assert_edit_many(conn, random.sample(leads, 10))
    assert (sorted(leads), [3, 3, 3, 1]) == ([lead for part in asked for lead in part], [len(part) for part in asked])
