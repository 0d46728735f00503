"""What a statement decides and records about rows of lead_tables is what each of its rows would, in random worlds."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.integration.test_plans import explained
from tests.support.both_ways import FIRST, RECORDS, Edits, acting, agreed
from tests.support.children import CONTACTS, contact, contracted
from tests.support.profiles import NIGHTLY

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

MANY = 1_000 if NIGHTLY else 60
AMONG = ' WHERE "of lead" = ANY (%s)'
STATEMENTS = {
    "update all": f"UPDATE {CONTACTS} SET email = 'all'",
    "update some": f"UPDATE {CONTACTS} SET email = 'some'" + AMONG,
    "delete": f"DELETE FROM {CONTACTS}" + AMONG,
    "insert": f"INSERT INTO {CONTACTS} (\"of lead\", email) SELECT unnest(%s), 'new'",
    "move": f'UPDATE {CONTACTS} SET "of lead" = (%s)[1]',
}
LEFT = {"rows": f'SELECT "of lead", email FROM {CONTACTS}', "records": RECORDS}
SEEN = ("owner", "collaborator", "unprotected", "done, 0", "done, 2", "done, 4", "refused")


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


def refusal(_kind: str, refused: psycopg.DatabaseError) -> str:
    if isinstance(refused, psycopg.errors.ForeignKeyViolation):
        return "refused"  # a session that replicates asks no foreign key: there row security answers
    return FIRST.get(str(refused.sqlstate), str(refused.sqlstate))


EDITS = Edits(
    table=CONTACTS,
    statements=STATEMENTS,
    often=("update all", "update some", "delete"),
    by_statement=("child_edits", "child_deletes", "child_inserts"),
    left=LEFT,
    refused=refusal,
    seen=SEEN,
    add=add_rows,
)


@pytest.mark.profiles("pg18", "other_names")
def test_rows_of_leads_are_decided_and_recorded_by_statement_as_by_row(make_database: Callable[..., Database]) -> None:
    seen = agreed(contracted(make_database), EDITS, many=MANY)
    assert [] == [what for what in SEEN if not seen[what]], "the worlds are too alike to prove anything"


@pytest.mark.profiles("pg18")
def test_control_without_a_trigger_of_statements_they_differ(make_database: Callable[..., Database]) -> None:
    database = contracted(make_database)
    database.sql_script(f"ALTER TABLE {CONTACTS} DISABLE TRIGGER {{child_edits}}")
    with pytest.raises(AssertionError):
        agreed(database, EDITS, many=MANY)


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
