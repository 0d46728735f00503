"""assert_edit_many, assign_many, transfer_all: many at once decide, lock and record as one by one."""

from __future__ import annotations

import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from threading import Event
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


IN_ORDER = {"change_together": "ORDER BY s.lead_id FOR UPDATE", "allow_edits": "ORDER BY a.lead_id FOR SHARE"}
"""Function -> how it locks what many leads rest on."""


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("in_order", [True, False], ids=["in order", "control: as they were given"])
@pytest.mark.parametrize("first", ["assign", "assert"])
def test_many_in_opposite_orders_never_wait_for_each_other(database: Database, first: str, *, in_order: bool) -> None:
    """Somebody holds the lead in the middle until both wait: two who took theirs from both ends would wait for ever."""
    leads = owned(database, 9)
    if not in_order:
        for function, order in IN_ORDER.items():
            lead = order.split()[2]
            instead(database, function, order, order.replace(lead, f"array_position(leads, {lead})"))

    def assign(order: list[Any], number: int) -> str:
        with database.acting("manager_de", 9) as conn:
            return tried(leadprotect.assign_many, conn, order, database.user(number))

    def edit(order: list[Any], number: int) -> str:
        with database.acting("seller_de", number) as conn:
            return tried(leadprotect.assert_edit_many, conn, order)

    with database.connect() as holder, ThreadPoolExecutor(2) as threads:
        database.query(holder, "SELECT FROM {schema}.user_lead_assignments WHERE lead_id = %s FOR UPDATE", leads[4])
        ends = [threads.submit(assign if first == "assign" else edit, leads, 1)]
        wait_for_waiters(database, 1)
        ends.append(threads.submit(assign, leads[::-1], 2))
        wait_for_waiters(database, 2)
        holder.rollback()
        said = {end.result(timeout=120) for end in ends}
    assert ("LockUnavailable" in said) is not in_order


def test_of_many_edits_one_that_waited_for_a_transfer_is_decided_after_it(database: Database) -> None:
    first, gone, last = owned(database, 3)
    with database.acting("manager_de", 9) as manager, ThreadPoolExecutor(1) as thread:
        leadprotect.transfer(manager, gone, database.user(2))
        edit = thread.submit(edits, database, [last, gone, first])
        wait_for_waiters(database, 1)
        manager.commit()
        assert {first: "allowed", gone: "not_owner", last: "allowed"} == edit.result(timeout=120)
    # control: without the lock it is decided as if nobody had taken it
    instead(database, "allow_edits", "ORDER BY a.lead_id FOR SHARE", "ORDER BY a.lead_id")
    with database.acting("manager_de", 9) as manager:
        leadprotect.transfer(manager, first, database.user(2))
        assert {first: "owner", last: "owner"} == edits(database, [last, first])


def test_of_all_that_somebody_owns_one_that_is_being_transferred_stays_with_the_third(database: Database) -> None:
    kept, gone = owned(database, 2)

    def hand_over() -> int:
        with database.acting("manager_de", 9) as conn:
            return leadprotect.transfer_all(conn, database.user(1), database.user(2))

    with database.acting("manager_de", 9) as manager, ThreadPoolExecutor(1) as thread:
        leadprotect.transfer(manager, gone, database.user(3))
        all_of_his = thread.submit(hand_over)
        wait_for_waiters(database, 1)
        manager.commit()
        assert 1 == all_of_his.result(timeout=120)
    assert [database.user(2), database.user(3)] == [database.owner(kept), database.owner(gone)]


@pytest.mark.profiles("pg18", "pg15")
def test_many_shares_of_other_leads_do_not_hold_up_whoever_owns_them(database: Database) -> None:
    """What a collaborator may edit is locked for him; what he may not is not his to hold."""
    shared, other = owned(database, 2, 2)
    database.rule(database.user(1), "COLLABORATOR", shared)
    with database.acting("seller_de", 1) as seller:
        with pytest.raises(leadprotect.LeadsAccessDenied):
            leadprotect.assert_edit_many(seller, [shared, other])
        with database.acting("manager_de", 9) as manager:
            manager.execute("SET LOCAL lock_timeout = '100ms'")
            leadprotect.transfer(manager, other, database.user(3))
            with pytest.raises(leadprotect.LockUnavailable):
                leadprotect.transfer(manager, shared, database.user(3))


@pytest.mark.profiles("pg18", "pg15")
def test_an_edit_of_a_shared_lead_reads_no_other_share(database: Database) -> None:
    """Somebody who helps everybody may hold thousands of rules."""
    shared = database.lead("DE", owner=database.user(2))
    for lead in (shared, *(database.new_id() for _ in range(200))):
        database.rule(database.user(1), "COLLABORATOR", lead)
    read = "SELECT idx_tup_fetch FROM pg_stat_xact_all_tables WHERE relid = '{schema}.lead_protection_rules'::regclass"

    def fetched() -> int:
        with database.acting("seller_de", 1) as conn:
            leadprotect.assert_edit(conn, shared)
            (number,) = (found for (found,) in conn.execute(database.text(read)).fetchall())
            conn.rollback()
            return int(number)

    assert fetched() <= FEW
    # control: a condition that no probe answers reads them all
    right = "AND r.lead_id = lead FOR SHARE"
    instead(database, "decide_locked", right, "AND (r.lead_id IS NULL OR r.lead_id = lead) FOR SHARE")
    assert fetched() > FEW


FEW = 20
"""Rows of rules that one decision may read."""


@pytest.mark.profiles("pg18", "pg15")
def test_a_revocation_waits_for_each_of_many_edits_that_rest_on_the_share(database: Database) -> None:
    shared = owned(database, 2, 2)
    for lead in shared:
        database.rule(database.user(1), "COLLABORATOR", lead)
    for locks in (True, False):
        if not locks:  # control: without the lock it does not wait
            instead(database, "allow_edits", "ORDER BY r.lead_id, r.effective_from FOR SHARE", "")
        with database.acting("seller_de", 1) as seller:
            found = leadprotect.assert_edit_many(seller, shared)
            assert {"collaborator"} == {one.reason for one in found.values()}
            for lead in shared:
                with database.acting("manager_de", 9) as manager:
                    manager.execute("SET LOCAL lock_timeout = '100ms'")
                    assert locks == ("LockUnavailable" == tried(leadprotect.unshare, manager, lead, database.user(1)))
                    manager.rollback()


def test_of_many_edits_one_that_waited_for_a_revocation_is_decided_after_it(database: Database) -> None:
    first, ended = owned(database, 2, 2)
    for lead in (first, ended):
        database.rule(database.user(1), "COLLABORATOR", lead)
    with database.acting("manager_de", 9) as manager, ThreadPoolExecutor(1) as thread:
        leadprotect.unshare(manager, ended, database.user(1))
        edit = thread.submit(edits, database, [ended, first])
        wait_for_waiters(database, 1)
        manager.commit()
        assert {first: "allowed", ended: "not_owner"} == edit.result(timeout=120)


@pytest.mark.profiles("pg18", "pg15")
def test_what_becomes_one_s_own_while_its_share_is_waited_for_is_held_as_one_s_own(database: Database) -> None:
    """Of a lead that nobody owns the rule alone is locked; who owns it by then rests on his assignment."""
    for holds in (True, False):
        if not holds:  # control: with the lock of a rule for that of an assignment
            instead(database, "allow_edits", "'owner' AND k.lead", "'owner' AND coalesce(k.lead, s.lead)")
        waited, lead = database.lead("DE"), database.lead("DE")
        for one in (waited, lead):
            database.rule(database.user(1), "COLLABORATOR", one)
        decided, ended = Event(), Event()
        with database.connect() as holder, ThreadPoolExecutor(1) as thread:
            database.query(holder, "SELECT FROM {schema}.lead_protection_rules WHERE lead_id = %s FOR UPDATE", waited)
            edit = thread.submit(edit_until, database, [waited, lead], decided, ended)
            wait_for_waiters(database, 1)
            with database.acting("manager_de", 9) as manager:
                leadprotect.assign(manager, lead, database.user(1))
                manager.commit()
            holder.rollback()
            assert decided.wait(120)
            with database.acting("manager_de", 9) as manager:
                manager.execute("SET LOCAL lock_timeout = '100ms'")
                assert holds == ("LockUnavailable" == tried(leadprotect.transfer, manager, lead, database.user(2)))
                manager.rollback()
            ended.set()
            assert ["collaborator", "owner"] == edit.result(timeout=120)


def edit_until(database: Database, leads: list[Any], decided: Event, ended: Event) -> list[str]:
    """The reasons for which user 1 may edit them, in a transaction that is open until somebody says so."""
    with database.acting("seller_de", 1) as conn:
        try:
            found = leadprotect.assert_edit_many(conn, leads)
        finally:
            decided.set()
        assert ended.wait(120)
        return [found[lead].reason for lead in leads]


def edits(database: Database, leads: list[Any]) -> dict[Any, str]:
    """Of each lead what user 1 is answered; where one is denied, of the others that they are not."""
    with database.acting("seller_de", 1) as conn:
        try:
            return {lead: one.reason for lead, one in leadprotect.assert_edit_many(conn, leads).items()}
        except leadprotect.LeadsAccessDenied as denied:
            return dict.fromkeys(leads, "allowed") | {one.lead_id: one.reason for one in denied.decisions}


def tried(function: Any, *given: Any) -> str:
    try:
        function(*given)
    except leadprotect.LeadProtectError as error:
        return type(error).__name__
    return "done"


def instead(database: Database, function: str, right: str, wrong: str) -> None:
    """Break a function on purpose."""
    (body,) = database.sql(f"SELECT pg_get_functiondef('{{schema}}.{function}'::regproc)")
    assert right in body
    database.sql_script(body.replace(right, wrong).replace("%", "%%"))


def wait_for_waiters(database: Database, many: int) -> None:
    blocked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    while database.sql(blocked) != [many]:
        pass


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
