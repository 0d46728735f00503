"""All entry points agree with an independent oracle, and with each other, in random worlds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from leadprotect.decision import ALLOWED
from tests.support.profiles import NIGHTLY

if TYPE_CHECKING:
    import psycopg

    from tests.support.database import Database

MANY = 10_000 if NIGHTLY else 1_000
USERS, LEADS = (1, 2, 3), (0, 1, 2, 3)
LOGINS = {"seller_de": {"DE"}, "seller_both": {"DE", "CH"}}
OUTSIDE = {"none": None, "empty": ""}
WINDOWS = {
    "always": (None, None),
    "current": ("-1 day", "1 day"),
    "past": ("-2 days", "-1 day"),
    "future": ("1 day", "2 days"),
}


@dataclass(frozen=True)
class Rule:
    user: int
    territory: str
    protection: str
    lead: int | None
    active: bool
    window: str


@dataclass(frozen=True)
class World:
    """`leads` maps a lead to its territory, `owners` a lead and territory to a user (None: released)."""

    leads: dict[int, str | None]
    owners: dict[tuple[int, str], int | None]
    rules: frozenset[Rule]
    login: str
    user: int | None
    territory: str


def weighted(**choices: int) -> st.SearchStrategy[str]:
    """Sampled by weight: the interesting must be common, or many worlds prove little."""
    return st.sampled_from([choice for choice, weight in choices.items() for _ in range(weight)])


@st.composite
def worlds(draw: st.DrawFn) -> World:
    places = [draw(weighted(DE=10, CH=2, none=1, empty=1, absent=2)) for _ in LEADS]
    owners = {
        (lead, territory): draw(st.sampled_from([1, 2, 2, 2, 3, None, "absent"]))
        for lead in LEADS
        for territory in ("DE", "CH")
    }
    rules = [
        Rule(
            user=draw(st.sampled_from([1, 1, 2, 2, 3])),
            territory=draw(weighted(DE=8, CH=1)),
            protection=draw(weighted(COLLABORATOR=4, SOLE_OWNER=4, VIEW_ONLY=1)),
            lead=draw(st.sampled_from([None] * 6 + [*LEADS])),
            active=draw(st.sampled_from([True, True, True, True, False])),
            window=draw(weighted(always=3, current=1, past=1, future=1)),
        )
        for _ in range(draw(st.sampled_from([0, 3, 6, 9])))
    ]
    return World(
        leads={lead: OUTSIDE.get(place, place) for lead, place in enumerate(places) if place != "absent"},
        owners={key: user for key, user in owners.items() if user != "absent"},  # type: ignore[misc]
        rules=frozenset(rules),
        login=draw(st.sampled_from(list(LOGINS))),
        user=draw(st.sampled_from([1, 1, 1, 1, 1, 2, 3, None])),
        territory=draw(st.sampled_from(["DE"] * 8 + ["CH", "", "FR", "D\tE"])),
    )


def oracle(world: World, lead: int) -> str:
    """Section 5 of the design over plain dictionaries."""

    def holds(user: int | None, protection: str, *leads: int | None) -> bool:
        return any(
            rule.user == user
            and rule.territory == world.territory
            and rule.protection == protection
            and rule.lead in leads
            and rule.active
            and rule.window in ("always", "current")
            for rule in world.rules
        )

    if world.leads.get(lead, "absent") in (None, ""):
        return "unprotected"
    if world.user is None or world.territory in ("", "D\tE"):
        return "no_context"
    if world.leads.get(lead) != world.territory or world.territory not in LOGINS[world.login]:
        return "not_found"
    if holds(world.user, "VIEW_ONLY", None, lead):
        return "suspended"
    owner = world.owners.get((lead, world.territory))
    if owner == world.user:
        return "owner"
    if holds(world.user, "COLLABORATOR", lead):
        return "collaborator"
    if holds(world.user, "COLLABORATOR", None) and not holds(owner, "SOLE_OWNER", None, lead):
        return "collaborator"
    return "unassigned" if owner is None else "not_owner"


def shut_out(world: World, lead: int) -> bool:
    """Whether only the owner's SOLE_OWNER rule keeps the user from collaborating."""
    without = frozenset(rule for rule in world.rules if rule.protection != "SOLE_OWNER")
    return oracle(world, lead) == "not_owner" and oracle(replace(world, rules=without), lead) == "collaborator"


@pytest.mark.timeout(1200)  # 10,000 worlds at night; minutes on a busy machine
def test_every_entry_point_decides_as_the_oracle_does(database: Database) -> None:
    ids = {lead: database.new_id() for lead in LEADS}
    seen: Counter[str] = Counter()
    examples = MANY if database.profile.name == "pg18" else 300

    with database.connect() as conn:

        @given(worlds())
        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def agree(world: World) -> None:
            build(database, conn, world, ids)
            expected = {ids[lead]: oracle(world, lead) for lead in LEADS}
            seen.update(expected.values())
            seen.update("shut out by a sole owner" for lead in LEADS if shut_out(world, lead))
            found = answers(database, conn, list(ids.values()))
            conn.rollback()
            allowed = {lead: reason for lead, reason in expected.items() if reason in ALLOWED}
            listed = {lead: reason for lead, reason in allowed.items() if reason != "unprotected"}
            visible = {lead: r for lead, r in expected.items() if r not in ("no_context", "not_found", "unprotected")}
            if world.user is None and world.territory in LOGINS[world.login]:
                here = [lead for lead, code in world.leads.items() if code == world.territory]
                visible = {ids[lead]: "no_context" for lead in here}
            assert found == {
                "explain_edit": expected,
                "editable_among": allowed,
                "can_edit_lead": {lead: lead in allowed for lead in expected},
                "editable_leads": listed,
                "v_lead_protection": {lead: (reason, lead in allowed) for lead, reason in visible.items()},
                "protection_page": {lead: (reason, lead in allowed) for lead, reason in visible.items()},
                "record_edit_attempt": {lead: lead in allowed for lead in expected},
                "allow_edit": expected,
                "allow_edits": expected,
            }

        agree()
    if examples == MANY:
        rare = {case: count for case, count in seen.items() if count < MANY / 100}
        assert (rare, len(seen)) == ({}, 9), "the worlds are too alike to prove anything"


def build(database: Database, conn: psycopg.Connection[Any], world: World, ids: dict[int, Any]) -> None:
    """Insert the world in a transaction that is rolled back, and become the login."""
    s = database.settings
    lead_type, user_type = s.lead_id_type, s.user_id_type
    rules = list(world.rules)
    database.query(
        conn,
        f"INSERT INTO {{leads}} ({{lead_id}}, {{territory}}) SELECT * FROM unnest(%s::{lead_type}[], %s::text[])",
        [ids[lead] for lead in world.leads],
        list(world.leads.values()),
    )
    database.query(
        conn,
        "INSERT INTO {schema}.user_lead_assignments (lead_id, territory, user_id, source) "
        "SELECT l, t, u, CASE WHEN u IS NULL THEN 'release' ELSE 'assign' END "
        f"FROM unnest(%s::{lead_type}[], %s::text[], %s::{user_type}[]) AS a (l, t, u)",
        [ids[lead] for lead, _ in world.owners],
        [territory for _, territory in world.owners],
        [None if user is None else database.user(user) for user in world.owners.values()],
    )
    database.query(
        conn,
        "INSERT INTO {schema}.lead_protection_rules "
        "(user_id, territory, protection, lead_id, active, effective_from, effective_to) "
        "SELECT u, t, p, l, a, statement_timestamp() + coalesce(f, '-1 hour'), statement_timestamp() + e "
        f"FROM unnest(%s::{user_type}[], %s::text[], %s::{{schema}}.protection_type[], %s::{lead_type}[], "
        "%s::boolean[], %s::interval[], %s::interval[]) AS r (u, t, p, l, a, f, e)",
        [database.user(rule.user) for rule in rules],
        [rule.territory for rule in rules],
        [rule.protection for rule in rules],
        [None if rule.lead is None else ids[rule.lead] for rule in rules],
        [rule.active for rule in rules],
        [WINDOWS[rule.window][0] for rule in rules],
        [WINDOWS[rule.window][1] for rule in rules],
    )
    conn.execute(f'SET LOCAL SESSION AUTHORIZATION "{database.profile.login(world.login)}"')
    user = database.user(world.user) if world.user else ("" if user_type == "text" else "nobody")
    database.context(conn, user, world.territory)


def answers(database: Database, conn: psycopg.Connection[Any], leads: list[Any]) -> dict[str, Any]:
    asked = f"FROM unnest(%s::{database.settings.lead_id_type}[]) AS asked (lead)"
    each = "SELECT lead, {schema}.explain_edit(lead), {schema}.can_edit_lead(lead), "
    each += "{schema}.record_edit_attempt(lead), {schema}.allow_edit(lead) " + asked
    rows = database.query(conn, each, leads)
    together = "SELECT {schema}.allow_edits(%s::" + database.settings.lead_id_type + "[])"
    (at_once,) = database.query(conn, together, leads)
    among = "SELECT lead, reason FROM {schema}.editable_among(%s::" + database.settings.lead_id_type + "[])"
    view = database.query(conn, "SELECT lead, reason, can_edit FROM {schema}.v_lead_protection")
    page = database.query(conn, "SELECT lead, reason, can_edit FROM {schema}.protection_page(NULL, 100)")
    return {
        "explain_edit": {row[0]: row[1] for row in rows},
        "can_edit_lead": {row[0]: row[2] for row in rows},
        "record_edit_attempt": {row[0]: row[3] for row in rows},
        # a denial comes with the ticket for its row
        "allow_edit": {row[0]: row[4].split()[0] for row in rows},
        "allow_edits": {lead: answer.split()[0] for lead, answer in zip(leads, at_once, strict=True)},
        "editable_among": dict(database.query(conn, among, leads)),
        "editable_leads": dict(database.query(conn, "SELECT lead, reason FROM {schema}.editable_leads(NULL, 100)")),
        "v_lead_protection": {lead: (reason, can_edit) for lead, reason, can_edit in view},
        "protection_page": {lead: (reason, can_edit) for lead, reason, can_edit in page},
    }
