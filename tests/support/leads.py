"""Leads and activities from before the first revision: no trigger saw them."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psycopg

    from tests.support.database import Database

LONG_AGO = datetime(2025, 1, 1, tzinfo=UTC)


def old_leads(database: Database, count: int, territory: str | None = "DE") -> dict[Any, str | None]:
    """Make `count` leads; returns who must own each of them.

    Every eighth has a note only; the others were called by two sellers, in an order that changes.
    """
    owners: dict[Any, str | None] = {}
    calls = []
    for number in range(count):
        lead = database.new_id()
        first, second = database.user(number % 7 + 1), database.user(number % 5 + 11)
        early, late = LONG_AGO + timedelta(hours=number), LONG_AGO + timedelta(hours=number + 1)
        owners[lead] = None if number % 8 == 7 else second if number % 2 else first
        kind = "NOTE" if number % 8 == 7 else "QUALIFIED_CALL"
        calls += [
            (lead, first, kind, early if number % 2 else late),
            (lead, second, kind, late if number % 2 else early),
        ]
    with database.connect() as conn, without_triggers(database, conn):
        with conn.cursor().copy(database.text("COPY {leads} ({lead_id}, {territory}) FROM STDIN")) as copy:
            for lead in owners:
                copy.write_row((lead, territory))
        columns = "{activity_lead_id}, {activity_user_id}, {activity_kind}, {activity_at}"
        with conn.cursor().copy(database.text(f"COPY {{activities}} ({columns}) FROM STDIN")) as copy:
            for call in calls:
                copy.write_row(call)
    return owners


@contextmanager
def without_triggers(database: Database, conn: psycopg.Connection[Any]) -> Iterator[None]:
    """No trigger of the host's tables fires in this transaction: ours fire ALWAYS, whatever a session sets."""
    query = """
        SELECT tgrelid::regclass::text, tgname, tgenabled::text FROM pg_trigger
        WHERE NOT tgisinternal AND tgrelid IN ('{leads}'::regclass, '{activities}'::regclass)
        """
    standing = conn.execute(database.text(query)).fetchall()
    for table, name, _ in standing:
        conn.execute(f'ALTER TABLE {table} DISABLE TRIGGER "{name}"')
    yield
    for table, name, enabled in standing:
        conn.execute(f'ALTER TABLE {table} ENABLE {"ALWAYS" if enabled == "A" else ""} TRIGGER "{name}"')


def owners(database: Database, territory: str = "DE") -> dict[Any, str | None]:
    """Who owns each lead of the territory, as the assignments have it."""
    found = database.sql(
        "SELECT l.{lead_id}, a.user_id::text FROM {leads} AS l LEFT JOIN {schema}.user_lead_assignments AS a "
        "ON a.lead_id = l.{lead_id} AND a.territory = l.{territory} WHERE l.{territory} = %s",
        territory,
    )
    return dict(found)
