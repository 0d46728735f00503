"""On a database that somebody else made a shadow notes what contract denies, and nothing else."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from leadprotect.migration.shadowing import start_shadow
from tests.conftest import use
from tests.hosts import ANNA, BERT, PLAIN, SHAPES, ZOE, Person, Shape
from tests.support.profiles import NIGHTLY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.hosts import Actor, Host

pytestmark = pytest.mark.profiles("pg18", "pg15")
# one worker makes a host that is copied
each_shape = pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=pytest.mark.xdist_group(f"host {shape}")) for shape in SHAPES], ids=str
)

SEED = 20261128
STATEMENTS = 600 if NIGHTLY else 40
WORK = {
    "update": "UPDATE {leads} SET remark = 'changed' WHERE {lead_id} = ANY (%(leads)s)",
    "delete": "DELETE FROM {leads} WHERE {lead_id} = ANY (%(leads)s)",
    "insert": "INSERT INTO {leads} (org_id, {input}) VALUES (%(org)s, %(territory)s)",
    "move": "UPDATE {leads} SET {input} = %(territory)s WHERE {lead_id} = ANY (%(leads)s)",
    "child insert": "INSERT INTO {child} (org_id, lead_id) SELECT %(org)s, x FROM unnest(%(leads)s) AS x",
    "child update": "UPDATE {child} SET body = 'changed' WHERE lead_id = ANY (%(leads)s)",
    "child delete": "DELETE FROM {child} WHERE lead_id = ANY (%(leads)s)",
    "append": "INSERT INTO {appended} (org_id, lead_id) SELECT %(org)s, x FROM unnest(%(leads)s) AS x",
    "appended update": "UPDATE {appended} SET body = 'changed' WHERE lead_id = ANY (%(leads)s)",
    "activity": (
        "INSERT INTO {activities} (org_id, {activity_lead_id}, {activity_user_id}, {activity_kind}, {activity_at}) "
        "SELECT %(org)s, x, %(user)s, 'visit', '2026-02-01' FROM unnest(%(leads)s) AS x"
    ),
    "activity delete": "DELETE FROM {activities} WHERE {activity_lead_id} = ANY (%(leads)s)",
}


@dataclass(frozen=True)
class Task:
    """A statement of an actor about leads of its own; `owners` has one entry for each of them."""

    number: int
    actor: Actor
    work: str
    org: int
    territory: str | None
    owners: tuple[Person | None, ...]
    to: str | None

    def __str__(self) -> str:
        return f"{self.number}: {self.actor}: {self.work} of {self.territory}"


def tasks(host: Host, count: int = STATEMENTS) -> list[Task]:
    """The same for a shape whenever they are asked for."""
    chosen = random.Random(SEED)  # noqa: S311 - a workload
    actors = [one for one in host.actors(whole=True) if one.person or chosen.random() < 0.5]
    made = []
    for number in range(count):
        actor = chosen.choice(actors)
        # most of what services do is right, or nearly
        person = actor.person if actor.person and chosen.random() < 0.6 else chosen.choice((ANNA, BERT, ZOE))
        territory = actor.territory if actor.territory and chosen.random() < 0.7 else chosen.choice(("DE", "CH", None))
        owners = [
            chosen.choice((person, person, BERT if person.org == 1 else ZOE, None))
            for _ in range(chosen.choice((1, 1, 3)))
        ]
        work = chosen.choice([*WORK, "update", "insert"])
        made.append(Task(number, actor, work, person.org, territory, tuple(owners), chosen.choice(("DE", "CH", None))))
    return made


def prepared(host: Host, todo: list[Task]) -> dict[int, list[Any]]:
    """Leads for each task."""
    return {task.number: [host.host_lead(task.org, task.territory, owner) for owner in task.owners] for task in todo}


def done(host: Host, task: Task, leads: list[Any]) -> int | str:
    """How many rows the statement changed, or how it was refused."""
    child, appended = host.shape.children
    territory = task.to if task.work == "move" else task.territory
    statement = WORK[task.work].replace("{child}", child).replace("{appended}", appended)
    statement = statement.replace("{input}", host.input_of(territory))
    user = host.user(task.actor.person.number) if task.actor.person else None
    values = {"leads": leads, "org": task.org, "territory": territory, "user": user}
    try:
        with host.acting_for(task.actor) as conn:
            return conn.execute(host.text(statement).encode(), values).rowcount
    except psycopg.Error as refused:
        return type(refused).__name__


def rows_of(outcome: int | str) -> int:
    return outcome if isinstance(outcome, int) else 0


def reasons(host: Host) -> set[str]:
    """What was noted since the last time."""
    found = set(host.sql("SELECT reason FROM {schema}.shadow_notes"))
    host.sql("DELETE FROM {schema}.shadow_notes")
    return found


def adopted(make_host: Callable[..., Host], shape: Shape, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host before contract whose settings name its children, one of them with rows that everybody adds."""
    host = make_host(shape, phase="expanded")
    child, appended = shape.children
    activities = f"{host.settings.activities_table} ({host.settings.activity_lead_id_column})"
    host.overrides["lead_tables"] = f"{child} (lead_id), {appended} (lead_id) append, {activities}"
    for name in shape.children:
        host.sql(f"CREATE INDEX ON {name} (lead_id)")
    host.sql("CREATE INDEX ON {activities} ({activity_lead_id})")
    use(host, monkeypatch)
    return host


def foreseen(host: Host, todo: list[Task], leads: dict[int, list[Any]]) -> dict[int, tuple[int | str, set[str]]]:
    """What each statement did, and what was noted of it."""
    return {task.number: (done(host, task, leads[task.number]), reasons(host)) for task in todo}


@each_shape
@pytest.mark.nightly_elsewhere("by day the matrix of the same hosts is recorded there, and the control is tried")
def test_a_shadow_notes_exactly_what_contract_denies_and_denies_nothing(
    make_host: Callable[..., Host], shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = adopted(make_host, shape, monkeypatch)
    todo = tasks(host)
    worlds = [prepared(host, todo) for _ in range(3)]
    host.backfill()
    without = {task.number: done(host, task, worlds[0][task.number]) for task in todo}
    start_shadow(config=host.config())
    during = foreseen(host, todo, worlds[1])
    assert without == {number: outcome for number, (outcome, _) in during.items()}, "nothing is denied"
    host.deploy("head", contract="require", accept="unowned:1,unprotected:1,shadow:1")
    after = {task.number: done(host, task, worlds[2][task.number]) for task in todo}
    told = {task.number: (str(task), *during[task.number], after[task.number]) for task in todo}
    denied = {task.number for task in todo if rows_of(after[task.number]) < rows_of(without[task.number])}
    noted = {number for number, (_, found) in during.items() if found}
    assert [] == [told[number] for number in denied - noted]
    assert [] == [told[number] for number in noted - denied]
    allowed = {number for number, outcome in after.items() if rows_of(outcome)}
    assert min(len(denied), len(allowed)) > STATEMENTS / 20


@pytest.mark.xdist_group(f"host {PLAIN}")
def test_control_a_decision_that_is_broken_is_noticed(
    make_host: Callable[..., Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    host = adopted(make_host, PLAIN, monkeypatch)
    todo = [task for task in tasks(host, 200) if task.work == "update"]
    worlds = [prepared(host, todo) for _ in range(2)]
    start_shadow(config=host.config())
    sound = foreseen(host, todo, worlds[0])
    host.sql(
        "CREATE OR REPLACE FUNCTION {schema}.shadow_reason(lead {lead_id_type}) RETURNS text LANGUAGE sql STABLE "
        "RETURN NULL::text"
    )
    broken = foreseen(host, todo, worlds[1])
    assert [outcome for outcome, _ in sound.values()] == [outcome for outcome, _ in broken.values()]
    assert set() != set().union(*(found for _, found in sound.values()))
    assert set() == set().union(*(found for _, found in broken.values()))
