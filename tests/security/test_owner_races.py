"""Column and owner stay one when both are written at once, and by what replication applies."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from leadprotect.backfilling.run import backfill
from leadprotect.backfilling.verify import verify_owners
from leadprotect.lab.servers import embedded
from tests.support.revisions import MIGRATE_HEAD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.database import Database
    from tests.support.servers import Server

GIVE = "UPDATE {leads} SET seller = %s WHERE {lead_id} = %s"
ASSIGN = "SELECT {schema}.assign_lead(%s, %s)"


@dataclass(frozen=True)
class Step:
    """A statement of somebody; `of` names its values: the lead, or a user's number."""

    login: str | None
    user: int | None
    statement: str
    of: tuple[int | str | None, ...]


STEPS = {
    "host": Step("manager_de", 9, GIVE, (2, "lead")),
    "host of the owner": Step("seller_de", 1, GIVE, (None, "lead")),
    "assign": Step("manager_de", 9, ASSIGN, ("lead", 3)),
    "release": Step("seller_de", 1, "SELECT {schema}.release_lead(%s)", ("lead",)),
    "maintenance": Step(None, None, GIVE, (4, "lead")),
    "settle": Step("operator", None, "SELECT {schema}.settle_owner_column('DE')", ()),
    "move": Step(None, None, "UPDATE {leads} SET {territory} = 'CH' WHERE {lead_id} = %s", ("lead",)),
}


@pytest.fixture
def stepping(make_database: Callable[..., Database]) -> Database:
    """After contract, with a column in step."""
    return make_database("stepping")


def do(database: Database, conn: psycopg.Connection[Any], step: Step, lead: Any) -> None:
    if step.user:
        database.context(conn, database.user(step.user), "DE")
    values = [lead if one == "lead" else one and database.user(int(one)) for one in step.of]
    database.query(conn, step.statement, *values)


def at_once(database: Database, first: Step, second: Step, lead: Any, *, commits: bool = True) -> str | None:
    """`second` begins while `first` is not over, and goes on when it is; the SQLSTATE with which it was refused."""
    refused: list[str | None] = []

    def run() -> None:
        try:
            do(database, other, second, lead)
            other.commit()
        except psycopg.Error as error:
            other.rollback()
            refused.append(error.sqlstate)

    with database.connect(first.login) as conn, database.connect(second.login) as other:
        do(database, conn, first, lead)
        thread = threading.Thread(target=run)
        thread.start()
        waits = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
        while thread.is_alive() and not database.sql(waits, other.info.backend_pid):
            time.sleep(0.01)
        conn.commit() if commits else conn.rollback()
        thread.join()
    return refused[0] if refused else None


def out_of_step(database: Database) -> list[Any]:
    return database.sql(
        "SELECT l.{lead_id}, l.seller::text, a.user_id::text FROM {leads} AS l "
        "LEFT JOIN {schema}.user_lead_assignments AS a ON a.lead_id = l.{lead_id} AND a.territory = l.{territory} "
        "WHERE l.seller::text IS DISTINCT FROM a.user_id::text"
    )


def new_lead(database: Database, owner: int | None) -> Any:
    lead = database.new_id()
    query = "INSERT INTO {leads} ({lead_id}, {territory}, seller) VALUES (%s, 'DE', %s)"
    database.sql(query, lead, owner and database.user(owner))
    return lead


@pytest.mark.parametrize("commits", [True, False], ids=["commits", "rolls back"])
@pytest.mark.nightly_elsewhere("who waits for a row lock is the same on each version")
def test_two_who_change_the_owner_at_once_leave_column_and_owner_one(stepping: Database, *, commits: bool) -> None:
    for first, second in product(STEPS, STEPS):
        lead = new_lead(stepping, 1)
        refused = at_once(stepping, STEPS[first], STEPS[second], lead, commits=commits)
        assert refused in {None, "LP403"}, (first, second, refused)
        assert [] == out_of_step(stepping), (first, second)


def test_without_its_triggers_who_comes_second_takes_the_owner_from_the_column(stepping: Database) -> None:
    """The control of the test above."""
    stepping.sql("DROP TRIGGER {follow_column} ON {leads}")
    stepping.sql("DROP TRIGGER {audit_stepped} ON {leads}")
    lead = new_lead(stepping, 1)
    assert at_once(stepping, STEPS["assign"], STEPS["maintenance"], lead) is None
    assert [(lead, stepping.user(4), stepping.user(3))] == out_of_step(stepping)


ACTIVE = (
    "INSERT INTO {activities} ({activity_lead_id}, {activity_user_id}, {activity_kind}, {activity_at}) "
    "VALUES (%s, %s, 'QUALIFIED_CALL', '2026-01-02')"
)
BEFORE = {
    "host": Step(None, None, GIVE, (2, "lead")),
    "emptied": Step(None, None, GIVE, (None, "lead")),
    "activity": Step(None, None, ACTIVE, ("lead", 5)),
    "assign": Step("manager_de", 9, ASSIGN, ("lead", 3)),
}


@pytest.mark.parametrize("order", ["column, activities", "activities, column"])
def test_an_activity_a_write_of_the_column_and_a_hand_at_once_are_one_truth_before_contract(
    make_database: Callable[..., Database], order: str
) -> None:
    """What no trigger of two at once can know of the other, verification sees and the backfill mends."""
    database = make_database("host", owners_from=order, owner_column="seller")
    database.sql("ALTER TABLE {leads} ADD seller {user_id_type}")
    database.upgrade(MIGRATE_HEAD)
    database.create_logins()
    backfill(database.url, "DE")
    by_hand = {}
    for first, second in product(BEFORE, BEFORE):
        lead = new_lead(database, 1)
        database.activity(lead, database.user(4), at="2026-01-01")
        assert at_once(database, BEFORE[first], BEFORE[second], lead) is None
        hands = [database.user(3)] if "assign" in {first, second} else []
        by_hand[lead] = (first, second, hands)
    derived = "SELECT user_id::text FROM {schema}.derived_owners(ARRAY[%s]::{lead_id_type}[])"
    backfill(database.url, "DE")
    with database.connect() as conn:
        (verified,) = verify_owners(conn, ["DE"])
    assert (0, 0) == (verified.missing, verified.stale)
    for lead, (first, second, hands) in by_hand.items():
        assert database.owner(lead) in [*hands, *database.sql(derived, lead)], (first, second)
        if second == "assign":
            assert hands == [database.owner(lead)], (first, second)


@pytest.mark.parametrize("role", ["replica", "origin"])
def test_what_replication_writes_into_the_column_changes_the_owner(stepping: Database, role: str) -> None:
    lead, moved = new_lead(stepping, 1), new_lead(stepping, 1)
    made = stepping.new_id()
    with stepping.connect() as conn:
        conn.execute(f"SET session_replication_role = {role}")
        stepping.query(conn, GIVE, stepping.user(2), lead)
        stepping.query(conn, "UPDATE {leads} SET {territory} = 'CH' WHERE {lead_id} = %s", moved)
        query = "INSERT INTO {leads} ({lead_id}, {territory}, seller) VALUES (%s, 'DE', %s)"
        stepping.query(conn, query, made, stepping.user(3))
    assert [] == out_of_step(stepping)
    owned = (stepping.owner(lead), stepping.owner(made), stepping.owner(moved, "CH"))
    assert (stepping.user(2), stepping.user(3), None) == owned
    # the control: a trigger that does not fire ALWAYS is silent there
    stepping.sql("ALTER TABLE {leads} ENABLE TRIGGER {follow_column}")
    with stepping.connect() as conn:
        conn.execute(f"SET session_replication_role = {role}")
        stepping.query(conn, GIVE, stepping.user(4), lead)
    assert (role == "replica") == bool(out_of_step(stepping))


@pytest.fixture
def logical() -> Iterator[Server]:
    """A server that publishes; it outlives its databases where a test asks for it first."""
    with embedded({"wal_level": "logical"}) as server:
        yield server


@pytest.mark.profiles("pg18")
def test_a_subscription_keeps_column_and_owner_one(logical: Server, make_database: Callable[..., Database]) -> None:
    database, publisher = make_database("stepping", on=logical), make_database("host", on=logical)
    publisher.sql("ALTER TABLE {leads} ADD seller {user_id_type}")
    before, later = new_lead(publisher, 1), new_lead(publisher, None)
    publisher.sql("CREATE PUBLICATION sellers FOR TABLE {leads}")
    publisher.sql("SELECT pg_create_logical_replication_slot('sellers', 'pgoutput')")
    database.sql(
        f"CREATE SUBSCRIPTION sellers CONNECTION '{publisher.url}' PUBLICATION sellers WITH (create_slot = false)"
    )
    try:
        arrived(database, before)
        publisher.sql(GIVE, publisher.user(2), before)
        publisher.sql(GIVE, publisher.user(3), later)
        last = new_lead(publisher, 4)
        arrived(database, last)
        owned = [database.owner(lead) for lead in (before, later, last)]
        assert [database.user(number) for number in (2, 3, 4)] == owned
        assert [] == out_of_step(database)
        assert {"maintenance"} == set(database.audit("reason"))
    finally:
        database.sql("ALTER SUBSCRIPTION sellers DISABLE")
        database.sql("ALTER SUBSCRIPTION sellers SET (slot_name = NONE)")
        database.sql("DROP SUBSCRIPTION sellers")
        while publisher.sql("SELECT FROM pg_replication_slots WHERE slot_name = 'sellers' AND active"):
            time.sleep(0.05)
        publisher.sql("SELECT pg_drop_replication_slot('sellers')")


def arrived(database: Database, lead: Any) -> None:
    """Return when the subscription has brought a lead."""
    while not database.sql("SELECT FROM {leads} WHERE {lead_id} = %s", lead):
        failed = database.sql("SELECT apply_error_count, sync_error_count FROM pg_stat_subscription_stats")
        assert [(0, 0)] == failed
        time.sleep(0.05)
