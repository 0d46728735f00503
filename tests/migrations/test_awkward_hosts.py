"""Hosts whose names and values collide with what a revision writes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner

import leadprotect
from leadprotect.cli import main
from tests.support.revisions import HEAD, MIGRATE_HEAD

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

pytestmark = pytest.mark.profiles("pg18")

KIND = "O'Brien's 10 % {call} :word :cc:d $1 %s"
# a host may call its columns what our functions call their variables
COLLIDING = {
    "leads_table": "crm.leads",
    "lead_id_column": "lead",
    "territory_column": "here",
    "activities_table": "crm.activities",
    "activity_id_column": "first",
    "activity_lead_id_column": "last",
    "activity_user_id_column": "caller",
    "activity_kind_column": "decision",
    "activity_at_column": "note",
}


def test_a_kind_may_hold_what_means_something_in_sql(make_database: Callable[..., Database]) -> None:
    database = make_database("host", qualifying_kinds=f"{KIND}, PLAIN")
    backfilled, live = database.lead("DE"), database.lead("DE")
    database.activity(backfilled, database.user(1), kind=KIND)
    database.upgrade()
    database.activity(live, database.user(2), kind=KIND)
    asked = CliRunner().invoke(main, ["backfill", "DE", "--dry-run"])
    assert "1 would get an owner" in asked.output
    done = CliRunner().invoke(main, ["backfill", "DE"])
    assert done.exit_code == 0, done.output
    assert [database.owner(lead) for lead in (backfilled, live)] == [database.user(1), database.user(2)]
    database.upgrade()
    assert database.revision() == HEAD
    assert database.text("{kinds}").partition(", ")[0] in database.script("upgrade", "head")


def test_the_kinds_may_be_labels_of_an_enum(make_database: Callable[..., Database]) -> None:
    database = make_database("host")
    labels = ", ".join(f"'{kind}'" for kind in (*database.settings.qualifying_kinds, "NOTE"))
    database.sql(f"CREATE TYPE public.kind AS ENUM ({labels})")
    database.sql(
        "ALTER TABLE {activities} ALTER COLUMN {activity_kind} TYPE public.kind USING {activity_kind}::public.kind"
    )
    lead, ownerless = database.lead("DE"), database.lead("DE")
    database.activity(lead, database.user(1), kind=database.settings.qualifying_kinds[-1])
    database.activity(ownerless, database.user(1), kind="NOTE")
    database.upgrade(MIGRATE_HEAD)

    (estimate,) = leadprotect.backfill(database.url, ["DE"], dry_run=True)
    (result,) = leadprotect.backfill(database.url, ["DE"])

    assert (2, 1, 1) == (estimate.leads, estimate.assignable, estimate.ownerless)
    assert (1, database.user(1)) == (result.assigned, database.owner(lead))


def variables(database: Database) -> set[str]:
    """Every parameter and variable of our functions."""
    arguments: list[str] = []
    bodies: list[str] = []
    found = database.sql(
        "SELECT coalesce(proargnames, '{}'), prosrc FROM pg_proc WHERE pronamespace = {schema_name}::regnamespace"
    )
    for names, body in found:
        arguments += names
        declared = re.search(r"DECLARE\n(.*?)\n\s+BEGIN\n", body, re.DOTALL)
        bodies += re.findall(r"^\s+(\w+) [^;]*;", declared[1], re.MULTILINE) if declared else []
    return {name for name in [*arguments, *bodies] if name}


def test_a_host_may_call_its_columns_what_our_functions_call_their_variables(
    make_database: Callable[..., Database],
) -> None:
    names = variables(make_database("head"))
    database = make_database("empty", **COLLIDING)
    database.create_host_tables()
    assert {"lead", "here", "caller", "decision", "after", "leads", "page_size"} <= names
    for table in ("leads", "activities"):
        taken = set(
            database.sql("SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass(%s)", f"crm.{table}")
        )
        for name in sorted(names - taken):
            database.sql(f'ALTER TABLE crm.{table} ADD "{name}" text')
    old, foreign = database.lead("DE"), database.lead("CH")
    migrate(database, old, foreign)
    new = database.lead("DE")
    edit(database, old, foreign, new)
    manage(database, old, foreign, new)


def migrate(database: Database, old: Any, foreign: Any) -> None:
    """From the first revision to the last, with the backfill and the transition triggers."""
    one, two = database.user(1), database.user(2)
    for lead in (old, foreign):
        database.activity(lead, one)
    database.upgrade()
    assert database.revision() == MIGRATE_HEAD
    database.create_logins()
    run("backfill", "DE", "CH", "--dry-run")
    run("backfill", "DE", "CH")
    run("backfill", "DE", "--verify")
    assert database.owner(old) == one
    moved = database.lead("DE")
    activity = database.activity(moved, one)
    database.sql("UPDATE {activities} SET {activity_user_id} = %s WHERE {activity_id} = %s", two, activity)
    assert database.owner(moved) == two
    database.sql("UPDATE {leads} SET {territory} = 'CH' WHERE {lead_id} = %s", moved)
    assert database.owner(moved, "CH") is None
    database.activity(moved, two)
    assert database.owner(moved, "CH") == two
    database.sql("DELETE FROM {leads} WHERE {lead_id} = %s", moved)
    assert database.owner(moved, "CH") is None
    database.upgrade()
    assert database.revision() == HEAD


def edit(database: Database, old: Any, foreign: Any, new: Any) -> None:
    """What a service asks and does for two sellers."""
    one, two = database.user(1), database.user(2)
    with database.connect("seller_de") as conn:
        with leadprotect.acting_as(conn, one, "DE"):
            decisions = leadprotect.can_edit_many(conn, [old, foreign, new])
            assert decisions == {old: True, foreign: False, new: False}
            assert leadprotect.explain(conn, new).reason == "unassigned"
            assert leadprotect.explain(conn, foreign).reason == "not_found"
            assert leadprotect.assert_edit(conn, old).reason == "owner"
            leadprotect.claim(conn, new)
            leadprotect.share(conn, new, two)
            assert [row.reason for row in leadprotect.editable_leads(conn).leads] == ["owner", "owner"]
            view = "SELECT lead, can_edit, reason FROM {schema}.v_lead_protection ORDER BY 1"
            assert database.query(conn, view) == [(old, True, "owner"), (new, True, "owner")]
            database.query(conn, "UPDATE {leads} SET city = 'Ulm'")
        with leadprotect.acting_as(conn, two, "DE"):
            decisions = leadprotect.can_edit_many(conn, [old, foreign, new])
            assert decisions == {old: False, foreign: False, new: True}
            assert leadprotect.explain(conn, new).reason == "collaborator"
            assert leadprotect.assert_edit(conn, new).reason == "collaborator"
            assert len(leadprotect.editable_leads(conn).leads) == 1
            database.query(conn, "UPDATE {leads} SET city = 'Bonn'")
        with leadprotect.acting_as(conn, one, "DE"):
            leadprotect.unshare(conn, new, two)
            leadprotect.release(conn, new)
    assert database.sql("SELECT city FROM {leads} ORDER BY {lead_id}") == ["Ulm", None, "Bonn"]


def manage(database: Database, old: Any, foreign: Any, new: Any) -> None:
    """What a manager does, and what follows from it."""
    two, three = database.user(2), database.user(3)
    with database.connect("manager_de") as conn, leadprotect.acting_as(conn, three, "DE"):
        leadprotect.assign(conn, new, two)
        leadprotect.transfer(conn, new, three)
        assert leadprotect.explain(conn, new).reason == "owner"
    database.rule(three, "COLLABORATOR")
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, three, "DE"):
        assert leadprotect.can_edit_many(conn, [old, foreign, new]) == {old: True, foreign: False, new: True}
        assert [row.reason for row in leadprotect.editable_leads(conn).leads] == ["collaborator", "owner"]


def run(*arguments: str) -> None:
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
