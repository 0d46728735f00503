"""All entry points agree with an independent oracle, and with each other, in random worlds."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings

from leadprotect.decision import ALLOWED
from tests.support.profiles import NIGHTLY
from tests.support.worlds import LEADS, LOGINS, Rule, World, build, weighted, worlds

if TYPE_CHECKING:
    import psycopg

    from tests.support.database import Database

MANY = 10_000 if NIGHTLY else 1_000


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


SHUTTING_OUT = {
    Rule(user, "DE", protection, lead=None, active=True, window="always")
    for user, protection in ((2, "SOLE_OWNER"), (1, "COLLABORATOR"))
}
"""What has to meet for a sole owner to shut a collaborator out: by chance it is rare."""


@pytest.mark.timeout(1200)  # 10,000 worlds at night; minutes on a busy machine
def test_every_entry_point_decides_as_the_oracle_does(database: Database) -> None:
    ids = {lead: database.new_id() for lead in LEADS}
    seen: Counter[str] = Counter()
    examples = MANY if database.profile.name == "pg18" else MANY // 10

    with database.connect() as conn:

        @given(worlds(), weighted(no=4, yes=1))
        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        def agree(world: World, alone: str) -> None:
            if alone == "yes":
                world = replace(world, rules=world.rules | SHUTTING_OUT)
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
