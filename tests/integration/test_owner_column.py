"""Owners from a column of the host's leads, alone and beside activities, from expand to contract."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from alembic.util import CommandError
from click.testing import CliRunner

from leadprotect.backfilling.run import backfill
from leadprotect.backfilling.verify import verify_owners
from leadprotect.cli import main
from leadprotect.migration import gate
from tests.support.leads import owners
from tests.support.profiles import NIGHTLY
from tests.support.revisions import HEAD, MIGRATE_HEAD

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

ORDERS = ("column", "column, activities", "activities, column")
ROUNDS = 20 if NIGHTLY else 1
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
SYSTEM = 99


@pytest.fixture
def named(
    make_database: Callable[..., Database], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Database:
    """The host's tables, with a column for the owner; the test says where owners come from."""
    database = make_database("host", owners_from=request.param, owner_column="seller")
    database.overrides |= {"excluded_users": database.user(SYSTEM)}
    monkeypatch.setenv("LEADPROTECT_EXCLUDED_USERS", database.user(SYSTEM))
    database.sql("ALTER TABLE {leads} ADD seller {user_id_type}")
    return database


class Told:
    """What a person would say of each lead: whom its column names, and who was active when."""

    def __init__(self, database: Database, seed: int) -> None:
        self.database, self.random = database, random.Random(seed)  # noqa: S311 - worlds, no secret
        self.column: dict[Any, int | None] = {}
        self.active: dict[Any, list[tuple[datetime, int, int]]] = {}

    def leads(self, count: int) -> None:
        for _ in range(count):
            lead, seller = self.database.new_id(), self.random.choice([None, None, SYSTEM, 1, 2])
            query = "INSERT INTO {leads} ({lead_id}, {territory}, seller) VALUES (%s, 'DE', %s)"
            self.database.sql(query, lead, self._user(seller))
            self.column[lead], self.active[lead] = seller, []

    def act(self, count: int) -> None:
        for _ in range(count):
            lead = self.random.choice([*self.column])
            if self.random.random() < 0.5:
                self.column[lead] = self.random.choice([None, SYSTEM, 1, 2, 3])
                query = "UPDATE {leads} SET seller = %s WHERE {lead_id} = %s"
                self.database.sql(query, self._user(self.column[lead]), lead)
            else:
                at, user = NOON + timedelta(hours=self.random.randrange(4)), self.random.choice([SYSTEM, 4, 5, 6])
                self.active[lead].append((at, self.database.activity(lead, self._user(user), at=at), user))

    def _user(self, number: int | None) -> str | None:
        return None if number is None else self.database.user(number)

    def expected(self) -> dict[Any, str | None]:
        found: dict[Any, str | None] = {}
        for lead, seller in self.column.items():
            newest = max((one for one in self.active[lead] if one[2] != SYSTEM), default=None)
            answers = {"column": None if seller == SYSTEM else seller, "activities": newest and newest[2]}
            order = self.database.settings.owners_from
            found[lead] = self._user(next((answers[one] for one in order if answers[one]), None))
        return found


@pytest.mark.parametrize("seed", range(ROUNDS))
@pytest.mark.parametrize("named", ORDERS, indirect=True)
def test_backfill_triggers_gate_and_verify_agree_with_an_oracle(named: Database, seed: int) -> None:
    told = Told(named, seed)
    told.leads(10)
    told.act(30)
    named.upgrade(MIGRATE_HEAD)
    # what old and new application do before the backfill arrives
    told.act(10)

    backfill(named.url, "DE")
    assert told.expected() == owners(named)

    told.leads(4)
    told.act(40)
    assert told.expected() == owners(named)

    with named.connect() as conn:
        (verified,) = verify_owners(conn, ["DE"])
    assert (0, 0) == (verified.missing, verified.stale)
    backfill(named.url, "DE")
    assert told.expected() == owners(named)
    named.upgrade(contract="require", accept="unowned:1,unprotected:1")
    assert HEAD == named.revision()
    named.downgrade()
    assert [] == named.sql("SELECT tgname FROM pg_trigger WHERE tgrelid = '{leads}'::regclass AND NOT tgisinternal")


@pytest.mark.parametrize("named", ["column"], indirect=True)
def test_a_host_without_activities_needs_none(named: Database) -> None:
    named.sql("DROP TABLE {activities}")
    lead = named.new_id()
    named.sql("INSERT INTO {leads} ({lead_id}, {territory}, seller) VALUES (%s, 'DE', %s)", lead, named.user(1))
    named.upgrade(MIGRATE_HEAD)

    (result,) = backfill(named.url, ["DE"])

    assert (1, named.user(1)) == (result.assigned, named.owner(lead))


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("named", ["column"], indirect=True)
def test_a_column_that_contract_could_not_write_is_refused_before_anything_is_touched(named: Database) -> None:
    named.sql("ALTER TABLE {leads} DROP seller, ADD seller {user_id_type} GENERATED ALWAYS AS (NULL) STORED")
    with pytest.raises(CommandError, match="seller is generated, and contract writes owners there"):
        named.upgrade()
    assert named.revision() is None


@pytest.mark.profiles("pg18")
def test_a_column_that_moves_the_lead_is_refused(make_database: Callable[..., Database]) -> None:
    expression = "coalesce(territory, seller::text)"
    database = make_database("host", owners_from="column", owner_column="seller", territory_expression=expression)
    database.sql("ALTER TABLE public.leads ADD seller uuid")
    with pytest.raises(CommandError, match="a lead would move with its owner"):
        database.upgrade()
    assert database.revision() is None


@pytest.mark.parametrize("named", ["column, activities"], indirect=True)
def test_the_gate_says_how_many_leads_name_somebody_else(named: Database) -> None:
    lead = named.new_id()
    named.sql("INSERT INTO {leads} ({lead_id}, {territory}, seller) VALUES (%s, 'DE', %s)", lead, named.user(1))
    named.upgrade(MIGRATE_HEAD)
    assert said(named) == "seller is compared with the owners once every lead has its own"
    backfill(named.url, ["DE"])
    assert "names the owner of every lead" in said(named)
    named.sql("UPDATE {schema}.user_lead_assignments SET user_id = %s, source = 'assign'", named.user(2))
    assert "1 leads name somebody else in seller than their owner" in said(named)


def said(database: Database) -> str:
    with database.connect() as conn:
        (found,) = (one for one in gate.conditions(conn) if one.name == "owner_column")
    assert found.met
    return found.detail


@pytest.mark.parametrize("named", ["column, activities"], indirect=True)
def test_who_moves_to_another_territory_is_owned_by_nobody_there_until_the_column_changes(named: Database) -> None:
    lead = named.new_id()
    named.sql("INSERT INTO {leads} ({lead_id}, {territory}, seller) VALUES (%s, 'DE', %s)", lead, named.user(1))
    named.upgrade(MIGRATE_HEAD)
    backfill(named.url, ["DE", "CH"])
    named.sql("UPDATE {leads} SET {territory} = 'CH'")
    backfill(named.url, ["DE", "CH"])
    assert named.owner(lead, "CH") is None

    named.sql("UPDATE {leads} SET seller = %s", named.user(2))

    assert named.user(2) == named.owner(lead, "CH")


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize(
    ("named", "said"),
    [
        ("column", "have nobody in seller"),
        ("column, activities", "have nobody in seller and no qualifying activity"),
    ],
    indirect=["named"],
)
def test_the_command_line_says_what_a_lead_without_an_owner_lacks(named: Database, said: str) -> None:
    named.lead("DE")
    named.upgrade(MIGRATE_HEAD)
    for command in (["backfill", "DE"], ["backfill", "--verify", "DE"]):
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 0, done.output
        assert said in done.stdout
        assert ("qualifying activity" in done.stdout) is ("qualifying activity" in said)


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize(
    ("named", "owned_by"),
    [("column", "somebody in seller"), ("activities, column", "a qualifying activity or somebody in seller")],
    indirect=["named"],
)
def test_the_gate_says_of_what_an_owner_is_made(named: Database, owned_by: str) -> None:
    lead = named.new_id()
    named.sql("INSERT INTO {leads} ({lead_id}, {territory}, seller) VALUES (%s, 'DE', %s)", lead, named.user(1))
    named.upgrade(MIGRATE_HEAD)

    def owners() -> str:
        with named.connect() as conn:
            return next(one.detail for one in gate.conditions(conn, settings=named.settings) if one.name == "owners")

    assert f"1 leads in DE have {owned_by} but no owner" == owners()
    backfill(named.url, ["DE", "CH"])
    assert f"every lead with {owned_by} has its owner" == owners()
