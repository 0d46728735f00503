"""The same edits decided by triggers of statements and by those of rows, in random worlds.

The triggers of rows are those that replication fires, so they are asked in a session that replicates.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psycopg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.profiles import NIGHTLY
from tests.support.worlds import LEADS, World, build, worlds

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

FIRST = {"LP403": "refused", "42501": "refused"}
"""Who may neither edit a lead nor move it there hears one of both, whichever is asked first."""
RECORDS = (
    "SELECT lead_id, user_id, login, role, territory, action, outcome, reason, note, correlation_id, basis "
    "FROM {schema}.lead_access_audit"
)


def nothing(_database: Database, _conn: psycopg.Connection[Any], _leads: list[Any]) -> None:
    """A world is enough."""


@dataclass(frozen=True)
class Edits:
    """What is tried: `statements` by their names, on `table`, those of `often` more often than the others.

    `by_statement` names the triggers that decide whole statements, `left` asks what stands afterwards, `refused`
    says what an error is called, and `seen` what has to come up; `add` gives the leads of a world what else they need.
    """

    table: str
    statements: dict[str, str]
    often: tuple[str, ...]
    by_statement: tuple[str, ...]
    left: dict[str, str]
    refused: Callable[[str, psycopg.DatabaseError], str]
    seen: tuple[str, ...]
    add: Callable[[Database, psycopg.Connection[Any], list[Any]], None] = nothing


def agreed(database: Database, edits: Edits, *, many: int) -> Counter[str]:
    """Run every edit both ways in one world after the other; returns what came of them."""
    ids = {lead: database.new_id() for lead in LEADS}
    seen: Counter[str] = Counter()
    with database.connect() as conn:

        @given(worlds(), transactions(edits), st.sampled_from(["seller_de", "seller_both", "manager_de"]))
        @settings(
            max_examples=many, derandomize=not NIGHTLY, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def agree(world: World, asked: list[tuple[str, list[int]]], login: str) -> None:
            build(database, conn, replace(world, login=login), ids)
            edits.add(database, conn, [ids[lead] for lead in world.leads])
            statements = [(kind, [ids[lead] for lead in leads]) for kind, leads in asked]
            conn.execute("SAVEPOINT built")
            by_statement = came_of(database, conn, edits, statements)
            conn.execute("ROLLBACK TO SAVEPOINT built")
            replicating(database, conn, edits)
            by_row = came_of(database, conn, edits, statements)
            conn.rollback()
            assert by_row == by_statement
            seen.update({what for what in edits.seen if what in str(by_statement)})

        agree()
    return seen


@st.composite
def transactions(draw: st.DrawFn, edits: Edits) -> list[tuple[str, list[int]]]:
    """Statements of one transaction, each of some leads; one may come twice."""
    kinds = st.sampled_from([*edits.statements, *edits.often])
    some = st.lists(st.sampled_from(LEADS), min_size=1, unique=True)
    return [(draw(kinds), draw(some)) for _ in range(draw(st.integers(1, 3)))]


def acting(conn: psycopg.Connection[Any]) -> str:
    found = conn.execute("SELECT session_user").fetchone()
    assert found
    return str(found[0])


def replicating(database: Database, conn: psycopg.Connection[Any], edits: Edits) -> None:
    """Let the triggers of rows decide alone, for the same login in the same context."""
    who = acting(conn)
    conn.execute("RESET SESSION AUTHORIZATION")
    for trigger in edits.by_statement:
        database.query(conn, f"ALTER TABLE {edits.table} DISABLE TRIGGER {{{trigger}}}")
    conn.execute("SET LOCAL session_replication_role = replica")
    conn.execute(f'SET LOCAL SESSION AUTHORIZATION "{who}"')


def came_of(
    database: Database, conn: psycopg.Connection[Any], edits: Edits, statements: list[tuple[str, list[Any]]]
) -> dict[str, list[str]]:
    """Whether each was done, or what its refusal is called, and what stands in the tables afterwards."""
    answers = [done(database, conn, edits, kind, leads) for kind, leads in statements]
    conn.execute("RESET SESSION AUTHORIZATION")
    stands = {name: sorted(map(str, database.query(conn, query))) for name, query in edits.left.items()}
    return stands | {"answers": answers}


def done(database: Database, conn: psycopg.Connection[Any], edits: Edits, kind: str, leads: list[Any]) -> str:
    text = database.text(edits.statements[kind]).replace("%s", f"%s::{database.settings.lead_id_type}[]")
    try:
        with conn.transaction():
            return f"done, {conn.execute(text, (leads,) if '%s' in text else None).rowcount}"
    except psycopg.DatabaseError as refused:
        return edits.refused(kind, refused)
