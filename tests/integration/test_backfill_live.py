"""Live writes against a running backfill, in every order, compared with an independent derivation."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import hypothesis
import psycopg
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import leadprotect
from leadprotect.backfilling.run import backfill
from tests.support.leads import old_leads, owners

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.database import Database

CLAIM = "SELECT chunk, token FROM {schema}.backfill_claim('DE', 1000, 'test', '30 s')"
QUALIFYING, OTHER = "QUALIFIED_CALL", "NOTE"
ACTIVITY = (
    "INSERT INTO {activities} ({activity_lead_id}, {activity_user_id}, {activity_kind}, {activity_at}) "
    "VALUES (%s, %s, %s, %s) RETURNING {activity_id}"
)
DELETE = "DELETE FROM {activities} WHERE {activity_id} = %s"


# --- one lead, one slice, one live transaction: every order of their steps


def orders() -> Iterator[tuple[str, ...]]:
    """All ways to interleave: the slice begins and commits, the live transaction writes and commits."""
    for order in itertools.permutations(("slice", "commit slice", "write", "commit write")):
        if order.index("slice") < order.index("commit slice") and order.index("write") < order.index("commit write"):
            yield order


def newer(database: Database, live: psycopg.Connection[Any], lead: Any, _: Any) -> str | None:
    database.query(live, ACTIVITY, lead, database.user(3), QUALIFYING, "2026-03-01")
    return database.user(3)


def older(database: Database, live: psycopg.Connection[Any], lead: Any, _: Any) -> str | None:
    database.query(live, ACTIVITY, lead, database.user(3), QUALIFYING, "2020-03-01")
    return database.user(2)


def delete_newest(database: Database, live: psycopg.Connection[Any], _: Any, newest: Any) -> str | None:
    database.query(live, DELETE, newest)
    return database.user(1)


def disqualify_newest(database: Database, live: psycopg.Connection[Any], _: Any, newest: Any) -> str | None:
    database.query(live, "UPDATE {activities} SET {activity_kind} = 'NOTE' WHERE {activity_id} = %s", newest)
    return database.user(1)


def date_newest_back(database: Database, live: psycopg.Connection[Any], _: Any, newest: Any) -> str | None:
    database.query(live, "UPDATE {activities} SET {activity_at} = '2019-01-01' WHERE {activity_id} = %s", newest)
    return database.user(1)


def other_user(database: Database, live: psycopg.Connection[Any], _: Any, newest: Any) -> str | None:
    query = "UPDATE {activities} SET {activity_user_id} = %s WHERE {activity_id} = %s"
    database.query(live, query, database.user(8), newest)
    return database.user(8)


def release(database: Database, live: psycopg.Connection[Any], lead: Any, _: Any) -> str | None:
    with leadprotect.acting_as(live, database.user(9), "DE"):
        leadprotect.assign(live, lead, database.user(4))
        leadprotect.release(live, lead)
    return None


def assign(database: Database, live: psycopg.Connection[Any], lead: Any, _: Any) -> str | None:
    with leadprotect.acting_as(live, database.user(9), "DE"):
        leadprotect.assign(live, lead, database.user(4))
    return database.user(4)


WRITES = [newer, older, delete_newest, disqualify_newest, date_newest_back, other_user, release, assign]


@pytest.mark.parametrize("write", WRITES, ids=lambda write: write.__name__)
def test_slice_and_live_write_agree_in_every_order(expanded: Database, write: Callable[..., str | None]) -> None:
    for order in orders():
        expanded.sql(
            "DELETE FROM {leads}; DELETE FROM {schema}.user_lead_assignments; DELETE FROM {schema}.unsettled_leads"
        )
        lead, expected = expanded.lead(), None
        expanded.activity(lead, expanded.user(1), at="2026-01-01")
        newest = expanded.activity(lead, expanded.user(2), at="2026-02-01")
        expanded.sql("DELETE FROM {schema}.user_lead_assignments")
        restart(expanded)
        with (
            expanded.connect() as slicing,
            expanded.connect("seller_both" if write not in (release, assign) else "manager_de") as live,
        ):
            for conn in (slicing, live):
                conn.execute("SET lock_timeout = '50ms'")
            ((chunk, token),) = expanded.query(slicing, CLAIM)
            slicing.commit()
            for step in order:
                try:
                    if step == "slice":
                        expanded.query(slicing, "SELECT {schema}.backfill_slice('DE', %s, %s, 10)", chunk, token)
                    elif step == "write":
                        expected = write(expanded, live, lead, newest)
                    elif step == "commit slice":
                        slicing.commit()
                    else:
                        live.commit()
                except (psycopg.errors.LockNotAvailable, leadprotect.LeadProtectError):
                    # the one that waits gives up, and comes again after the other: an order of its own
                    (slicing if step == "slice" else live).rollback()
                    break
            else:
                slicing.commit()
                live.commit()
                backfill(expanded.url, "DE")
                assert expected == expanded.owner(lead), order


def restart(database: Database) -> None:
    """Begin the backfill of DE anew; what is walked by slices of the test is not walked again."""
    database.sql("DELETE FROM {schema}.backfill_deferred; DELETE FROM {schema}.backfill_chunks")
    database.sql(
        "UPDATE {schema}.backfill_jobs "
        "SET started_at = NULL, ended_at = NULL, next_lead = NULL, exhausted = false, chunks = 0"
    )
    database.sql("SELECT {schema}.backfill_start('DE', {schema}.backfill_settings())")


def test_a_lead_deleted_under_a_slice_leaves_no_assignment(expanded: Database) -> None:
    lead = next(iter(old_leads(expanded, 1)))
    restart(expanded)
    with expanded.connect() as live:
        expanded.query(live, "DELETE FROM {leads} WHERE {lead_id} = %s", lead)
        ((chunk, token),) = expanded.sql(CLAIM)
        expanded.sql("SELECT {schema}.backfill_slice('DE', %s, %s, 10)", chunk, token)
        live.commit()
    assert [1] == expanded.sql("SELECT count(*) FROM {schema}.user_lead_assignments")

    backfill(expanded.url, "DE")

    assert [0] == expanded.sql("SELECT count(*) FROM {schema}.user_lead_assignments")


def test_the_end_waits_for_transactions_that_wrote_before_it(expanded: Database) -> None:
    lead, owner = next(iter(old_leads(expanded, 1).items()))
    (newest,) = expanded.sql(
        "SELECT {activity_id} FROM {activities} WHERE {activity_user_id} = %s ORDER BY {activity_at} DESC LIMIT 1",
        owner,
    )
    with expanded.connect() as live:
        expanded.query(live, DELETE, newest)
        with pytest.raises(leadprotect.errors.BackfillIncomplete, match=f"still open: pid {live.info.backend_pid}"):
            backfill(expanded.url, "DE", patience=0.1)
        live.commit()
    (result,) = backfill(expanded.url, "DE")

    assert owner != expanded.owner(lead)
    assert 0 == result.verified.missing


def test_control_without_its_notes_a_deleted_activity_keeps_its_owner(expanded: Database) -> None:
    """The same race in a schema whose trigger leaves no notes: the lead stays with the wrong owner."""
    lead = expanded.lead()
    expanded.activity(lead, expanded.user(1), at="2026-01-01")
    newest = expanded.activity(lead, expanded.user(2), at="2026-02-01")
    expanded.sql("DELETE FROM {schema}.user_lead_assignments")
    expanded.sql(
        "CREATE OR REPLACE FUNCTION {schema}.note_unsettled(lead {lead_id_type}) RETURNS void LANGUAGE sql AS 'SELECT'"
    )
    restart(expanded)
    with expanded.connect() as live:
        expanded.query(live, DELETE, newest)
        ((chunk, token),) = expanded.sql(CLAIM)
        expanded.sql("SELECT {schema}.backfill_slice('DE', %s, %s, 10)", chunk, token)
        live.commit()
    backfill(expanded.url, "DE")

    assert expanded.user(2) == expanded.owner(lead)


# --- random live writes against a running backfill


class LiveBackfill(RuleBasedStateMachine):
    """Two live transactions and one backfill, step by step; at the end everybody commits.

    The oracle knows nothing of assignments: hand-made owners stay, all others come from the newest
    qualifying activity. A lead whose last one was deleted may keep its owner.
    """

    database: Database

    @initialize()
    def begin(self) -> None:
        db = self.database
        db.sql("DELETE FROM {leads}; DELETE FROM {schema}.user_lead_assignments; DELETE FROM {schema}.unsettled_leads")
        restart(db)
        self.leads = list(old_leads(db, 6))
        self.activities: dict[Any, tuple[Any, str | None, str, datetime | None]] = {
            row[0]: row[1:]
            for row in db.sql(
                "SELECT {activity_id}, {activity_lead_id}, {activity_user_id}::text, {activity_kind}, {activity_at} "
                "FROM {activities}"
            )
        }
        self.by_hand: dict[Any, str | None] = {}
        self.live = [db.connect("manager_de"), db.connect("manager_de")]
        self.slicing = db.connect(autocommit=True)
        for conn in (*self.live, self.slicing):
            conn.execute("SET lock_timeout = '20ms'")
            if not conn.autocommit:
                conn.commit()
        self.pending: list[list[Callable[[], None]]] = [[], []]
        self.chunk: tuple[int, int] | None = None

    def teardown(self) -> None:
        if not hasattr(self, "live"):
            return
        for number in (0, 1):
            self.commit(number)
        if self.chunk:
            self.database.query(self.slicing, "SELECT {schema}.backfill_release('DE', %s, %s)", *self.chunk)
        for conn in (*self.live, self.slicing):
            conn.close()
        backfill(self.database.url, "DE")
        found = owners(self.database)
        for lead in self.leads:
            newest = self.newest(lead)
            if lead in self.by_hand:
                assert self.by_hand[lead] == found[lead]
            elif newest is not None:
                assert newest == found[lead]

    def newest(self, lead: Any) -> str | None:
        """Independent derivation, in Python over plain values."""
        calls = [
            (at is not None, at or datetime.min.replace(tzinfo=UTC), number, user)
            for number, (of, user, kind, at) in self.activities.items()
            if of == lead and kind == QUALIFYING and user is not None
        ]
        return max(calls)[-1] if calls else None

    def write(self, number: int, statement: str, *params: Any, then: Callable[[list[Any]], None]) -> None:
        """One live statement; who meets a lock loses his transaction, as a service would."""
        try:
            found = self.database.query(self.live[number], statement, *params)
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            self.live[number].rollback()
            self.pending[number].clear()
        else:
            self.pending[number].append(lambda: then(found))

    @rule(
        number=st.integers(0, 1),
        which=st.integers(0, 5),
        user=st.integers(1, 4),
        day=st.integers(0, 9),
        kind=st.sampled_from([QUALIFYING, QUALIFYING, OTHER]),
        dated=st.booleans(),
    )
    def insert(self, number: int, which: int, user: int, day: int, kind: str, *, dated: bool) -> None:
        lead, owner = self.leads[which], self.database.user(user)
        at = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(hours=day) if dated else None

        def then(found: list[Any]) -> None:
            self.activities[found[0]] = (lead, owner, kind, at)

        self.write(number, ACTIVITY, lead, owner, kind, at, then=then)

    @rule(number=st.integers(0, 1), which=st.integers(0, 30))
    def delete(self, number: int, which: int) -> None:
        if not self.activities:
            return
        activity = list(self.activities)[which % len(self.activities)]
        self.write(number, DELETE, activity, then=lambda _: self.activities.pop(activity, None) and None)

    @rule(
        number=st.integers(0, 1),
        which=st.integers(0, 30),
        user=st.integers(1, 4),
        kind=st.sampled_from([QUALIFYING, OTHER]),
        day=st.integers(0, 9),
    )
    def update(self, number: int, which: int, user: int, kind: str, day: int) -> None:
        if not self.activities:
            return
        activity = list(self.activities)[which % len(self.activities)]
        owner, at = self.database.user(user), datetime(2025, 1, 1, tzinfo=UTC) + timedelta(hours=day)

        def then(_: list[Any]) -> None:
            if activity in self.activities:
                self.activities[activity] = (self.activities[activity][0], owner, kind, at)

        self.write(
            number,
            "UPDATE {activities} SET {activity_user_id} = %s, {activity_kind} = %s, {activity_at} = %s "
            "WHERE {activity_id} = %s",
            *(owner, kind, at, activity),
            then=then,
        )

    @rule(number=st.integers(0, 1), which=st.integers(0, 5), user=st.integers(5, 6))
    def by_a_manager(self, number: int, which: int, user: int) -> None:
        lead, owner = self.leads[which], self.database.user(user)
        db, live = self.database, self.live[number]
        try:
            with leadprotect.acting_as(live, db.user(9), "DE"):
                leadprotect.assign(live, lead, owner)
                if user == 6:
                    leadprotect.release(live, lead)
        except leadprotect.LeadProtectError:
            live.rollback()
            self.pending[number].clear()
        else:
            self.pending[number].append(lambda: self.by_hand.__setitem__(lead, None if user == 6 else owner))

    @rule(number=st.integers(0, 1))
    def commit(self, number: int) -> None:
        self.live[number].commit()
        for change in self.pending[number]:
            change()
        self.pending[number].clear()

    @rule(number=st.integers(0, 1))
    def rollback(self, number: int) -> None:
        self.live[number].rollback()
        self.pending[number].clear()

    @precondition(lambda self: self.chunk is None)
    @rule(rows=st.integers(2, 6))
    def claim(self, rows: int) -> None:
        query = CLAIM.replace("1000", str(rows))
        ((chunk, token),) = self.database.query(self.slicing, query)
        self.chunk = (chunk, token) if chunk else None

    @precondition(lambda self: self.chunk is not None)
    @rule(rows=st.integers(1, 4))
    def slice(self, rows: int) -> None:
        try:
            found = self.database.query(
                self.slicing,
                "SELECT finished FROM {schema}.backfill_slice('DE', %s, %s, %s)",
                *(self.chunk or ()),
                rows,
            )
        except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected):
            self.database.query(
                self.slicing, "SELECT {schema}.backfill_defer('DE', %s, %s, 'test')", *(self.chunk or ())
            )
            left = "SELECT chunk FROM {schema}.backfill_chunks WHERE finished_at IS NULL"
            found = [not self.database.query(self.slicing, left)]
        if found == [True]:
            self.chunk = None

    @invariant()
    def nobody_owns_a_lead_twice(self) -> None:
        if hasattr(self, "live"):
            count = (
                "SELECT count(*) - count(DISTINCT lead_id) FROM {schema}.user_lead_assignments WHERE territory = 'DE'"
            )
            assert [0] == self.database.query(self.slicing, count)


@pytest.mark.profiles("pg18", "other_names")
@pytest.mark.nightly_elsewhere("by day a slice and a live write meet there one by one")
def test_random_live_writes_against_a_running_backfill_agree_with_an_independent_derivation(expanded: Database) -> None:
    machine = type("Machine", (LiveBackfill,), {"database": expanded})
    settings = hypothesis.settings(
        max_examples=25, stateful_step_count=25, deadline=None, print_blob=True,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(machine, settings=settings)
