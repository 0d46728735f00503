"""What the trigger of statements decides and records is what the trigger of rows does, in random worlds.

The trigger of rows is the one that replication fires, so it is asked in a session that replicates.
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
from tests.support.profiles import NIGHTLY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

MANY = 2_000 if NIGHTLY else 60
AMONG = " WHERE {lead_id} = ANY (%s)"
EDITS = {
    "update all": "UPDATE {leads} SET city = 'Bern'",
    "update some": "UPDATE {leads} SET city = 'Chur'" + AMONG,
    "update nothing": "UPDATE {leads} SET city = city" + AMONG,
    "merge": "MERGE INTO {leads} AS l USING (SELECT unnest(%s) AS one) AS s ON l.{lead_id} = s.one "
    "WHEN MATCHED THEN UPDATE SET city = 'Thun'",
    "upsert": "INSERT INTO {leads} ({lead_id}, {territory}) SELECT unnest(%s), 'DE' "
    "ON CONFLICT ({lead_id}) DO UPDATE SET city = 'Genf'",
    "delete": "DELETE FROM {leads}" + AMONG,
    "move": "UPDATE {leads} SET {territory} = 'CH'" + AMONG,
    "move out": "UPDATE {leads} SET {territory} = NULL" + AMONG,
    "insert": "INSERT INTO {leads} ({lead_id}, {territory}) SELECT unnest(%s), 'DE'",
}
LEFT = {
    "leads": "SELECT {lead_id}, {territory}, city FROM {leads}",
    "assignments": "SELECT lead_id, territory, user_id, source FROM {schema}.user_lead_assignments",
    "rules": "SELECT user_id, lead_id, protection, active FROM {schema}.lead_protection_rules",
    "records": "SELECT lead_id, user_id, login, role, territory, action, outcome, reason, note, correlation_id, basis "
    "FROM {schema}.lead_access_audit",
}
FIRST = {"LP403": "refused", "42501": "refused"}
"""Who may neither edit a lead nor move it there hears one of both, whichever is asked first."""


@st.composite
def edits(draw: st.DrawFn) -> list[tuple[str, list[int]]]:
    """Statements of one transaction, each of some leads; an edit comes most often, and may come twice."""
    kinds = st.sampled_from([*EDITS, "update all", "update some", "update some"])
    some = st.lists(st.sampled_from(LEADS), min_size=1, unique=True)
    return [(draw(kinds), draw(some)) for _ in range(draw(st.integers(1, 3)))]


@pytest.mark.profiles("pg18", "other_names")
@pytest.mark.parametrize("denied_edit", ["hide", "raise"])
def test_edits_are_decided_and_recorded_by_statement_as_by_row(
    make_database: Callable[..., Database], denied_edit: str
) -> None:
    seen = agreed(contracted(make_database, denied_edit))
    assert [] == [what for what in SEEN[denied_edit] if not seen[what]], "the worlds are too alike to prove anything"


@pytest.mark.profiles("pg18")
def test_control_without_a_trigger_of_statements_they_differ(make_database: Callable[..., Database]) -> None:
    database = contracted(make_database, "hide")
    database.sql_script("ALTER TABLE {leads} DISABLE TRIGGER {audit_edits}")
    with pytest.raises(AssertionError):
        agreed(database)


SEEN = {
    "hide": ("owner", "collaborator", "unprotected", "done"),
    "raise": ("owner", "collaborator", "unprotected", "done", "LP403"),
}


def contracted(make_database: Callable[..., Database], denied_edit: str) -> Database:
    if denied_edit == "hide":
        return make_database("head")
    database = make_database("expanded", denied_edit=denied_edit)
    database.upgrade()
    return database


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
            statements = [(kind, [ids[lead] for lead in leads]) for kind, leads in asked]
            conn.execute("SAVEPOINT built")
            by_statement = came_of(database, conn, statements)
            conn.execute("ROLLBACK TO SAVEPOINT built")
            replicating(database, conn)
            by_row = came_of(database, conn, statements)
            conn.rollback()
            assert by_row == by_statement
            seen.update({what for what in SEEN["raise"] if what in str(by_statement)})

        agree()
    return seen


def replicating(database: Database, conn: psycopg.Connection[Any]) -> None:
    """Let the trigger of rows decide alone, for the same login in the same context."""
    who = conn.execute("SELECT session_user").fetchone()
    conn.execute("RESET SESSION AUTHORIZATION")
    database.query(conn, "ALTER TABLE {leads} DISABLE TRIGGER {audit_edits}")
    conn.execute("SET LOCAL session_replication_role = replica")
    conn.execute(f'SET LOCAL SESSION AUTHORIZATION "{who[0] if who else ""}"')


def came_of(database: Database, conn: psycopg.Connection[Any], statements: list[tuple[str, list[Any]]]) -> Any:
    """Whether each was done, or the SQLSTATE of its refusal, and what stands in the tables afterwards."""
    answers = [done(database, conn, kind, leads) for kind, leads in statements]
    conn.execute("RESET SESSION AUTHORIZATION")
    stands = {name: sorted(map(str, database.query(conn, query))) for name, query in LEFT.items()}
    return stands | {"answers": answers}


def done(database: Database, conn: psycopg.Connection[Any], kind: str, leads: list[Any]) -> str:
    text = database.text(EDITS[kind]).replace("%s", f"%s::{database.settings.lead_id_type}[]")
    try:
        with conn.transaction():
            return f"done, {conn.execute(text, (leads,) if '%s' in text else None).rowcount}"
    except psycopg.DatabaseError as refused:
        code = str(refused.sqlstate)
        return FIRST.get(code, code) if kind.startswith("move") else code
