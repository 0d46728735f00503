"""What an edit means: of a lead outside protection, of one that is denied, and of one that was just inserted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from click.testing import CliRunner

import leadprotect
from leadprotect.cli import main
from leadprotect.errors import LeadAccessDenied
from tests.support.revisions import MIGRATE_HEAD

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

EDIT = "UPDATE {leads} SET city = 'Bern' WHERE {lead_id} = %s RETURNING true"
ONE_SERVER = pytest.mark.profiles("pg18")


def contracted(make_database: Callable[..., Database], **overrides: str) -> Database:
    database = make_database("expanded", **overrides)
    database.upgrade()
    return database


def denied(database: Database, conn: psycopg.Connection[Any], statement: str, *params: Any) -> str | None:
    """The detail of the LP403 that the statement raises."""
    with pytest.raises(psycopg.Error) as raised:
        database.query(conn, statement, *params)
    assert raised.value.sqlstate == "LP403"
    return raised.value.diag.message_detail


# --- outside protection


@pytest.mark.parametrize("outside", [None, ""])
def test_a_lead_without_territory_gets_one_answer_from_everything(database: Database, outside: str | None) -> None:
    lead, own = database.lead(outside), database.lead("DE", owner=database.user(1))
    with database.acting("seller_de", 1) as conn:
        assert leadprotect.can_edit(conn, lead) is True
        assert leadprotect.can_edit_many(conn, [lead, own]) == {lead: True, own: True}
        assert leadprotect.explain(conn, lead).reason == "unprotected"
        assert leadprotect.assert_edit(conn, lead).reason == "unprotected"
        assert database.query(conn, "SELECT {schema}.record_edit_attempt(%s)", lead) == [True]
        assert database.query(conn, EDIT, lead) == [[True]][0]
    recorded = [("EDIT", "ALLOW", "unprotected", None)] * 2  # the edit was asserted: it needs no third row
    assert database.audit("action::text, outcome::text, reason, territory") == recorded


@pytest.mark.parametrize("context", [(None, None), ("nobody", "DE"), (1, None), (1, "no such place"), (2, "CH")])
def test_it_is_unprotected_with_and_without_a_context(database: Database, context: tuple[Any, str | None]) -> None:
    who, where = context
    lead = database.lead(None)
    with database.connect("seller_de") as conn:
        database.context(conn, database.user(who) if isinstance(who, int) else who, where)
        assert database.query(conn, "SELECT {schema}.explain_edit(%s)", lead) == ["unprotected"]
        asked = "SELECT reason FROM {schema}.editable_among(ARRAY[%s]::{lead_id_type}[])"
        assert database.query(conn, asked, lead) == ["unprotected"]
        assert database.query(conn, EDIT, lead) == [True]


def test_nobody_claims_a_lead_without_territory(database: Database) -> None:
    lead = database.lead(None)
    with database.acting("seller_de", 1) as conn:
        assert denied(database, conn, "SELECT {schema}.claim_lead(%s)", lead) == "not_found"
    with database.acting("seller_de", 1) as conn, pytest.raises(LeadAccessDenied, match="not_found"):
        leadprotect.claim(conn, lead)
    assert database.owner(lead) is None
    assert database.audit() == [("ASSIGN", "DENY", "no_territory")]


# --- a denied edit


@ONE_SERVER
@pytest.mark.parametrize("statement", [EDIT, "DELETE FROM {leads} WHERE {lead_id} = %s"])
def test_a_denied_edit_is_hidden_or_raised_as_the_setting_says(
    make_database: Callable[..., Database], statement: str
) -> None:
    hiding, raising = make_database("head"), contracted(make_database, denied_edit="raise")
    for database in (hiding, raising):
        lead = database.lead("DE", owner=database.user(1))
        with database.acting("seller_de", 2) as conn:
            if database is hiding:
                assert database.query(conn, statement, lead) == []
            else:
                assert denied(database, conn, statement, lead) == "not_owner"
        with database.acting("seller_de", 1) as conn:
            database.query(conn, statement, lead)
            assert conn.execute("SELECT pg_current_xact_id_if_assigned() IS NOT NULL").fetchone() == (True,)


@ONE_SERVER
def test_a_raised_denial_ends_the_statement_whole_and_leaves_a_gap(make_database: Callable[..., Database]) -> None:
    database = contracted(make_database, denied_edit="raise")
    mine, other = database.lead("DE", owner=database.user(1)), database.lead("DE", owner=database.user(2))
    drawn = "SELECT last_value FROM {schema}.lead_access_audit_id_seq"
    before = database.sql(drawn)[0]
    with database.acting("seller_de", 1) as conn:
        database.query(conn, "SAVEPOINT here")
        assert denied(database, conn, "UPDATE {leads} SET city = 'Bern'") == "not_owner"
        database.query(conn, "ROLLBACK TO here")
    assert database.sql("SELECT {lead_id} FROM {leads} WHERE city = 'Bern'") == []
    assert database.audit() == []
    assert database.sql(drawn)[0] > before
    with database.acting("seller_de", 1) as conn:
        assert database.query(conn, EDIT, mine) == [True]
    assert other not in database.sql("SELECT {lead_id} FROM {leads} WHERE city = 'Bern'")


@ONE_SERVER
def test_raising_asks_only_about_the_rows_that_the_statement_means(make_database: Callable[..., Database]) -> None:
    """A filter that is not leakproof is asked after row security: a policy that raised would meet every lead."""
    database = contracted(make_database, denied_edit="raise")
    mine, other = database.lead("DE", owner=database.user(1)), database.lead("DE", owner=database.user(2))
    database.sql("UPDATE {leads} SET company = 'Meine GmbH' WHERE {lead_id} = %s", mine)
    with database.acting("seller_de", 1) as conn:
        found = database.query(
            conn, "UPDATE {leads} SET city = 'Bern' WHERE company LIKE 'Meine%%' RETURNING {lead_id}"
        )
    assert found == [mine] != [other]


@ONE_SERVER
def test_raising_keeps_the_border_and_lets_maintenance_work(make_database: Callable[..., Database]) -> None:
    database = contracted(make_database, denied_edit="raise")
    swiss = database.lead("CH", owner=database.user(1))
    with database.acting("seller_de", 1) as conn:
        assert database.query(conn, EDIT, swiss) == []
    assert database.sql(EDIT, swiss) == [True]


# --- a new lead


INSERT = "INSERT INTO {leads} ({lead_id}, {territory}) VALUES (%s, %s)"


@ONE_SERVER
def test_who_inserts_a_lead_owns_it_at_once_where_the_setting_says_so(make_database: Callable[..., Database]) -> None:
    creating, leaving = contracted(make_database, owner_on_insert="creator"), make_database("head")
    for database, owner in ((creating, creating.user(1)), (leaving, None)):
        lead = database.new_id()
        with database.acting("seller_de", 1) as conn:
            database.query(conn, INSERT, lead, "DE")
            assert database.query(conn, EDIT, lead) == ([True] if owner else [])
        assert database.owner(lead) == owner
    assert creating.audit("action::text, reason, note") == [
        ("ASSIGN", "owner", f"creator to {creating.user(1)}"),
        ("EDIT", "owner", "update without assertion"),
    ]
    with creating.acting("seller_de", 2) as conn:
        assert creating.query(conn, EDIT, lead) == []


@ONE_SERVER
@pytest.mark.parametrize("why", ["no context", "another territory", "no territory", "suspended"])
def test_a_new_lead_is_nobodys_where_its_creator_could_not_claim_it(
    make_database: Callable[..., Database], why: str
) -> None:
    database = contracted(make_database, owner_on_insert="creator")
    lead, territory = database.new_id(), {"another territory": "CH", "no territory": None}.get(why, "DE")
    if why == "suspended":
        database.rule(database.user(1), "VIEW_ONLY")
    with database.connect() as conn:  # a superuser meets no border
        if why != "no context":
            database.context(conn, database.user(1), "DE")
        database.query(conn, INSERT, lead, territory)
    assert database.sql("SELECT lead_id FROM {schema}.user_lead_assignments") == []
    assert database.audit() == []


@ONE_SERVER
def test_both_settings_are_sound_and_leave_nothing_behind(make_database: Callable[..., Database]) -> None:
    database = contracted(make_database, denied_edit="raise", owner_on_insert="creator")
    standing = "SELECT count(*) FROM pg_trigger WHERE tgname = 'leadprotect_own_new'"
    assert database.sql(standing) == [1]
    database.upgrade("head", contract="require")
    diagnosed = CliRunner().invoke(main, ["doctor"])
    assert diagnosed.exit_code == 0, diagnosed.output
    database.downgrade(MIGRATE_HEAD)
    assert database.sql(standing) == [0]
