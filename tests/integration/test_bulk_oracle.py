"""Many at once leave what one by one leaves, in random worlds: answers, assignments, their history, records."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.profiles import NIGHTLY
from tests.support.worlds import LEADS, Rule, World, build, worlds

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

MANY = 2_000 if NIGHTLY else 100
CHANGES = ("assign", "transfer", "release", "EDIT", "VIEW")
LEFT = {
    "assignments": "SELECT lead_id, territory, user_id, assigned_by, source FROM {schema}.user_lead_assignments",
    "history": "SELECT lead_id, territory, user_id, assigned_by, source FROM {schema}.user_lead_assignment_history",
    "rules": "SELECT user_id, lead_id, protection, active FROM {schema}.lead_protection_rules",
    "records": "SELECT lead_id, user_id, login, role, territory, action, outcome, reason, note, correlation_id, basis "
    "FROM {schema}.lead_access_audit",
}
COLUMN = {"column": "SELECT {lead_id}, seller FROM {leads}"}
PHASES = ("head", "stepping")
"""The second has a column of the host in step with the owner."""
NAME_OWNERS = (
    "UPDATE {leads} AS l SET seller = a.user_id FROM {schema}.user_lead_assignments AS a "
    "WHERE a.lead_id = l.{lead_id} AND a.territory = l.{territory} AND l.{lead_id} <> %s"
)
REASONS = ("owner", "manager", "not_manager", "not_found", "no_context", "not_owner", "unassigned", "LP422", "skipped")
EDITS = ("collaborator", "unprotected")


@dataclass(frozen=True)
class Call:
    """What is asked; `of_owner` by number, `silent`: without a declared user, `moving`: a lead on its way."""

    change: str
    order: tuple[int | None, ...]
    of_owner: int | None = None
    silent: bool = False
    moving: int | None = None


@st.composite
def calls(draw: st.DrawFn) -> Call:
    order: list[int | None] = draw(st.permutations(LEADS))
    # mostly each once: the same lead twice, and no lead at all, leave the set to those who go one by one
    odd = draw(st.sampled_from([()] * 6 + [(order[0],), (None,)]))
    change = draw(st.sampled_from(CHANGES))
    return Call(
        change,
        (*order, *odd),
        draw(st.sampled_from([None, None, 1, 2])) if change == "transfer" else None,
        draw(st.sampled_from([False] * 5 + [True])),
        draw(st.sampled_from([None] * 5 + [*LEADS])),
    )


@pytest.mark.profiles("pg18", "pg15", "other_names")
@pytest.mark.parametrize("phase", PHASES)
def test_many_at_once_are_decided_changed_and_recorded_as_one_by_one(
    make_database: Callable[..., Database], phase: str
) -> None:
    database = make_database(phase)
    many = MANY if database.profile.name == "pg18" else MANY // 3
    seen: Counter[str] = Counter()
    with database.connect() as conn:
        ids = numbered(database)

        @given(worlds(), calls(), st.sampled_from(["manager_de", "manager_de", "seller_both"]))
        # by day always the same worlds: whether all reasons occur must not be a matter of chance
        @settings(
            max_examples=many, derandomize=not NIGHTLY, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def agree(world: World, call: Call, login: str) -> None:
            single, together = both(database, conn, ids, replace(world, login=login), call)
            assert single == together
            seen.update(answer[:5] if answer.startswith("LP") else answer for _, answer in single["answers"])

        agree()
    if many == MANY:
        rare = {reason for reason in REASONS + EDITS if seen[reason] < MANY / 100}
        assert set() == rare, "too alike to prove anything"


@dataclass(frozen=True)
class Write:
    """What the host writes into its column, by the number of the user, and whether into another one, too."""

    names: dict[int, int | None]
    other: bool = False


@st.composite
def writes(draw: st.DrawFn) -> Write:
    several: list[list[int | None]] = [[1], [3], [None], [1, None], [2, 3], [1, 2, 3, None]]
    few = draw(st.sampled_from(several))
    return Write({lead: draw(st.sampled_from(few)) for lead in LEADS}, draw(st.sampled_from([False] * 3 + [True])))


@pytest.mark.profiles("pg18", "pg15")
@pytest.mark.parametrize("denied", ["hidden", "raised"])
def test_an_update_of_many_is_followed_as_one_of_each(make_database: Callable[..., Database], denied: str) -> None:
    database = make_database("stepping")
    if denied == "raised":
        database.sql("DROP POLICY {named_update_policy} ON {leads}")
        database.sql("DROP TRIGGER {hide_column} ON {leads}")
    many = MANY // 2 if database.profile.name == "pg18" else MANY // 6
    seen: Counter[str] = Counter()
    with database.connect() as conn:
        ids = numbered(database)

        @given(worlds(), writes(), st.sampled_from(["manager_de", "manager_de", "seller_both"]), st.booleans())
        @settings(
            max_examples=many, derandomize=not NIGHTLY, deadline=None, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        def agree(world: World, write: Write, login: str, silent: bool) -> None:  # noqa: FBT001 - drawn
            single, together = both_written(database, conn, ids, replace(world, login=login), write, silent=silent)
            assert single == together
            seen.update(record.split("'")[1] for record in single["reasons"])
            seen.update(["refused"] if isinstance(single["changed"], str) else [])

        agree()
    if many == MANY // 2:
        usual = {"manager", "owner"} | ({"refused"} if denied == "raised" else set())
        assert set() == {one for one in usual if seen[one] < many / 25}, "too alike to prove anything"


def both_written(
    database: Database, conn: psycopg.Connection[Any], ids: dict[int | None, Any], world: World, write: Write,
    *, silent: bool = False,
) -> tuple[Any, Any]:  # fmt: skip
    """What an UPDATE of each lead leaves, and what one of all."""
    build(database, conn, world, {lead: ids[lead] for lead in LEADS})
    as_superuser(conn, database.text(NAME_OWNERS), ids[3])
    if silent:
        database.context(conn, None, world.territory)
    conn.execute("SAVEPOINT built")
    names = {ids[lead]: database.user(user) if user else None for lead, user in write.names.items()}
    single = written(database, conn, [{lead: names[lead]} for lead in sorted(names)], other=write.other)
    conn.execute("ROLLBACK TO SAVEPOINT built")
    together = written(database, conn, [names], other=write.other)
    conn.rollback()
    return single, together


def written(
    database: Database, conn: psycopg.Connection[Any], parts: list[dict[Any, str | None]], *, other: bool
) -> Any:
    statement = (
        f"UPDATE {{leads}} AS l SET seller = u.named{', city = coalesce(city, %s) || %s' * other} "
        "FROM unnest(%s::{lead_id_type}[], %s::{user_id_type}[]) AS u (lead, named) "
        "WHERE l.{lead_id} = u.lead RETURNING l.{lead_id}::text"
    )
    changed: Any = []
    conn.execute("SAVEPOINT asked")
    for part in parts:
        try:
            with conn.transaction():
                changed += database.query(conn, statement, *["x", "y"] * other, [*part], [*part.values()])
        except psycopg.DatabaseError as refused:
            conn.execute("ROLLBACK TO SAVEPOINT asked")
            changed = f"{refused.sqlstate} {refused.diag.message_detail}"
            break
    looked_at = (
        LEFT | COLUMN | {"reasons": "SELECT reason FROM {schema}.lead_access_audit WHERE reason <> 'maintenance'"}
    )
    stands = {name: sorted(map(str, as_superuser(conn, database.text(query)))) for name, query in looked_at.items()}
    return stands | {"changed": changed if isinstance(changed, str) else sorted(changed)}


# what is taken out of it -> of which function, and where it shows
UNFOLLOWED: dict[str, tuple[str, str, str, World, Write]] = {
    "who is named": (
        "follow_leads", "same.named,\n                'by", "(names)[1],\n                'by", World(
            {0: "DE", 1: "DE", 2: "DE"}, {}, frozenset(), "manager_de", 1, "DE"), Write({0: 2, 1: 3, 2: 3, 3: 3}),
    ),
    "what else is written": (
        "audit_edits", "(was OPERATOR(pg_catalog.*<>) before)", "false", World(
            {0: "DE", 1: "DE"}, {(0, "DE"): 2}, frozenset(), "manager_de", 1, "DE"),
        Write(dict.fromkeys(LEADS, 3), other=True),
    ),
    "the rest": (
        "follow_leads", "WHERE c.lead IS NULL", "WHERE false", World(
            {0: "DE", 1: "DE"}, {}, frozenset(), "seller_de", 1, "DE"), Write(dict.fromkeys(LEADS, 1)),
    ),
}  # fmt: skip


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("what", UNFOLLOWED)
def test_what_is_left_out_of_the_following_shows(make_database: Callable[..., Database], what: str) -> None:
    database = make_database("stepping")
    function, right, wrong, world, write = UNFOLLOWED[what]
    ids = numbered(database)
    with database.connect() as conn:
        single, together = both_written(database, conn, ids, world, write)
        assert single == together
        kept = single
    (body,) = database.sql(f"SELECT pg_get_functiondef('{{schema}}.{function}'::regproc)")
    broken = body.replace(database.text(right), database.text(wrong), 1)
    assert broken != body
    database.sql_script(broken.replace("%", "%%"))
    with database.connect() as conn:
        assert kept != both_written(database, conn, ids, world, write)[1]


HERE = World(
    leads={0: "DE", 1: "DE", 2: "DE", 3: "CH"},
    owners={(0, "DE"): 1, (1, "DE"): 2},
    rules=frozenset([Rule(3, "DE", "VIEW_ONLY", 0, active=True, window="always")]),
    login="manager_de",
    user=1,
    territory="DE",
)
SHARED = Rule(1, "DE", "COLLABORATOR", 1, active=True, window="always")
SELLER = replace(HERE, login="seller_de")
THE_COLUMN = "the column of the host"
# what is taken out of the set-based part -> of which function, and where it shows
BROKEN: dict[str, tuple[str, str, str, World, Call]] = {
    "the right by which it is done": (
        "change_together", "CASE WHEN manager THEN 'manager'", "CASE WHEN true THEN 'owner'",
        replace(HERE, rules=frozenset()), Call("assign", (0, 1)),
    ),
    "a new owner who is suspended": (
        "change_together", "r.protection = 'VIEW_ONLY'", "false", HERE, Call("assign", (0, 1)),
    ),
    "what was his": (
        "change_together", "OR s.user_id = of_owner", "OR true", HERE, Call("transfer", (1, 2), of_owner=1),
    ),
    "a lead of nobody": (
        "change_together", "AND change <> 'transfer'", "", replace(HERE, rules=frozenset()), Call("transfer", (1, 2)),
    ),
    "a lead on its way": (
        "change_together", "a.source <> 'moving'", "true", replace(HERE, owners={(0, "DE"): None}, rules=frozenset()),
        Call("assign", (0, 2), moving=0),
    ),
    "whose the lead is": ("change_together", "WHERE e.reason = 'owner'", "", replace(
        SELLER, rules=frozenset([SHARED])),
        Call("release", (0, 1)),
    ),
    "a suspended owner": (
        "allow_edits", "FROM {schema}.editable_among(leads) AS e) AS e",
        "FROM (SELECT unnest(locked), 'owner') AS e (lead, reason)) AS e",
        replace(SELLER, rules=frozenset([Rule(1, "DE", "VIEW_ONLY", None, active=True, window="always")])),
        Call("EDIT", (0, 1)),
    ),
    "one record for each of two": (
        "allow_edits", "FROM unnest(leads) WITH ORDINALITY AS u (lead, place)\n            JOIN",
        "FROM (SELECT DISTINCT x, 1 FROM unnest(leads) AS x) AS u (lead, place)\n            JOIN",
        SELLER, Call("EDIT", (0, 0)),
    ),
    "the rule that lets a collaborator edit": (
        "allow_edits", "ELSE o.rule END", "END", replace(SELLER, rules=frozenset([SHARED])), Call("EDIT", (0, 1)),
    ),
    "a lead outside protection": (
        "allow_edits", "CASE WHEN o.reason <> 'unprotected' THEN here END", "here",
        replace(SELLER, leads={0: "DE", 1: None}), Call("EDIT", (0, 1)),
    ),
    THE_COLUMN: (
        "change_together", "PERFORM {schema}.write_owner_column(owned, places, new_owner);", "NULL;",
        replace(HERE, rules=frozenset()), Call("assign", (0, 1)),
    ),
    "the row": ("allow_edits", "FROM unnest(leads)", "FROM unnest(leads[2:])", SELLER, Call("EDIT", (0, 1))),
}  # fmt: skip


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("what", BROKEN)
def test_what_is_left_out_of_the_set_shows(make_database: Callable[..., Database], what: str) -> None:
    database = make_database("stepping" if what == THE_COLUMN else "head")
    function, right, wrong, world, call = BROKEN[what]
    ids = numbered(database)
    with database.connect() as conn:
        single, together = both(database, conn, ids, world, call)
        assert single == together
    (body,) = database.sql(f"SELECT pg_get_functiondef('{{schema}}.{function}'::regproc)")
    broken = body.replace(database.text(right), database.text(wrong), 1)
    assert broken != body
    database.sql_script(broken.replace("%", "%%"))
    with database.connect() as conn:
        single, together = both(database, conn, ids, world, call)
        assert single != together


def numbered(database: Database) -> dict[int | None, Any]:
    return {lead: database.new_id() for lead in LEADS} | {None: None}


def both(
    database: Database, conn: psycopg.Connection[Any], ids: dict[int | None, Any], world: World, call: Call
) -> tuple[Any, Any]:
    """What one by one leaves, and what many at once."""
    if call.moving is not None:
        world = replace(world, owners=world.owners | {(call.moving, territory): None for territory in ("DE", "CH")})
    build(database, conn, world, {lead: ids[lead] for lead in LEADS})
    if stepping(database):
        # as it is where contract found it, mostly: of one lead the column names somebody else
        as_superuser(conn, database.text(NAME_OWNERS), ids[3])
    if call.moving is not None:
        on_its_way = "UPDATE {schema}.user_lead_assignments SET source = 'moving' WHERE lead_id = %s"
        as_superuser(conn, database.text(on_its_way), ids[call.moving])
    if call.silent:
        database.context(conn, None, world.territory)
    conn.execute("SELECT set_config(%s, 'request 1', true)", (database.settings.correlation_guc,))
    asked = [ids[lead] for lead in call.order]
    conn.execute("SAVEPOINT built")
    single = left(database, conn, world, call, asked, at_once=False)
    conn.execute("ROLLBACK TO SAVEPOINT built")
    together = left(database, conn, world, call, asked, at_once=True)
    conn.rollback()
    return single, together


def left(
    database: Database, conn: psycopg.Connection[Any], world: World, call: Call, leads: list[Any], *, at_once: bool
) -> Any:
    """What is answered, and what stands in the tables afterwards."""
    lead_type, user_type = database.settings.lead_id_type, database.settings.user_id_type
    if call.change in ("EDIT", "VIEW"):
        asked, values = f"allow_edit{'s' * at_once}(%s::{{lead}}, %s, 'a note')", [call.change]
    else:
        values = [call.change, None if call.change == "release" else database.user(3)]  # type: ignore[list-item]
        more = f", %s::{user_type}" * at_once
        asked = f"change_owner{'s' * at_once}(%s::{{lead}}, %s, %s::{user_type}, 'a note'{more})"
        values += [database.user(call.of_owner) if call.of_owner else None] * at_once  # type: ignore[list-item]
    statement = "SELECT {schema}." + asked.replace("{lead}", lead_type + "[]" * at_once)
    conn.execute("SAVEPOINT asked")
    if at_once:
        answers = ask(database, conn, statement, [leads, *values])
        found = answers if isinstance(answers, list) else [answers] * len(leads)
    else:
        found = [None] * len(leads)
        # NULL sorts last there
        each = sorted(range(len(leads)), key=lambda place: (leads[place] is None, leads[place]))
        for place in each:
            if not passed_over(database, conn, world, call, leads[place]):
                found[place] = ask(database, conn, statement, [leads[place], *values])
        if refused := [found[place] for place in each if str(found[place]).startswith("LP")]:
            # one statement is done whole or not at all
            conn.execute("ROLLBACK TO SAVEPOINT asked")
            found = [refused[0]] * len(leads)
    looked_at = LEFT | (COLUMN if stepping(database) else {})
    stands = {name: sorted(map(str, as_superuser(conn, database.text(query)))) for name, query in looked_at.items()}
    reasons = [answer if answer is None or answer.startswith("LP") else answer.split()[0] for answer in found]
    return stands | {"answers": [(str(lead), reason or "skipped") for lead, reason in zip(leads, reasons, strict=True)]}


def stepping(database: Database) -> bool:
    return "owner_column" in database.overrides


def passed_over(database: Database, conn: psycopg.Connection[Any], world: World, call: Call, lead: Any) -> bool:
    """Whether a manager of DE named an owner who is not that of the lead."""
    if call.of_owner is None or world.login != "manager_de":
        return False
    owned = (
        "SELECT 1 FROM {schema}.user_lead_assignments AS a JOIN {leads} AS l ON l.{lead_id} = a.lead_id "
        "WHERE a.lead_id = %s AND a.user_id = %s AND a.territory = 'DE' AND l.{territory} = 'DE'"
    )
    his = as_superuser(conn, database.text(owned), lead, database.user(call.of_owner))
    return not his or world.territory not in ("DE", "")


def as_superuser(conn: psycopg.Connection[Any], statement: str, *values: Any) -> list[Any]:
    """Between two statements of whoever is the session's user now."""
    (who,) = conn.execute("SELECT session_user").fetchone() or ("",)
    conn.execute("RESET SESSION AUTHORIZATION")
    cursor = conn.execute(statement, values)
    found = cursor.fetchall() if cursor.description else []
    conn.execute(f'SET LOCAL SESSION AUTHORIZATION "{who}"')
    return found


def ask(database: Database, conn: psycopg.Connection[Any], statement: str, values: list[Any]) -> Any:
    """The answer, or the error of a request that can't be right."""
    try:
        with conn.transaction():
            return database.query(conn, statement, *values)[0]
    except psycopg.DatabaseError as refused:
        return f"{refused.sqlstate} {refused.diag.message_primary}"
