"""Every call of the library on a lead is recorded, or is a question that is not."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

import leadprotect
from leadprotect.audit import history, partitions, seals
from leadprotect.cli import main
from tests.support.auditing import record
from tests.support.commands import members
from tests.support.database import Database

SELLER, OTHER = 1, 2
ASKED: list[tuple[str, str]] = []
Call = Callable[[psycopg.Connection[Any], Any, str], object]

CALLS: dict[str, tuple[str, Call, list[tuple[str, str]], list[tuple[str, str]]]] = {
    "can_edit": ("seller_de", lambda c, lead, _: leadprotect.can_edit(c, lead), ASKED, ASKED),
    "can_edit_many": ("seller_de", lambda c, lead, _: leadprotect.can_edit_many(c, [lead]), ASKED, ASKED),
    "editable_leads": ("seller_de", lambda c, _lead, _: leadprotect.editable_leads(c), ASKED, ASKED),
    "explain": ("seller_de", lambda c, lead, _: leadprotect.explain(c, lead), ASKED, ASKED),
    "assert_edit": (
        "seller_de",
        lambda c, lead, _: leadprotect.assert_edit(c, lead),
        [("EDIT", "ALLOW")],
        [("EDIT", "DENY")],
    ),
    "claim": ("seller_de", lambda c, lead, _: leadprotect.claim(c, lead), [("ASSIGN", "ALLOW")], [("ASSIGN", "DENY")]),
    "release": (
        "seller_de",
        lambda c, lead, _: leadprotect.release(c, lead),
        [("UNASSIGN", "ALLOW")],
        [("UNASSIGN", "DENY")],
    ),
    "share": ("seller_de", leadprotect.share, [("ASSIGN", "ALLOW")], [("ASSIGN", "DENY")]),
    "unshare": ("seller_de", leadprotect.unshare, [("UNASSIGN", "ALLOW")], [("UNASSIGN", "DENY")]),
    "assign": ("manager_de", leadprotect.assign, [("ASSIGN", "ALLOW")], [("ASSIGN", "DENY")]),
    "transfer": ("manager_de", leadprotect.transfer, [("ASSIGN", "ALLOW")], [("ASSIGN", "DENY")]),
    "assert_edit_many": (
        "seller_de",
        lambda c, lead, _: leadprotect.assert_edit_many(c, [lead]),
        [("EDIT", "ALLOW")],
        [("EDIT", "DENY")],
    ),
    "assign_many": (
        "manager_de",
        lambda c, lead, user: leadprotect.assign_many(c, [lead], user),
        [("ASSIGN", "ALLOW")],
        [("ASSIGN", "DENY")],
    ),
    "grant": (
        "manager_de",
        lambda c, lead, user: leadprotect.grant(c, user, "COLLABORATOR", lead_id=lead),
        [("ASSIGN", "ALLOW")],
        [("ASSIGN", "DENY")],
    ),
    "revoke": (
        "manager_de",
        lambda c, lead, user: leadprotect.revoke(c, user, "COLLABORATOR", lead_id=lead),
        [("UNASSIGN", "ALLOW")],
        [("UNASSIGN", "DENY")],
    ),
    "suspend": (
        "manager_de",
        lambda c, lead, user: leadprotect.suspend(c, user, lead_id=lead),
        [("ASSIGN", "ALLOW")],
        [("ASSIGN", "DENY")],
    ),
}
"""Function -> who calls it, how, and what is recorded when it is allowed, and when it is denied."""

NOT_ON_A_LEAD = {
    *("acting_as", "backfill", "bind", "check_startup", "configure", "rules", "territory", "version_path"),
    *("dispose_routes", "route"),
    *("include_name", "include_object"),
    # asserts on a connection of its own transaction: test_editing.py; what somebody owns: test_bulk.py
    *("editing", "transfer_all"),
}


def test_the_table_knows_every_function_of_the_library() -> None:
    functions = {name for name in leadprotect.__all__ if inspect.isfunction(getattr(leadprotect, name))}
    assert functions == CALLS.keys() | NOT_ON_A_LEAD


@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_recorded_when_it_is_allowed_and_when_it_is_denied(database: Database, name: str) -> None:
    login, call, allowed, denied = CALLS[name]
    mine, swiss = database.lead("DE", owner=database.user(SELLER)), database.lead("CH", owner=database.user(OTHER))
    query = "SELECT action::text, outcome::text FROM {schema}.lead_access_audit WHERE lead_id = %s"
    for lead, expected in ((mine, allowed), (swiss, denied)):
        with database.connect(login) as conn:
            with leadprotect.acting_as(conn, database.user(SELLER), "DE"):
                try:
                    call(conn, lead, database.user(3))
                except leadprotect.LeadAccessDenied:
                    assert expected is denied
                    conn.rollback()
            conn.commit()
        assert expected == database.sql(query, lead)


def test_control_a_rolled_back_permission_leaves_no_row(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(SELLER))
    with database.connect("seller_de") as conn:
        with leadprotect.acting_as(conn, database.user(SELLER), "DE"):
            leadprotect.assert_edit(conn, lead)
        conn.rollback()
    assert [] == database.audit()


def test_the_care_of_the_audit_is_in_its_chains_with_the_login(database: Database) -> None:
    record(database, at="2025-01-10")
    with database.connect("operator", autocommit=True) as conn:
        partitions.create_partitions(conn)
        seals.seal(conn)
        assert 1 == len(list(partitions.detach(conn, database.sql("SELECT date '2025-02-01'")[0])))
    login = database.profile.login("operator")
    assert [(False, login), (True, login)] == database.sql(
        "SELECT detached_table IS NOT NULL, sealed_by FROM {schema}.lead_access_audit_seals "
        "WHERE territory = 'DE' ORDER BY number"
    )


def test_reading_the_audit_leaves_nothing(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(SELLER))
    with database.connect("auditor_de") as conn:
        history.who_could_edit(conn, lead, database.sql("SELECT now()")[0])
        history.attempts(conn)
    assert [] == database.audit()


def test_no_command_edits_a_lead_or_its_owner_by_hand() -> None:
    """Such a command would have to leave a row: it belongs into the table above."""
    assert not {"assign", "claim", "release", "transfer", "share", "unshare", "edit"} & members(main).keys()
