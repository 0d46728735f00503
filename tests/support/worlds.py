"""Random worlds: leads, their owners, rules, and who asks about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

if TYPE_CHECKING:
    import psycopg

    from tests.support.database import Database

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
