"""Many at once leave what one by one leaves, in random worlds: answers, assignments, records."""

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
    from tests.support.database import Database

MANY = 2_000 if NIGHTLY else 150
CHANGES = ("assign", "transfer", "release", "EDIT", "VIEW")
LEFT = {
    "assignments": "SELECT lead_id, territory, user_id, assigned_by, source FROM {schema}.user_lead_assignments",
    "rules": "SELECT user_id, lead_id, protection, active FROM {schema}.lead_protection_rules",
    "records": "SELECT lead_id, user_id, territory, action, reason, note, basis FROM {schema}.lead_access_audit",
}


@pytest.mark.profiles("pg18", "other_names")
def test_many_at_once_are_decided_changed_and_recorded_as_one_by_one(database: Database) -> None:
    ids = {lead: database.new_id() for lead in LEADS}
    seen: Counter[str] = Counter()
    with database.connect() as conn:

        @given(
            worlds(), st.sampled_from(CHANGES), st.sampled_from(["manager_de", "seller_both"]), st.permutations(LEADS)
        )
        # by day always the same worlds: whether all reasons occur must not be a matter of chance
        @settings(
            max_examples=MANY, derandomize=not NIGHTLY, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def agree(world: World, change: str, login: str, order: list[int]) -> None:
            build(database, conn, replace(world, login=login), ids)
            asked = [ids[lead] for lead in order]
            conn.execute("SAVEPOINT built")
            single = left(database, conn, change, asked, at_once=False)
            conn.execute("ROLLBACK TO SAVEPOINT built")
            together = left(database, conn, change, asked, at_once=True)
            conn.rollback()
            assert single == together
            seen.update(answer or "" for answer in single["answers"].values())

        agree()
    rare = {reason: seen[reason] for reason in REASONS if seen[reason] < MANY / 100}
    assert {} == rare, "the worlds are too alike to prove anything"


REASONS = ("owner", "manager", "not_manager", "not_found", "no_context", "not_owner", "unassigned")


def left(database: Database, conn: psycopg.Connection[Any], change: str, leads: list[Any], *, at_once: bool) -> Any:
    """What is answered, and what stands in the tables afterwards."""
    lead_type, user_type = database.settings.lead_id_type, database.settings.user_id_type
    if change in ("EDIT", "VIEW"):
        call, values = f"allow_edit{'s' if at_once else ''}(%s::{{lead}}, %s, 'a note')", [change]
    else:
        new_owner = None if change == "release" else database.user(3)
        call = f"change_owner{'s' if at_once else ''}(%s::{{lead}}, %s, %s::{user_type}, 'a note')"
        values = [change, new_owner]  # type: ignore[list-item]
    statement = "SELECT {schema}." + call.replace("{lead}", lead_type + "[]" * at_once)
    conn.execute("SAVEPOINT asked")
    if at_once:
        answers = ask(database, conn, statement, [leads, *values])
        found = dict(zip(leads, answers, strict=True)) if isinstance(answers, list) else dict.fromkeys(leads, answers)
    else:
        found = {lead: ask(database, conn, statement, [lead, *values]) for lead in sorted(leads)}
        if refused := [answer for answer in found.values() if answer and answer.startswith("LP")]:
            # one statement is done whole or not at all
            conn.execute("ROLLBACK TO SAVEPOINT asked")
            found = dict.fromkeys(leads, refused[0])
    who = conn.execute("SELECT session_user").fetchone()
    conn.execute("RESET SESSION AUTHORIZATION")
    stands = {name: sorted(map(str, database.query(conn, query))) for name, query in LEFT.items()}
    conn.execute(f'SET LOCAL SESSION AUTHORIZATION "{who[0] if who else ""}"')
    reasons = {lead: answer.split()[0] if answer else answer for lead, answer in found.items()}
    return stands | {"answers": reasons}


def ask(database: Database, conn: psycopg.Connection[Any], statement: str, values: list[Any]) -> Any:
    """The answer, or the SQLSTATE of a request that can't be right."""

    try:
        with conn.transaction():
            return database.query(conn, statement, *values)[0]
    except psycopg.DatabaseError as refused:
        return f"{refused.sqlstate}"
