"""After contract the database itself refuses what the decision denies, and records every edit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import psycopg
import pytest

import leadprotect
from tests.support.database import Database
from tests.support.profiles import Profile

pytestmark = pytest.mark.everywhere("a defence that one version lacks is an open door there")

EDIT = "UPDATE {leads} SET city = 'Köln' WHERE {lead_id} = %s"


def edit(database: Database, lead: object, user: int, territory: str | None = "DE", login: str = "seller_de") -> bool:
    """Whether the edit took place, by a service that never asserts."""
    with database.connect(login) as conn:
        if territory is not None:
            database.context(conn, database.user(user), territory)
        database.query(conn, EDIT, lead)
    return database.sql("SELECT city FROM {leads} WHERE {lead_id} = %s", lead) == ["Köln"]


def test_the_owner_edits_and_nobody_else(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    assert edit(database, lead, 2) is False
    assert edit(database, lead, 1) is True


def test_without_a_context_no_row_is_seen_or_edited(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    assert edit(database, lead, 1, territory=None) is False
    with database.connect("seller_de") as conn:
        assert database.query(conn, "SELECT count(*) FROM {leads}") == [0]


def test_two_logins_see_two_results_of_the_same_select(database: Database) -> None:
    leads = {code: [database.lead(code) for _ in range(count)] for code, count in (("DE", 2), ("CH", 3))}
    seen = []
    for login, code in (("seller_de", "DE"), ("seller_ch", "CH")):
        with database.connect(login) as conn:
            database.context(conn, database.user(1), code)
            seen.append(database.query(conn, "SELECT {lead_id} FROM {leads} ORDER BY 1"))
    assert seen == [leads["DE"], leads["CH"]]


@pytest.mark.parametrize("outside", [None, ""])
def test_a_lead_without_territory_is_everybodys_and_its_edit_is_recorded(
    database: Database, outside: str | None
) -> None:
    assert edit(database, database.lead(outside), 1, territory=None) is True
    assert database.audit() == [("EDIT", "ALLOW", "unprotected")]


def test_an_edit_that_was_never_asserted_leaves_its_row(database: Database) -> None:
    assert edit(database, database.lead("DE", owner=database.user(1)), 1) is True
    assert database.audit("reason, note") == [("owner", "update without assertion")]


def test_an_asserted_edit_leaves_one_row(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        leadprotect.assert_edit(conn, lead, note="by the form")
        database.query(conn, EDIT, lead)
    assert database.audit("reason, note") == [("owner", "by the form")]


def test_an_assertion_in_a_savepoint_that_was_rolled_back_does_not_hide_the_edit(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn, leadprotect.acting_as(conn, database.user(1), "DE"):
        with conn.transaction(force_rollback=True):
            leadprotect.assert_edit(conn, lead)
        database.query(conn, EDIT, lead)
    assert database.audit("reason, note") == [("owner", "update without assertion")]


def test_an_edit_that_is_rolled_back_leaves_no_row(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn:
        database.context(conn, database.user(1), "DE")
        database.query(conn, EDIT, lead)
        conn.rollback()
    assert database.audit() == []


def test_deleting_one_s_lead_is_recorded_too(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn:
        database.context(conn, database.user(1), "DE")
        database.query(conn, "DELETE FROM {leads} WHERE {lead_id} = %s", lead)
    assert database.sql("SELECT count(*) FROM {leads}") == [0]
    assert database.audit("note") == ["delete without assertion"]


def test_a_seller_inserts_leads_of_his_territory_only(database: Database) -> None:
    insert = "INSERT INTO {leads} ({lead_id}, {territory}) VALUES (%s, %s)"
    with database.connect("seller_de", autocommit=True) as conn:
        with conn.transaction():
            database.context(conn, database.user(1), "DE")
            database.query(conn, insert, database.new_id(), "DE")
        with conn.transaction(force_rollback=True):
            database.context(conn, database.user(1), "DE")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                database.query(conn, insert, database.new_id(), "CH")


def test_assert_then_transfer_then_edit_can_t_slip_through(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn:
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            leadprotect.assert_edit(conn, lead)
        conn.commit()
    with database.acting("manager_de", 9) as conn:
        leadprotect.transfer(conn, lead, database.user(2))
    assert edit(database, lead, 1) is False


def test_the_owner_of_the_table_keeps_maintenance_and_is_recorded(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    database.sql(EDIT, lead)
    assert database.audit("login, reason") == [("postgres", "maintenance")]


@pytest.mark.parametrize(
    ("login", "seen"),
    [("auditor_de", {"DE": 2}), ("auditor_both", {"DE": 2, "CH": 1}), ("auditor", {})],
)
def test_an_auditor_sees_the_owners_of_his_territories(database: Database, login: str, seen: dict[str, int]) -> None:
    for code in ("DE", "DE", "CH", None):
        database.lead(code)
    view = "SELECT territory FROM {schema}.v_lead_protection"
    with database.connect(login) as conn:
        assert database.query(conn, view) == []
        for code in ("DE", "CH"):
            database.context(conn, None, code)
            assert database.query(conn, view) == [code] * seen.get(code, 0)
    database.sql("GRANT USAGE ON SCHEMA crm TO {auditor}")
    with database.connect(login) as conn:
        assert database.query(conn, "SELECT {territory} FROM {leads}") == [None]  # outside protection, as before
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            database.query(conn, "SELECT city FROM {leads}")


def test_the_floor_holds_auditors_too_whatever_policy_the_host_has(database: Database) -> None:
    for code in ("DE", "CH"):
        database.lead(code)
    database.sql("GRANT USAGE ON SCHEMA crm TO {auditor}")
    database.sql("CREATE POLICY everybody ON {leads} USING (true)")
    with database.connect("auditor_de") as conn:
        for code, seen in (("CH", []), ("DE", ["DE"])):
            database.context(conn, None, code)
            assert database.query(conn, "SELECT {territory} FROM {leads}") == seen


def test_control_an_auditor_whom_row_security_does_not_bind_sees_every_territory(database: Database) -> None:
    for code in ("DE", "CH"):
        database.lead(code)
    database.sql("GRANT USAGE ON SCHEMA crm TO {auditor}")
    database.sql("ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY")
    with database.connect("auditor_de") as conn:
        assert database.query(conn, "SELECT {territory} FROM {leads}") == ["DE", "CH"]


def test_an_exempt_login_keeps_its_privileges(make_database: Callable[..., Database], profile: Profile) -> None:
    login = profile.login("outsider")
    database = make_database("expanded", exempt_roles=login)
    database.sql_script(f'GRANT USAGE ON SCHEMA crm TO "{login}"; GRANT SELECT ON {{leads}} TO "{login}"')
    database.lead("DE")
    database.upgrade()
    with database.connect("outsider") as conn:
        assert database.query(conn, "SELECT count(*) FROM {leads}") == [1]
    with database.connect("seller_de") as conn:
        assert database.query(conn, "SELECT count(*) FROM {leads}") == [0]


@pytest.mark.parametrize(
    ("host_rls", "flags"), [("enforce", (True, False)), ("force", (True, True)), ("off", (False, False))]
)
def test_host_rls_says_how_far_contract_goes(
    make_database: Callable[..., Database], host_rls: str, flags: tuple[bool, bool]
) -> None:
    database = make_database("expanded", host_rls=host_rls)
    database.upgrade()
    query = "SELECT relrowsecurity, relforcerowsecurity FROM pg_class WHERE oid = {leads_name}::regclass"
    assert database.sql(query) == [flags]
    database.downgrade("base")
    assert database.sql(query) == [(False, False)]


def edited_after_a_wait(database: Database, lead: object, statement: str = EDIT) -> str | None:
    """Who holds the row lets go after the lead was given to another: what the waiting statement of user 1 meets."""
    met: list[str | None] = []

    def wait_and_edit() -> None:
        with database.connect("seller_de") as conn:
            database.context(conn, database.user(1), "DE")
            try:
                database.query(conn, statement, lead)
            except psycopg.Error as error:
                met.append(error.sqlstate)
            else:
                met.append(None)

    with database.connect() as holder:
        database.query(holder, "SELECT FROM {leads} WHERE {lead_id} = %s FOR UPDATE", lead)
        waiting = threading.Thread(target=wait_and_edit)
        waiting.start()
        while not database.sql("SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%eads%%'"):
            time.sleep(0.01)
        with database.connect("manager_de") as conn, leadprotect.acting_as(conn, database.user(9), "DE"):
            leadprotect.transfer(conn, lead, database.user(2))
    waiting.join()
    return met[0]


@pytest.mark.parametrize("statement", [EDIT, "DELETE FROM {leads} WHERE {lead_id} = %s"])
def test_an_edit_that_waited_for_a_transfer_is_decided_after_it(database: Database, statement: str) -> None:
    lead = database.lead("DE", owner=database.user(1))
    assert edited_after_a_wait(database, lead, statement) == "LP403"
    assert database.sql("SELECT city FROM {leads} WHERE {lead_id} = %s", lead) == [None]


def test_control_without_the_trigger_the_statement_s_snapshot_decides(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    database.sql_script("DROP TRIGGER {audit_edit} ON {leads}; DROP TRIGGER {audit_edits} ON {leads}")
    assert edited_after_a_wait(database, lead) is None
    assert database.sql("SELECT city FROM {leads} WHERE {lead_id} = %s", lead) == ["Köln"]


def test_an_old_snapshot_does_not_edit_what_was_transferred_since(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        database.context(conn, database.user(1), "DE")
        with database.connect("manager_de") as other, leadprotect.acting_as(other, database.user(9), "DE"):
            leadprotect.transfer(other, lead, database.user(2))
            other.commit()
        with pytest.raises(psycopg.errors.SerializationFailure):
            database.query(conn, EDIT, lead)


def test_an_assertion_of_one_user_is_no_record_of_another_one_s_edit(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    database.rule(database.user(2), "COLLABORATOR", lead)
    with database.connect("seller_de") as conn:
        with leadprotect.acting_as(conn, database.user(1), "DE"):
            leadprotect.assert_edit(conn, lead)
        with leadprotect.acting_as(conn, database.user(2), "DE"):
            database.query(conn, EDIT, lead)
    assert database.audit("user_id::text, reason, note") == [
        (database.user(1), "owner", None),
        (database.user(2), "collaborator", "update without assertion"),
    ]


def test_truncate_by_maintenance_leaves_a_row_for_each_lead_and_no_owner_for_its_id(database: Database) -> None:
    leads = [database.lead("DE", owner=database.user(1)), database.lead("CH"), database.lead(None)]
    database.sql("TRUNCATE {leads} CASCADE")
    assert database.audit("lead_id, territory, reason, note") == [
        (leads[0], "DE", "maintenance", "truncate without assertion"),
        (leads[1], "CH", "maintenance", "truncate without assertion"),
    ]
    database.sql("INSERT INTO {leads} ({lead_id}, {territory}) VALUES (%s, 'DE')", leads[0])
    assert database.owner(leads[0]) is None


def test_no_replication_role_edits_without_a_row(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect() as conn:
        conn.execute("SET session_replication_role = replica")
        database.query(conn, EDIT, lead)
    assert database.audit("reason, note") == [("maintenance", "update without assertion")]
