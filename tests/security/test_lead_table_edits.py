"""What a statement decides and records about rows of lead_tables is what each of its rows would, in random worlds.

The triggers of rows are those that replication fires, so they are asked in a session that replicates.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.test_oracle import LEADS, World, build, worlds
from tests.integration.test_plans import explained
from tests.security.test_edit_triggers import FIRST, LEFT
from tests.support.children import CONTACTS, contact, contracted
from tests.support.profiles import NIGHTLY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

MANY = 1_000 if NIGHTLY else 60
AMONG = ' WHERE "of lead" = ANY (%s)'
EDITS = {
    "update all": f"UPDATE {CONTACTS} SET email = 'all'",
    "update some": f"UPDATE {CONTACTS} SET email = 'some'" + AMONG,
    "delete": f"DELETE FROM {CONTACTS}" + AMONG,
    "insert": f"INSERT INTO {CONTACTS} (\"of lead\", email) SELECT unnest(%s), 'new'",
    "move": f'UPDATE {CONTACTS} SET "of lead" = (%s)[1]',
}
LEFT_OF_ROWS = {"rows": f'SELECT "of lead", email FROM {CONTACTS}', "records": LEFT["records"]}
SEEN = ("owner", "collaborator", "unprotected", "done, 0", "done, 2", "done, 4", "refused")


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[str, list[int]]]:
    """Statements of one transaction; what changes or deletes comes most often, and may come twice."""
    kinds = st.sampled_from([*EDITS, "update all", "update some", "delete"])
    some = st.lists(st.sampled_from(LEADS), min_size=1, unique=True)
    return [(draw(kinds), draw(some)) for _ in range(draw(st.integers(1, 3)))]


@pytest.mark.profiles("pg18", "other_names")
def test_rows_of_leads_are_decided_and_recorded_by_statement_as_by_row(make_database: Callable[..., Database]) -> None:
    seen = agreed(contracted(make_database))
    assert [] == [what for what in SEEN if not seen[what]], "the worlds are too alike to prove anything"


@pytest.mark.profiles("pg18")
def test_control_without_a_trigger_of_statements_they_differ(make_database: Callable[..., Database]) -> None:
    database = contracted(make_database)
    database.sql_script(f"ALTER TABLE {CONTACTS} DISABLE TRIGGER {{child_edits}}")
    with pytest.raises(AssertionError):
        agreed(database)


def agreed(database: Database) -> Counter[str]:
    """Run every edit both ways in one world after the other; returns what came of them."""
    ids = {lead: database.new_id() for lead in LEADS}
    seen: Counter[str] = Counter()
    with database.connect() as conn:

        @given(worlds(), edits(), st.sampled_from(["seller_de", "seller_both", "manager_de"]))
        @settings(
            max_examples=MANY, derandomize=not NIGHTLY, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def agree(world: World, asked: list[tuple[str, list[int]]], login: str) -> None:
            build(database, conn, replace(world, login=login), ids)
            add_rows(database, conn, [ids[lead] for lead in world.leads])
            statements = [(kind, [ids[lead] for lead in leads]) for kind, leads in asked]
            conn.execute("SAVEPOINT built")
            by_statement = came_of(database, conn, statements)
            conn.execute("ROLLBACK TO SAVEPOINT built")
            replicating(database, conn)
            by_row = came_of(database, conn, statements)
            conn.rollback()
            assert by_row == by_statement
            seen.update({what for what in SEEN if what in str(by_statement)})

        agree()
    return seen


def acting(conn: psycopg.Connection[Any]) -> str:
    found = conn.execute("SELECT session_user").fetchone()
    assert found
    return str(found[0])


def add_rows(database: Database, conn: psycopg.Connection[Any], leads: list[Any]) -> None:
    """Two rows of each lead, without a record that would spare one of what is tried: nobody is in context."""
    who, kind = acting(conn), database.settings.lead_id_type
    conn.execute("RESET SESSION AUTHORIZATION")
    (declared,) = database.query(conn, "SELECT pg_catalog.current_setting({user_guc}, true)")
    database.query(conn, "SELECT pg_catalog.set_config({user_guc}, '', true)")
    database.query(
        conn, f'INSERT INTO {CONTACTS} ("of lead") SELECT unnest(%s::{kind}[] || %s::{kind}[])', leads, leads
    )
    database.query(conn, "SELECT pg_catalog.set_config({user_guc}, %s, true)", declared)
    conn.execute(f'SET LOCAL SESSION AUTHORIZATION "{who}"')


def replicating(database: Database, conn: psycopg.Connection[Any]) -> None:
    """Let the triggers of rows decide alone, for the same login in the same context."""
    who = acting(conn)
    conn.execute("RESET SESSION AUTHORIZATION")
    for trigger in ("child_edits", "child_deletes", "child_inserts"):
        database.query(conn, f"ALTER TABLE {CONTACTS} DISABLE TRIGGER {{{trigger}}}")
    conn.execute("SET LOCAL session_replication_role = replica")
    conn.execute(f'SET LOCAL SESSION AUTHORIZATION "{who}"')


def came_of(database: Database, conn: psycopg.Connection[Any], statements: list[tuple[str, list[Any]]]) -> Any:
    """Whether each was done, or that it was refused, and what stands in the tables afterwards."""
    answers = [done(database, conn, kind, leads) for kind, leads in statements]
    conn.execute("RESET SESSION AUTHORIZATION")
    stands = {name: sorted(map(str, database.query(conn, query))) for name, query in LEFT_OF_ROWS.items()}
    return stands | {"answers": answers}


def done(database: Database, conn: psycopg.Connection[Any], kind: str, leads: list[Any]) -> str:
    text = database.text(EDITS[kind]).replace("%s", f"%s::{database.settings.lead_id_type}[]")
    try:
        with conn.transaction():
            return f"done, {conn.execute(text, (leads,) if '%s' in text else None).rowcount}"
    except psycopg.errors.ForeignKeyViolation:
        return "refused"  # a session that replicates asks no foreign key: there row security answers
    except psycopg.DatabaseError as refused:
        return FIRST.get(str(refused.sqlstate), str(refused.sqlstate))


@pytest.mark.profiles("pg18", "pg15")
@pytest.mark.nightly_elsewhere("by day statements that change many rows are decided there by another test")
def test_many_rows_of_leads_are_changed_or_deleted_by_a_set_of_own_leads(
    make_database: Callable[..., Database],
) -> None:
    database = contracted(make_database)
    owner = database.user(1)
    leads = [database.lead("DE", owner=owner) for _ in range(3)]
    for lead in leads * 5:
        contact(database, lead)
    changes = f"UPDATE {CONTACTS} SET email = 'x'", f"DELETE FROM {CONTACTS}"
    for statement in changes:
        assert "user_lead_assignments" in explained(database, statement, owner)  # hashed, or probed by its key
    with database.connect("seller_de") as conn:
        database.context(conn, owner, "DE")
        for statement in changes:
            assert 15 == conn.execute(statement).rowcount
    theirs = "SELECT lead_id FROM {schema}.lead_access_audit WHERE reason = 'owner'"
    assert sorted(leads) == sorted(database.sql(theirs))
    # control: with the decision about each row in the policy nothing is looked up for the statement
    database.sql(f'ALTER POLICY {{child_delete_policy}} ON {CONTACTS} USING ({{schema}}.can_edit_lead("of lead"))')
    assert "user_lead_assignments" not in explained(database, changes[1], owner)
