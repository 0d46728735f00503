"""The backfill is always the victim: whoever holds a lead keeps it, and everything else goes on."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import leadprotect
from leadprotect.backfilling.run import backfill
from leadprotect.backfilling.worker import LOCK_TIMEOUT_MS
from leadprotect.errors import BackfillIncomplete
from tests.support.leads import old_leads, owners

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.database import Database

SERVICE_TIMEOUT = "250ms"


@contextmanager
def released_after(conn: psycopg.Connection[Any], seconds: float) -> Iterator[None]:
    """Roll the transaction of `conn` back after so many seconds, while the block goes on."""
    timer = threading.Timer(seconds, conn.rollback)
    timer.start()
    yield
    timer.join()


def hold(database: Database, conn: psycopg.Connection[Any], lead: Any) -> None:
    """An assignment by hand whose transaction stays open."""
    with leadprotect.acting_as(conn, database.user(9), "DE"):
        leadprotect.assign(conn, lead, database.user(66))


def test_a_locked_lead_is_put_aside_and_done_when_it_is_free(expanded: Database) -> None:
    expected = old_leads(expanded, 400)
    lead = list(expected)[123]
    with expanded.connect("manager_de") as conn:
        hold(expanded, conn, lead)
        with released_after(conn, 1.0):
            (result,) = backfill(expanded.url, "DE", batch_size=100)

    assert expected == owners(expanded)
    assert (400, 350, ()) == (result.scanned, result.assigned, result.locked)
    assert [0] == expanded.sql("SELECT count(*) FROM {schema}.backfill_deferred")


def test_a_lead_locked_to_the_end_is_reported_with_the_session_that_holds_it(expanded: Database) -> None:
    expected = old_leads(expanded, 40)
    lead = list(expected)[12]
    with expanded.connect("manager_de") as conn:
        hold(expanded, conn, lead)
        with pytest.raises(BackfillIncomplete, match=f"pid {conn.info.backend_pid}") as caught:
            backfill(expanded.url, "DE", patience=0.2)
        conn.commit()

    assert [lead] == [held.lead_id for held in caught.value.results[0].locked]
    assert expected | {lead: None} == owners(expanded) | {lead: None}
    # what was put aside is all that the next run does
    (result,) = backfill(expanded.url, "DE")
    assert (40, expanded.user(66)) == (result.scanned, owners(expanded)[lead])


def test_a_lead_row_held_for_update_does_not_hold_the_backfill(expanded: Database) -> None:
    expected = old_leads(expanded, 40)
    with expanded.connect() as conn:
        expanded.query(conn, "SELECT FROM {leads} WHERE {lead_id} = %s FOR UPDATE", next(iter(expected)))
        (result,) = backfill(expanded.url, "DE")

    assert expected == owners(expanded)
    assert () == result.locked


@pytest.mark.nightly_elsewhere("by day a lead that is locked for a while, and one to the end, are met there")
def test_many_locked_leads_are_each_found(expanded: Database) -> None:
    expected = old_leads(expanded, 300)
    held = list(expected)[::60]
    with expanded.connect("manager_de") as conn:
        for lead in held:
            hold(expanded, conn, lead)
        with released_after(conn, 3.0):
            (result,) = backfill(expanded.url, "DE", workers=2, batch_size=150)

    assert expected == owners(expanded)
    assert 300 == result.scanned


@pytest.mark.nightly_elsewhere("by day a lead that is locked for a while, and one to the end, are met there")
def test_a_locked_table_is_waited_for_and_its_leads_are_not_put_aside_one_by_one(expanded: Database) -> None:
    expected = old_leads(expanded, 100)
    with expanded.connect() as conn:
        expanded.query(conn, "LOCK TABLE {schema}.user_lead_assignments IN EXCLUSIVE MODE")
        with released_after(conn, 2.0):
            backfill(expanded.url, "DE")
            put_aside = expanded.sql("SELECT count(*) FROM {schema}.backfill_deferred")

    assert expected == owners(expanded)
    assert [0] == put_aside


def test_a_service_that_meets_a_slice_waits_for_it_and_never_fails(expanded: Database) -> None:
    """Live writes to the very leads that are being backfilled, with the service's own lock_timeout."""
    expected = old_leads(expanded, 3000)
    leads = list(expected)
    failed: list[psycopg.Error] = []
    ended = threading.Event()

    def serve() -> None:
        with expanded.connect(autocommit=True) as conn:
            conn.execute(f"SET lock_timeout = '{SERVICE_TIMEOUT}'")
            number = 0
            while not ended.is_set():
                number += 1
                lead = leads[number * 7 % len(leads)]
                try:
                    expanded.query(
                        conn,
                        "INSERT INTO {activities} "
                        "({activity_lead_id}, {activity_user_id}, {activity_kind}, {activity_at}) "
                        "VALUES (%s, %s, 'QUALIFIED_CALL', now())",
                        *(lead, expanded.user(50)),
                    )
                except psycopg.Error as error:
                    failed.append(error)
                expected[lead] = expanded.user(50)

    service = threading.Thread(target=serve)
    service.start()
    try:
        backfill(expanded.url, "DE", workers=2, batch_size=500)
    finally:
        ended.set()
        service.join()

    assert [] == failed
    assert expected == owners(expanded)


def test_control_a_backfill_that_waits_as_long_as_the_service_does_make_it_fail(expanded: Database) -> None:
    """Why the limits are what they are: an assignment held for longer than 250 ms fails a live write."""
    lead = next(iter(old_leads(expanded, 1)))
    with expanded.connect() as slow, expanded.connect(autocommit=True) as service:
        expanded.query(slow, "SELECT {schema}.own_leads('DE', %s::{lead_id_type}[])", [lead])
        service.execute(f"SET lock_timeout = '{SERVICE_TIMEOUT}'")
        began = time.monotonic()
        with pytest.raises(psycopg.errors.LockNotAvailable):
            expanded.query(
                service,
                "INSERT INTO {activities} ({activity_lead_id}, {activity_user_id}, {activity_kind}, {activity_at}) "
                "VALUES (%s, %s, 'QUALIFIED_CALL', now())",
                *(lead, expanded.user(50)),
            )

    assert time.monotonic() - began > LOCK_TIMEOUT_MS / 1000
