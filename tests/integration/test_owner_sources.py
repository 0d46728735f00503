"""Owners from several tables of activities, as hosts have them, and an oracle that knows none of our SQL."""

from __future__ import annotations

import random
import re
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

import leadprotect
from leadprotect.backfilling.run import backfill
from leadprotect.backfilling.verify import verify_owners
from leadprotect.migration.psql import psql_script
from tests.support.leads import owners
from tests.support.profiles import NIGHTLY
from tests.support.revisions import HEAD, MIGRATE_HEAD, NAMED

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

ROUNDS = 40 if NIGHTLY else 4
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SYSTEM = 99
"""A user of the host that is no seller."""

# Messages of leads and of customers in one table, with the id as text; calls of a day, some cancelled, in partitions,
# without a zone; visits with an id that is a text, whose user and kind a view finds in other tables.
TABLES = """
CREATE TABLE crm.messages (
  id bigserial PRIMARY KEY,
  "subjectType" text NOT NULL,
  subject_id text NOT NULL,
  sender {user_id_type},
  sent timestamptz
);
CREATE TABLE crm.calls (
  id integer NOT NULL,
  lead {lead_id_type} NOT NULL,
  agent {user_id_type},
  outcome text,
  cancelled boolean NOT NULL DEFAULT false,
  happened timestamp,
  part integer NOT NULL
) PARTITION BY LIST (part);
CREATE TABLE crm.calls_0 PARTITION OF crm.calls FOR VALUES IN (0);
CREATE TABLE crm.calls_1 PARTITION OF crm.calls FOR VALUES IN (1);
CREATE TABLE crm.staff (number integer PRIMARY KEY, account {user_id_type});
CREATE TABLE crm.visits (
  id text PRIMARY KEY,
  lead {lead_id_type} NOT NULL,
  number integer REFERENCES crm.staff,
  purpose text NOT NULL,
  day timestamptz
);
CREATE INDEX ON crm.visits (lead);
CREATE SCHEMA shown;
CREATE VIEW shown.visits AS
SELECT v.id, v.lead, s.account, upper(v.purpose) AS kind, v.day
FROM crm.visits AS v LEFT JOIN crm.staff AS s USING (number) WHERE v.purpose <> 'private'
"""


def sections(database: Database) -> dict[str, dict[str, str]]:
    kind = database.settings.lead_id_type
    return {
        "messages": {
            "table": "crm.messages",
            "lead_id_column": f"subject_id::{kind}",
            "user_id_column": "sender",
            "kind_column": "",
            "at_column": "sent",
            "condition": "\"subjectType\" = 'LEAD'",
        },
        "calls": {
            "table": "crm.calls",
            "lead_id_column": "lead",
            "user_id_column": "agent",
            "kind_column": "outcome",
            "at_column": "(happened AT TIME ZONE 'UTC')",
            "qualifying_kinds": "reached, 100 %",
            "condition": "NOT cancelled",
        },
        "visits": {
            "table": "shown.visits",
            "base_table": "crm.visits",
            "lead_id_column": "lead",
            "user_id_column": "account",
            "at_column": "day",
            "qualifying_kinds": "SALE",
        },
    }


@dataclass
class Row:
    """What a person would say of an activity: which table it is in, and whether it counts."""

    source: str
    number: int
    lead: Any
    user: int | None
    at: datetime | None
    counts: bool


class Host:
    """The host, and beside it what it should come to."""

    def __init__(self, database: Database, seed: int) -> None:
        self.database, self.random = database, random.Random(seed)  # noqa: S311 - worlds, no secret
        self.rows: list[Row] = []
        self.leads: list[Any] = []

    def leads_of(self, count: int) -> None:
        self.leads += [self.database.lead() for _ in range(count)]

    def act(self, count: int) -> None:
        for _ in range(count):
            source = self.random.choice(["", "messages", "calls", "visits"])
            lead, user = self.random.choice(self.leads), self.random.choice([None, SYSTEM, 1, 2, 3])
            # few times, so that ties are common; now and then one to come, or none
            at = self.random.choice(
                [None, NOON + timedelta(days=20_000), *[NOON + timedelta(hours=h) for h in range(4)]]
            )
            good = self.random.random() < 0.7
            number = getattr(self, f"_{source or 'activities'}")(lead, user, at, good=good)
            self.rows.append(Row(source, number, lead, user, at, good))

    def _activities(self, lead: Any, user: int | None, at: datetime | None, *, good: bool) -> int:
        kind = "QUALIFIED_CALL" if good else "NOTE"
        return int(self.database.activity(lead, self._user(user), kind, at))

    def _messages(self, lead: Any, user: int | None, at: datetime | None, *, good: bool) -> int:
        subject = ("LEAD", str(lead)) if good else ("CUSTOMER", self.random.choice([str(lead), "C-17"]))
        query = "INSERT INTO crm.messages VALUES (DEFAULT, %s, %s, %s, %s) RETURNING id"
        return int(self.database.sql(query, *subject, self._user(user), at)[0])

    def _calls(self, lead: Any, user: int | None, at: datetime | None, *, good: bool) -> int:
        number = len(self.rows) + 1
        outcome, cancelled = (self.random.choice(["reached", "100 %"]), False) if good else ("reached", True)
        query = "INSERT INTO crm.calls VALUES (%s, %s, %s, %s, %s, %s, %s)"
        self.database.sql(query, number, lead, self._user(user), outcome, cancelled, at, number % 2)
        return number

    def _visits(self, lead: Any, user: int | None, at: datetime | None, *, good: bool) -> int:
        number = len(self.rows) + 1
        purpose = "sale" if good else self.random.choice(["private", "service"])
        query = "INSERT INTO crm.visits VALUES (%s, %s, %s, %s, %s)"
        self.database.sql(query, f"V-{number:06}", lead, user, purpose, at)
        return number

    def _user(self, number: int | None) -> str | None:
        return None if number is None else self.database.user(number)

    def expected(self) -> dict[Any, str | None]:
        """The newest that counts; of two at one time the first table by name, then the higher number."""

        def place(row: Row) -> tuple[bool, datetime, list[int], int]:
            return row.at is not None, row.at or NOON, [-ord(sign) for sign in row.source] or [1], row.number

        found: dict[Any, str | None] = {}
        for lead in self.leads:
            counting = [
                row
                for row in self.rows
                if row.lead == lead and row.counts and row.user not in {None, SYSTEM} and (row.at or NOON).year < 2027
            ]
            # an empty name comes first of all names
            newest = max(counting, key=lambda row: (place(row)[:2], row.source == "", place(row)[2:]), default=None)
            found[lead] = self._user(newest.user) if newest else None
        return found


@pytest.fixture
def several(make_database: Callable[..., Database], monkeypatch: pytest.MonkeyPatch) -> Database:
    database = make_database("host")
    database.overrides = {"excluded_users": database.user(SYSTEM)}
    monkeypatch.setenv("LEADPROTECT_EXCLUDED_USERS", database.user(SYSTEM))
    database.sections = sections(database)
    database.sql_script(TABLES)
    for number in (SYSTEM, 1, 2, 3):
        database.sql("INSERT INTO crm.staff VALUES (%s, %s)", number, database.user(number))
    return database


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_backfill_triggers_gate_and_verify_agree_with_an_oracle(several: Database, seed: int) -> None:
    host = Host(several, seed)
    host.leads_of(12)
    host.act(60)
    several.upgrade(MIGRATE_HEAD)

    backfill(several.url, "DE", settings=several.settings)
    assert host.expected() == owners(several)

    host.leads_of(4)
    host.act(60)
    assert host.expected() == owners(several)

    with several.connect() as conn:
        (verified,) = verify_owners(conn, ["DE"], settings=several.settings)
    assert (0, 0) == (verified.missing, verified.stale)
    several.upgrade(contract="require", accept="unowned:1,unprotected:1")
    assert several.revision() == HEAD


def test_an_activity_of_a_customer_with_the_number_of_a_lead_makes_no_owner(several: Database) -> None:
    lead = several.lead()
    several.sql("INSERT INTO crm.messages VALUES (DEFAULT, 'CUSTOMER', %s, %s, now())", str(lead), several.user(1))
    several.upgrade(MIGRATE_HEAD)
    several.sql("INSERT INTO crm.messages VALUES (DEFAULT, 'CUSTOMER', %s, %s, now())", str(lead), several.user(2))
    # what is no id of a lead stops no statement of the host
    several.sql("INSERT INTO crm.messages VALUES (DEFAULT, 'CUSTOMER', 'C-17', %s, now())", several.user(2))

    (result,) = leadprotect.backfill(several.url, ["DE"], settings=several.settings)

    assert (0, 1, None) == (result.assigned, result.verified.ownerless, several.owner(lead))
    several.sql("UPDATE crm.messages SET \"subjectType\" = 'LEAD' WHERE subject_id = %s", str(lead))
    assert several.user(2) == several.owner(lead)


def test_an_activity_that_is_cancelled_gives_way_to_the_one_before_it_in_another_table(several: Database) -> None:
    lead = several.lead()
    several.activity(lead, several.user(1), at="2026-01-01")
    several.upgrade(MIGRATE_HEAD)
    several.sql("INSERT INTO crm.calls VALUES (1, %s, %s, 'reached', false, '2026-01-02', 0)", lead, several.user(2))
    assert several.user(2) == several.owner(lead)

    several.sql("UPDATE crm.calls SET cancelled = true")

    assert several.user(1) == several.owner(lead)


def test_a_user_who_is_excluded_never_becomes_an_owner(several: Database) -> None:
    lead = several.lead()
    several.activity(lead, several.user(1), at="2026-01-01")
    several.activity(lead, several.user(SYSTEM), at="2026-01-02")
    several.upgrade(MIGRATE_HEAD)
    backfill(several.url, "DE", settings=several.settings)
    several.activity(lead, several.user(SYSTEM), at="2026-01-03")

    assert several.user(1) == several.owner(lead)


def test_what_a_view_shows_of_a_row_makes_the_owner_and_what_it_hides_gives_way(several: Database) -> None:
    lead = several.lead()
    several.activity(lead, several.user(1), at="2026-01-01")
    several.upgrade(MIGRATE_HEAD)
    several.sql("INSERT INTO crm.visits VALUES ('V-1', %s, 2, 'sale', '2026-01-02')", lead)
    assert several.user(2) == several.owner(lead)

    several.sql("UPDATE crm.visits SET purpose = 'private'")

    assert several.user(1) == several.owner(lead)
    several.sql("UPDATE crm.visits SET purpose = 'sale', number = 3")
    assert several.user(3) == several.owner(lead)
    several.sql("DELETE FROM crm.visits")
    assert several.user(1) == several.owner(lead)


def test_what_changes_in_another_table_of_a_view_is_found_by_verification_and_mended_by_the_backfill(
    several: Database,
) -> None:
    lead = several.lead()
    several.sql("INSERT INTO crm.visits VALUES ('V-1', %s, 2, 'sale', '2026-01-02')", lead)
    several.upgrade(MIGRATE_HEAD)
    backfill(several.url, "DE", settings=several.settings)
    several.sql("UPDATE crm.staff SET account = %s WHERE number = 2", several.user(7))

    with several.connect() as conn:
        (verified,) = verify_owners(conn, ["DE"], settings=several.settings)

    assert (1, (lead,)) == (verified.stale, verified.stale_leads)
    backfill(several.url, "DE", settings=several.settings)
    assert several.user(7) == several.owner(lead)


def test_the_higher_id_of_one_time_wins_in_the_order_of_its_own_type(several: Database) -> None:
    lead = several.lead()
    several.upgrade(MIGRATE_HEAD)
    query = "INSERT INTO crm.calls VALUES (%s, %s, %s, 'reached', false, '2026-01-02', 0)"
    several.sql(query, 9, lead, several.user(1))
    several.sql(query, 10, lead, several.user(2))

    assert several.user(2) == several.owner(lead)
    several.sql(query, 8, lead, several.user(3))
    assert several.user(2) == several.owner(lead)


def test_the_way_down_leaves_nothing_on_any_table(several: Database) -> None:
    left = """
        SELECT c.relname FROM pg_class AS c
        WHERE c.relnamespace::regnamespace::text IN ('crm', 'public', 'shown') AND (
          c.relname ~ '^ix_' OR c.relacl::text LIKE '%reader%'
          OR EXISTS (SELECT FROM pg_trigger AS t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal)
          OR EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attacl IS NOT NULL))
        """
    assert [] == several.sql(left)
    several.upgrade(MIGRATE_HEAD)
    own = several.settings.activities_table.partition(".")[2]
    assert {own, "messages", "calls", "calls_0", "calls_1", "visits"} <= set(several.sql(left))

    several.downgrade()

    assert [] == several.sql(left)


def test_a_script_of_the_way_down_drops_the_index_of_a_partitioned_table_too(several: Database) -> None:
    several.upgrade(MIGRATE_HEAD)
    script = several.script("downgrade", f"{MIGRATE_HEAD}:{NAMED['expand_rules']}")
    own = re.findall(r"DO \$do\$(?:(?!DO \$do\$).)*?DROP INDEX [^;]*activities_calls.*?\$do\$", script, re.DOTALL)

    assert 1 == len(own)
    several.sql(own[0])
    assert [None] == several.sql(
        "SELECT to_regclass('crm.\"' || %s || '\"')", f"ix_{several.settings.schema}_activities_calls"
    )


def test_a_rollback_by_psql_builds_the_indexes_of_partitions_as_alembic_does(several: Database) -> None:
    found = """
        SELECT pg_get_indexdef(i.indexrelid), i.indisvalid, obj_description(i.indexrelid), p.inhparent::regclass::text
        FROM pg_index AS i LEFT JOIN pg_inherits AS p ON p.inhrelid = i.indexrelid
        WHERE i.indexrelid::regclass::text LIKE '%ix_' || {schema_text} || '_%' ORDER BY 1
        """.replace("{schema_text}", f"'{several.settings.schema}'")
    several.sql('CREATE TABLE crm."calls, 2" PARTITION OF crm.calls FOR VALUES IN (2) PARTITION BY HASH (id)')
    several.sql('CREATE TABLE crm.calls_2_0 PARTITION OF crm."calls, 2" FOR VALUES WITH (MODULUS 1, REMAINDER 0)')
    several.upgrade(MIGRATE_HEAD)
    before = several.sql(found)
    several.upgrade(contract="require")
    with several.connect(autocommit=True) as conn:
        script = psql_script(conn, several.settings, MIGRATE_HEAD)

    command = [str(several.server.programs / "psql"), "-Xq", "-d", several.url, "-f", "-"]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)

    assert (0, MIGRATE_HEAD) == (done.returncode, several.revision()), done.stderr
    assert before == several.sql(found)
    assert 5 == sum("calls" in shape for shape, *_ in before)


@pytest.mark.parametrize("base", ["base", "expand_rules"])
def test_a_script_refuses_a_partitioned_table_before_it_touches_anything(several: Database, base: str) -> None:
    if base != "base":
        several.upgrade(NAMED[base])
    before = several.revision()
    script = several.script("upgrade", f"{NAMED.get(base, base)}:head")

    command = [str(several.server.programs / "psql"), "-Xq", "-d", several.url, "-f", "-"]
    done = subprocess.run(command, input=script, capture_output=True, text=True, check=False)

    assert (3, True) == (done.returncode, "calls is partitioned" in done.stderr)
    assert before == several.revision()
    assert [] == several.sql("SELECT FROM pg_class WHERE relname ~ '^ix_.*_(leads|activities)'")
