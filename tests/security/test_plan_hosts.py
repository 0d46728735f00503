"""leadprotect plan on hosts that somebody else made: what it says before a deploy is what the gate says after it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from leadprotect.migration.pins import pins
from leadprotect.planning.plan import DeployPlan, plan_deploy
from leadprotect.settings.names import territory_columns
from tests.hosts import DJANGO, FLYWAY, GROWN, LIVES, PLAIN, Shape

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.hosts import Host

import psycopg

pytestmark = pytest.mark.profiles("pg18", "pg15")

_ATTEMPTS = 5  # as a script for the DBA may uncover the next thing that is missing
OF_LOGINS = {"logins", "views", "host_code", "lead_tables"}
"""Conditions of the gate that are about who would lose what."""


def planned(host: Host, login: str | None = None) -> DeployPlan:
    with psycopg.connect(host.url_of(login or host.shape.migrator)) as conn:
        return plan_deploy(conn, settings=host.settings)


def plan_of(host: Host) -> DeployPlan:
    """As a superuser, from whom nothing is hidden."""
    with psycopg.connect(host.url) as conn:
        return plan_deploy(conn, settings=host.settings)


def closed(found: DeployPlan) -> set[str]:
    return {one.name for one in found.closed} & OF_LOGINS


@pytest.mark.parametrize("shape", LIVES, ids=str)
@pytest.mark.nightly_elsewhere("by day the plan of one host is made there, by tests/migrations/test_plan.py")
def test_what_it_says_before_the_first_deploy_is_what_the_gate_says_after_it(
    make_host: Callable[..., Host], shape: Shape
) -> None:
    host = make_host(shape)
    foreseen = planned(host)
    for _ in range(_ATTEMPTS):
        if not foreseen.statements:
            break
        assert "refused" == foreseen.outcome
        host.run_as_dba([*foreseen.statements])
        foreseen = planned(host)
    assert ((), "stops at the gate") == (foreseen.refusals, foreseen.outcome)
    host.upgrade("head")
    assert foreseen.applies[-1] == host.revision()
    asked = planned(host)
    assert (False, True) == (foreseen.gate_asked, asked.gate_asked)
    assert {loss.condition for loss in asked.losses if loss.condition} == closed(asked)
    assert {loss.condition for loss in foreseen.losses if loss.condition} == closed(asked)
    for one in asked.closed:
        names = {loss.login for loss in asked.losses if loss.condition == one.name and loss.kind in ("reads", "edits")}
        assert [] == [name for name in names if name and name not in one.detail]
    # and what helps, helps
    for statement in {loss.remedy for loss in asked.losses if loss.condition and loss.remedy}:
        host.sql(statement.replace("%", "%%"))
    after = planned(host)
    assert (set(), []) == (closed(after), [loss for loss in after.losses if loss.condition])


@pytest.mark.profiles("pg18")
def test_an_owner_who_is_forced_is_told_what_he_loses(make_host: Callable[..., Host]) -> None:
    for shape, expected in ((PLAIN, set()), (FLYWAY, {"reads", "edits", "copy"})):
        host = make_host(shape)
        owner = host.role(shape.migrator)
        assert expected == {loss.kind for loss in planned(host).losses if loss.login == owner and not loss.condition}


@pytest.mark.profiles("pg18")
def test_where_activities_are_hidden_from_who_asks_it_does_not_say_that_there_are_none(
    make_host: Callable[..., Host],
) -> None:
    host = make_host(DJANGO)
    host.sql_script("ANALYZE")
    told = "how many leads get an owner: row security of public.crm_event hides rows"
    bound, free = planned(host), plan_of(host)
    assert [(estimate.leads, estimate.leads) for estimate in bound.backfill] == [
        (estimate.leads, estimate.assignable) for estimate in bound.backfill
    ]
    assert (True, False) == (told in bound.unseen, told in free.unseen)


@pytest.mark.profiles("pg18")
def test_policies_of_the_host_make_no_estimate_a_hundredth(make_host: Callable[..., Host]) -> None:
    """The planner reckons that a policy for our reader hides nearly every row from him, and it hides none."""
    host = make_host(DJANGO)
    columns = f"{DJANGO.org}, {DJANGO.account}, {host.input_of('DE')}"
    host.sql(f"INSERT INTO {{leads}} ({columns}) SELECT 1, 1, 'DE' FROM generate_series(1, 1000)")
    for _ in range(_ATTEMPTS):
        if statements := planned(host).statements:
            host.run_as_dba([*statements])
    host.upgrade("head")
    host.sql_script("ANALYZE")
    real = host.sql("SELECT count(*) FROM {leads} WHERE {territory} = 'DE'")[0]
    estimated = host.sql("SELECT {schema}.backfill_estimate('DE')")[0]
    assert real / 3 < estimated < real * 3


@pytest.mark.profiles("pg18")
def test_whatever_a_setting_names_is_held(make_host: Callable[..., Host]) -> None:
    """Columns of an expression, the lead's own owner, what a condition and a cast read, of each source."""
    host = make_host(GROWN)
    s = host.settings
    with psycopg.connect(host.url) as conn:
        found = pins(conn, settings=s)
    held = {(pin.table, pin.column): pin.setting for pin in found.pinned}
    assert [] == [pin for pin in found.pinned if pin.gone]
    assert {"territory_expression"} == {held[s.leads_table, column] for column in territory_columns(s)}
    assert "owner_column" == held[s.leads_table, s.owner_column]
    named = {(one.table, column) for one in s.activities for column in one.columns.values()}
    assert named <= held.keys()
    read = {key for (table, column), key in held.items() if (table, column) not in named and table != s.leads_table}
    assert {"[leadprotect.activities.meetings] condition", "[leadprotect.activities.letters] lead_id_column"} == read
    assert set() == {f"{table}.{column}" for table, column in held} & {*found.free}
