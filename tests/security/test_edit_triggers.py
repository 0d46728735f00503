"""What the trigger of statements decides and records is what the trigger of rows does, in random worlds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.both_ways import FIRST, RECORDS, Edits, agreed
from tests.support.profiles import NIGHTLY

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    from tests.support.database import Database

MANY = 2_000 if NIGHTLY else 60
AMONG = " WHERE {lead_id} = ANY (%s)"
STATEMENTS = {
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
    "records": RECORDS,
}
SEEN = {
    "hide": ("owner", "collaborator", "unprotected", "done"),
    "raise": ("owner", "collaborator", "unprotected", "done", "LP403"),
}


def refusal(kind: str, refused: psycopg.DatabaseError) -> str:
    code = str(refused.sqlstate)
    return FIRST.get(code, code) if kind.startswith("move") else code


EDITS = Edits(
    table="{leads}",
    statements=STATEMENTS,
    often=("update all", "update some", "update some"),
    by_statement=("audit_edits",),
    left=LEFT,
    refused=refusal,
    seen=SEEN["raise"],
)


@pytest.mark.profiles("pg18", "other_names")
@pytest.mark.parametrize("denied_edit", ["hide", "raise"])
def test_edits_are_decided_and_recorded_by_statement_as_by_row(
    make_database: Callable[..., Database], denied_edit: str
) -> None:
    seen = agreed(contracted(make_database, denied_edit), EDITS, many=MANY)
    assert [] == [what for what in SEEN[denied_edit] if not seen[what]], "the worlds are too alike to prove anything"


@pytest.mark.profiles("pg18")
def test_control_without_a_trigger_of_statements_they_differ(make_database: Callable[..., Database]) -> None:
    database = contracted(make_database, "hide")
    database.sql_script("ALTER TABLE {leads} DISABLE TRIGGER {audit_edits}")
    with pytest.raises(AssertionError):
        agreed(database, EDITS, many=MANY)


def contracted(make_database: Callable[..., Database], denied_edit: str) -> Database:
    if denied_edit == "hide":
        return make_database("head")
    database = make_database("expanded", denied_edit=denied_edit)
    database.upgrade()
    return database
