"""Who changed a right, who shares a lead, and what allowed an edit: recorded, and told to whom it belongs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

import leadprotect

if TYPE_CHECKING:
    from tests.support.database import Database

RECORD = "action::text, outcome::text, reason, user_id::text, territory, note, basis"


def manages(database: Database, statement: str, *params: Any, user: int = 9) -> Any:
    with database.connect("manager_de", autocommit=False) as conn:
        database.context(conn, database.user(user), "DE")
        return database.query(conn, statement, *params)


def refused(database: Database, login: str, statement: str, *params: Any) -> psycopg.Error:
    with database.connect(login) as conn:
        database.context(conn, database.user(1), "DE")
        with pytest.raises(psycopg.Error) as caught:
            database.query(conn, statement, *params)
    return caught.value


def drawn(database: Database) -> int:
    number = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {schema}.lead_access_audit_id_seq"
    return int(database.sql(number)[0])


# --- rules


@pytest.mark.parametrize("kind", ["COLLABORATOR", "VIEW_ONLY", "SOLE_OWNER"])
def test_a_rule_leaves_a_row_when_it_is_made_and_when_it_ends(database: Database, kind: str) -> None:
    lead, user = database.lead("DE", owner=database.user(1)), database.user(3)
    for where in ((), (lead,)):
        marks = ", %s" * len(where)
        grant = f"SELECT {{schema}}.grant_protection(%s, 'DE', '{kind}'{marks})"
        revoke = f"SELECT {{schema}}.revoke_protection(%s, 'DE', '{kind}'{marks})"
        manages(database, grant, user, *where)
        assert manages(database, revoke, user, *where) == [1]
    role = f"role {database.settings.role('manager')}"
    made, ended = f"grant {kind} to {user}", f"revoke {kind} from {user}, 1 rules ended"
    by = ("manager", database.user(9), "DE")
    assert (
        database.audit(RECORD)
        == [
            ("ASSIGN", "ALLOW", *by, made, role),
            ("UNASSIGN", "ALLOW", *by, ended, role),
        ]
        * 2
    )
    leads = database.audit("lead_id")
    assert leads[2:] == [lead, lead]
    assert lead not in leads[:2]  # the whole territory


@pytest.mark.parametrize(
    "call",
    [
        "grant_protection(%s, 'CH', 'COLLABORATOR')",
        "revoke_protection(%s, 'CH', 'COLLABORATOR')",
    ],
)
def test_a_rule_that_is_refused_leaves_a_number_that_the_log_explains(database: Database, call: str) -> None:
    before = drawn(database)
    error = refused(database, "manager_de", f"SELECT {{schema}}.{call}", database.user(3))
    assert (error.sqlstate, error.diag.message_detail) == ("LP403", "not_manager")
    assert drawn(database) == before + 1
    assert database.audit() == []


# --- inner functions, called directly


INNER = {
    "allow_edit(%s)": 0,
    "change_owner(%s, 'claim', NULL, NULL)": 0,
    "change_sharing(%s, 'share', '{third}', NULL, NULL, NULL)": 0,
    "assert_edit_and_audit(%s)": 1,
    "claim_lead(%s)": 1,
    "share_lead(%s, '{third}')": 1,
}


@pytest.mark.parametrize(("call", "raises"), INNER.items())
def test_a_denial_of_an_inner_function_draws_its_number(database: Database, call: str, raises: int) -> None:
    lead = database.lead("DE", owner=database.user(2))
    statement = "SELECT {schema}." + call.replace("{third}", database.user(3))
    before = drawn(database)
    if raises:
        assert refused(database, "seller_de", statement, lead).sqlstate == "LP403"
    else:
        with database.connect("seller_de") as conn:
            database.context(conn, database.user(1), "DE")
            (answer,) = database.query(conn, statement, lead)
        assert answer.startswith("not_owner ")
    assert drawn(database) == before + 1


def test_control_what_is_allowed_has_its_row_and_no_ticket(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    before = drawn(database)
    with database.connect("seller_de") as conn:
        database.context(conn, database.user(1), "DE")
        assert database.query(conn, "SELECT {schema}.allow_edit(%s)", lead) == ["owner"]
    assert (drawn(database), len(database.audit())) == (before + 1, 1)


# --- what allowed it


def test_an_allow_names_the_assignment_or_the_rule_that_allowed_it(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.acting("seller_de", 1) as conn:
        leadprotect.assert_edit(conn, lead)
        leadprotect.share(conn, lead, database.user(2))
    with database.acting("seller_de", 2) as conn:
        leadprotect.assert_edit(conn, lead)
    manages(database, "SELECT {schema}.grant_protection(%s, 'DE', 'COLLABORATOR')", database.user(3))
    with database.acting("seller_de", 3) as conn:
        assert database.query(conn, "UPDATE {leads} SET city = 'Ulm' WHERE {lead_id} = %s RETURNING 1", lead) == [1]
    database.sql("UPDATE {leads} SET city = 'Bern' WHERE {lead_id} = %s", lead)
    found = [basis for action, basis in database.audit("action::text, basis") if action == "EDIT"]
    assert found[0] == "assignment"
    assert found[1].startswith("rule for the lead since 20")
    assert found[2].startswith("rule for the territory since 20")
    assert found[3] == "not bound by row security"


# --- who else may edit


def shares(database: Database, login: str, number: int, lead: Any) -> list[Any]:
    with database.connect(login) as conn:
        database.context(conn, database.user(number), "DE")
        return database.query(conn, "SELECT user_id::text, shared_by::text FROM {schema}.lead_shares(%s)", lead)


def test_an_owner_sees_with_whom_his_lead_is_shared_and_whose_doing_that_is(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.acting("seller_de", 1) as conn:
        leadprotect.share(conn, lead, database.user(2))
    manages(database, "SELECT {schema}.grant_protection(%s, 'DE', 'COLLABORATOR', %s)", database.user(3), lead)
    known = [(database.user(2), database.user(1)), (database.user(3), None)]
    assert shares(database, "seller_de", 1, lead) == known
    assert shares(database, "manager_de", 9, lead) == known
    assert shares(database, "seller_de", 2, lead) == known  # who may edit it, too
    assert shares(database, "seller_de", 4, lead) == []
    assert shares(database, "seller_ch", 1, lead) == []
    manages(database, "SELECT {schema}.transfer_lead(%s, %s)", lead, database.user(4))
    assert shares(database, "seller_de", 4, lead) == [(database.user(3), None)]
    assert shares(database, "seller_de", 1, lead) == []
