"""Ways to a lead that are no statement of a bound login on it, and ownership that outlives its reason.

Each is refused, decided like an edit, or named by the gate; each control shows that the way leads there
once the defence is gone.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from alembic.util import CommandError
from psycopg import IsolationLevel

import leadprotect
from leadprotect.backfilling.verify import verify_owners
from leadprotect.migration import gate
from tests.migrations.test_preflight import refused
from tests.support.database import Database
from tests.support.leads import old_leads
from tests.support.profiles import Profile
from tests.support.revisions import HEAD

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.everywhere("a defence that one version lacks is an open door there")

EDIT = "UPDATE {leads} SET city = 'Bern' WHERE {lead_id} = %s"
DELETE = "DELETE FROM {leads} WHERE {lead_id} = %s"
SOON = (1, 5, 25, 125)
"""Seconds until the time of a planned activity; longer where the machine is busy."""


def tried(database: Database, statement: str, *params: Any, user: int = 1, login: str = "seller_de") -> bool:
    """Run it as a seller in DE; whether the server refused it."""
    try:
        with database.connect(login) as conn:
            database.context(conn, database.user(user), "CH" if login == "seller_ch" else "DE")
            database.query(conn, statement, *params)
    except psycopg.Error:
        return False
    return True


def edits(database: Database, lead: Any, user: int, login: str = "seller_de") -> bool:
    """Whether an edit of the user reaches the lead."""
    database.sql("UPDATE {leads} SET city = 'before' WHERE {lead_id} = %s", lead)
    tried(database, EDIT, lead, user=user, login=login)
    return database.sql("SELECT city FROM {leads} WHERE {lead_id} = %s", lead) == ["Bern"]


def territory(database: Database, lead: Any) -> Any:
    found = database.sql("SELECT {territory} FROM {leads} WHERE {lead_id} = %s", lead)
    return found[0] if found else "gone"


def without_triggers(database: Database, table: str = "{leads_name}") -> None:
    """The defence is gone: no trigger of ours on the leads, or on another table of the host."""
    query = f"""
        SELECT format('DROP TRIGGER %I ON %s', t.tgname, t.tgrelid::regclass)
        FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
        WHERE t.tgrelid = {table}::regclass AND p.pronamespace = {{schema_name}}::regnamespace
        """
    for statement in database.sql(query):
        database.sql(statement)


def conditions(database: Database) -> dict[str, gate.Condition]:
    with database.connect() as conn:
        return {found.name: found for found in gate.conditions(conn, settings=database.settings)}


def closed(database: Database) -> list[str]:
    return [name for name, found in conditions(database).items() if not found.met]


def said(database: Database) -> str:
    """Everything that the gate says, met or not."""
    return " ".join(f"{found.detail} {found.remedy}" for found in conditions(database).values())


# --- referential actions


ACTIONS = {
    "delete": ("account int REFERENCES crm.accounts ON DELETE CASCADE", "DELETE FROM crm.accounts WHERE id = 1"),
    "set null": ("account int REFERENCES crm.accounts ON DELETE SET NULL", "DELETE FROM crm.accounts WHERE id = 1"),
    "update": ("account int REFERENCES crm.accounts ON UPDATE CASCADE", "UPDATE crm.accounts SET id = 7 WHERE id = 1"),
}


def hang_on_account(database: Database, column: str, *leads: Any) -> None:
    """Leads of the host hang on an account, which sellers may change and delete."""
    database.sql_script(f"""
        CREATE TABLE crm.accounts (id int PRIMARY KEY);
        INSERT INTO crm.accounts VALUES (1), (2);
        ALTER TABLE {{leads}} ADD COLUMN {column};
        """)
    database.sql(f'GRANT SELECT, UPDATE, DELETE ON crm.accounts TO "{database.profile.login("seller_de")}"')
    with database.connect(autocommit=True) as conn:
        conn.execute("SET session_replication_role = replica")
        for lead in leads:
            database.query(conn, "UPDATE {leads} SET account = 1 WHERE {lead_id} = %s", lead)


def account(database: Database, lead: Any) -> Any:
    found = database.sql("SELECT account FROM {leads} WHERE {lead_id} = %s", lead)
    return found[0] if found else "gone"


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("where", ["DE", "CH"])
def test_a_referential_action_reaches_no_lead_of_somebody_else(database: Database, action: str, where: str) -> None:
    lead = database.lead(where, owner=database.user(2))
    column, statement = ACTIONS[action]
    hang_on_account(database, column, lead)
    tried(database, statement)
    assert account(database, lead) == 1


@pytest.mark.parametrize("action", ACTIONS)
def test_control_without_our_triggers_a_referential_action_reaches_it(database: Database, action: str) -> None:
    lead = database.lead("CH", owner=database.user(2))
    column, statement = ACTIONS[action]
    hang_on_account(database, column, lead)
    without_triggers(database)
    assert tried(database, statement)
    assert account(database, lead) != 1


@pytest.mark.parametrize("action", ACTIONS)
def test_a_referential_action_on_one_s_own_lead_is_an_edit_of_one_s_own(database: Database, action: str) -> None:
    lead = database.lead("DE", owner=database.user(1))
    column, statement = ACTIONS[action]
    hang_on_account(database, column, lead)
    recorded = len(database.audit())
    assert tried(database, statement)
    assert account(database, lead) != 1
    assert database.audit("outcome::text, reason")[recorded:] == [("ALLOW", "owner")]


def test_a_referential_action_of_maintenance_is_recorded_as_maintenance(database: Database) -> None:
    lead = database.lead("CH", owner=database.user(2))
    column, statement = ACTIONS["delete"]
    hang_on_account(database, column, lead)
    recorded = len(database.audit())
    database.sql(statement)
    assert territory(database, lead) == "gone"
    assert database.audit("outcome::text, reason")[recorded:] == [("ALLOW", "maintenance")]


def test_a_referential_action_on_the_territory_moves_no_lead(database: Database) -> None:
    lead = database.lead("CH", owner=database.user(2))
    database.sql_script("""
        CREATE TABLE crm.markets (code varchar(20) PRIMARY KEY);
        INSERT INTO crm.markets VALUES ('CH');
        ALTER TABLE {leads} ADD FOREIGN KEY ({territory}) REFERENCES crm.markets ON UPDATE CASCADE;
        """)
    database.sql(f'GRANT SELECT, UPDATE ON crm.markets TO "{database.profile.login("seller_de")}"')
    move = "UPDATE crm.markets SET code = 'DE' WHERE code = 'CH'"
    tried(database, move)
    assert territory(database, lead) == "CH"
    without_triggers(database)  # the control
    assert tried(database, move)
    assert territory(database, lead) == "DE"


@pytest.mark.parametrize("action", ACTIONS)
def test_the_gate_names_keys_of_the_leads_with_actions(expanded: Database, action: str) -> None:
    assert "accounts" not in said(expanded)
    column, _ = ACTIONS[action]
    hang_on_account(expanded, column)
    assert "accounts" in said(expanded)


# --- triggers of the host


CHANGES = {"out of protection": "{territory} := NULL", "across the border": "{territory} := 'CH'", "another id": None}


def plant(database: Database, change: str | None, name: str) -> None:
    """A BEFORE trigger of the host changes what the statement's SET list does not name."""
    another = {
        "uuid": "NEW.{lead_id} := gen_random_uuid()",
        "bigint": "NEW.{lead_id} := 4711",
        "text": "NEW.{lead_id} := 'another'",
    }
    body = f"NEW.{change}" if change else another[database.settings.lead_id_type]
    database.sql_script(f"""
        CREATE FUNCTION crm.derive() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body}; RETURN NEW; END $$;
        CREATE TRIGGER "{name}" BEFORE UPDATE ON {{leads}} FOR EACH ROW EXECUTE FUNCTION crm.derive();
        """)


@pytest.mark.parametrize("name", ["aa first", "zz last"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_before_trigger_of_the_host_moves_no_protected_lead(database: Database, change: str, name: str) -> None:
    lead = database.lead("DE", owner=database.user(1))
    plant(database, CHANGES[change], name)
    tried(database, EDIT, lead)
    assert territory(database, lead) == "DE"


@pytest.mark.parametrize("change", CHANGES)
def test_control_without_our_triggers_it_moves_it(database: Database, change: str) -> None:
    lead = database.lead("DE", owner=database.user(1))
    plant(database, CHANGES[change], "zz last")
    without_triggers(database)
    assert tried(database, EDIT, lead) or change == "across the border"  # there the border itself refuses
    assert (territory(database, lead) == "DE") is (change == "across the border")


def test_the_gate_names_triggers_of_the_host_that_may_change_leads(expanded: Database) -> None:
    assert "no trigger or rule of the host changes leads" in said(expanded)
    plant(expanded, CHANGES["out of protection"], "derive market")
    assert 'trigger "derive market"' in conditions(expanded)["host_triggers"].detail


# --- ids


def test_an_id_is_not_set_to_null(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    open_ids(database)
    set_null = "UPDATE {leads} SET {lead_id} = NULL WHERE {lead_id} = %s"
    tried(database, set_null, lead)
    assert territory(database, lead) == "DE"
    without_triggers(database)  # the control
    assert tried(database, set_null, lead)
    assert territory(database, lead) == "gone"


def open_ids(database: Database) -> None:
    """The host's id becomes unique and nullable."""
    database.sql_script("""
        DO $do$ DECLARE key text; BEGIN
          SELECT conname INTO key FROM pg_constraint WHERE conrelid = {leads_name}::regclass AND contype = 'p';
          EXECUTE format('ALTER TABLE {leads} DROP CONSTRAINT %I CASCADE', key);
        END $do$;
        ALTER TABLE {leads} ALTER COLUMN {lead_id} DROP NOT NULL;
        ALTER TABLE {leads} ADD UNIQUE ({lead_id});
        """)


def test_an_id_that_may_be_null_is_refused_before_anything_is_touched(host: Database) -> None:
    open_ids(host)
    with refused(host, "lead_id_column"):
        pass


@pytest.mark.parametrize("how", ["owner", "maintenance", "replica", "truncate"])
def test_a_new_lead_with_an_old_id_has_no_owner_and_no_collaborator(database: Database, how: str) -> None:
    lead = database.lead("DE", owner=database.user(1))
    database.rule(database.user(2), "COLLABORATOR", lead)
    assert edits(database, lead, 2)
    remove(database, lead, how)
    database.sql("INSERT INTO {leads} ({lead_id}, {territory}) VALUES (%s, 'DE')", lead)
    assert database.owner(lead) is None
    assert [edits(database, lead, user) for user in (1, 2)] == [False, False]


def remove(database: Database, lead: Any, how: str) -> None:
    if how == "owner":
        assert tried(database, DELETE, lead)
    elif how == "truncate":
        database.sql("TRUNCATE {leads} CASCADE")
    else:
        with database.connect() as conn:
            conn.execute(f"SET session_replication_role = {'replica' if how == 'replica' else 'origin'}")
            database.query(conn, DELETE, lead)


def test_control_rows_that_are_left_behind_make_the_new_lead_editable(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    database.rule(database.user(2), "COLLABORATOR", lead)
    without_triggers(database)
    database.sql(DELETE, lead)
    database.sql("INSERT INTO {leads} ({lead_id}, {territory}) VALUES (%s, 'DE')", lead)
    assert [edits(database, lead, user) for user in (1, 2)] == [True, True]


@pytest.mark.parametrize("how", ["maintenance", "replica", "truncate"])
def test_before_contract_too_a_new_lead_with_an_old_id_has_no_owner(expanded: Database, how: str) -> None:
    lead = expanded.lead("DE")
    expanded.activity(lead, expanded.user(1))
    expanded.rule(expanded.user(2), "COLLABORATOR", lead)
    assert expanded.owner(lead) == expanded.user(1)
    remove(expanded, lead, how)
    expanded.sql("INSERT INTO {leads} ({lead_id}, {territory}) VALUES (%s, 'DE')", lead)
    assert expanded.owner(lead) is None
    assert expanded.sql("SELECT count(*) FROM {schema}.lead_protection_rules WHERE active") == [0]


def test_a_reload_of_leads_and_activities_ends_with_the_owners_of_the_new_ones(expanded: Database) -> None:
    lead = expanded.lead("DE")
    expanded.activity(lead, expanded.user(1), at="2026-02-01")
    expanded.sql("TRUNCATE {leads} CASCADE")
    with expanded.connect() as conn:
        conn.execute("SET session_replication_role = replica")
        expanded.query(conn, "INSERT INTO {leads} ({lead_id}, {territory}) VALUES (%s, 'DE')", lead)
        columns = "{activity_lead_id}, {activity_user_id}, {activity_kind}, {activity_at}"
        add = f"INSERT INTO {{activities}} ({columns}) VALUES (%s, %s, 'QUALIFIED_CALL', '2026-01-01')"
        expanded.query(conn, add, lead, expanded.user(2))
    assert contract_with(expanded, lead, expanded.user(2))


def contract_with(database: Database, lead: Any, owner: str | None) -> bool:
    """Either the gate is closed and a backfill mends what it names, or contract came with the right owner."""
    database.upgrade()
    if database.revision() != HEAD:
        leadprotect.backfill(database.url, ["DE", "CH"], settings=database.settings)
        database.upgrade()
    return database.revision() == HEAD and database.owner(lead) == owner


# --- replication


def replicate_activity(database: Database, lead: Any, user: str) -> None:
    """A subscription brings a newer activity of somebody else."""
    with database.connect() as conn:
        conn.execute("SET session_replication_role = replica")
        columns = "{activity_lead_id}, {activity_user_id}, {activity_kind}, {activity_at}"
        add = f"INSERT INTO {{activities}} ({columns}) VALUES (%s, %s, 'QUALIFIED_CALL', '2026-02-01')"
        database.query(conn, add, lead, user)


def test_an_activity_that_replication_brings_makes_the_owner_or_closes_the_gate(expanded: Database) -> None:
    lead = expanded.lead("DE")
    expanded.activity(lead, expanded.user(1), at="2026-01-01")
    leadprotect.backfill(expanded.url, ["DE", "CH"], settings=expanded.settings)
    replicate_activity(expanded, lead, expanded.user(2))
    assert contract_with(expanded, lead, expanded.user(2))


def test_control_without_our_triggers_replication_leaves_the_old_owner(expanded: Database) -> None:
    lead = expanded.lead("DE")
    expanded.activity(lead, expanded.user(1), at="2026-01-01")
    without_triggers(expanded, "{activities_name}")
    replicate_activity(expanded, lead, expanded.user(2))
    assert expanded.owner(lead) == expanded.user(1)


def test_a_lead_that_replication_moves_in_the_transition_has_no_owner_there(expanded: Database) -> None:
    lead = expanded.lead("DE")
    expanded.activity(lead, expanded.user(1))
    with expanded.connect() as conn:
        conn.execute("SET session_replication_role = replica")
        expanded.query(conn, "UPDATE {leads} SET {territory} = 'CH' WHERE {lead_id} = %s", lead)
    assert contract_with(expanded, lead, expanded.user(1))  # who owned it in DE
    assert expanded.owner(lead, "CH") is None


# --- old snapshots


@contextmanager
def old_snapshot(database: Database, user: int) -> Iterator[psycopg.Connection[Any]]:
    """A transaction of a seller in DE whose snapshot is from now on old."""
    with database.connect("seller_de") as conn:
        conn.isolation_level = IsolationLevel.REPEATABLE_READ
        database.context(conn, database.user(user), "DE")
        yield conn


def late_edit(database: Database, conn: psycopg.Connection[Any], lead: Any) -> bool:
    """Whether the edit under the old snapshot is there after its commit."""
    try:
        database.query(conn, EDIT, lead)
        conn.commit()
    except psycopg.Error:
        conn.rollback()
    return database.sql("SELECT city FROM {leads} WHERE {lead_id} = %s", lead) == ["Bern"]


def manages(database: Database, statement: str, *params: Any) -> None:
    with database.connect("manager_de") as conn:
        database.context(conn, database.user(9), "DE")
        database.query(conn, statement, *params)


@pytest.mark.parametrize("scope", ["territory", "lead"])
def test_a_suspension_ends_edits_under_older_snapshots(database: Database, scope: str) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with old_snapshot(database, 1) as conn:
        named = lead if scope == "lead" else None
        suspend = "SELECT {schema}.grant_protection(%s, 'DE', 'VIEW_ONLY', %s)"
        manages(database, suspend, database.user(1), named)
        assert late_edit(database, conn, lead) is False


def test_the_end_of_a_share_ends_edits_under_older_snapshots(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    manages(database, "SELECT {schema}.share_lead(%s, %s)", lead, database.user(2))
    with old_snapshot(database, 2) as conn:
        manages(database, "SELECT {schema}.unshare_lead(%s, %s)", lead, database.user(2))
        assert late_edit(database, conn, lead) is False


def test_control_without_our_triggers_the_old_snapshot_decides(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    without_triggers(database)
    with old_snapshot(database, 1) as conn:
        manages(database, "SELECT {schema}.grant_protection(%s, 'DE', 'VIEW_ONLY')", database.user(1))
        assert late_edit(database, conn, lead) is True


def test_control_without_a_suspension_the_old_snapshot_edits(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with old_snapshot(database, 1) as conn:
        assert late_edit(database, conn, lead) is True


def test_an_edit_that_waited_for_a_suspension_is_decided_after_it(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    done: list[bool] = []
    with database.connect() as holder:
        database.query(holder, "SELECT FROM {leads} WHERE {lead_id} = %s FOR UPDATE", lead)
        waits = threading.Thread(target=lambda: done.append(tried(database, EDIT, lead)))
        waits.start()
        while not database.sql("SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%%eads%%'"):
            time.sleep(0.01)
        manages(database, "SELECT {schema}.grant_protection(%s, 'DE', 'VIEW_ONLY')", database.user(1))
    waits.join()
    assert database.sql("SELECT city FROM {leads} WHERE {lead_id} = %s", lead) == [None]


@pytest.mark.parametrize("attempt", ["record_edit_attempt", "assert_edit_and_audit"])
def test_a_recorded_attempt_is_no_ticket(database: Database, attempt: str) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with old_snapshot(database, 1) as conn:
        database.query(conn, f"SELECT {{schema}}.{attempt}(%s)", lead)
        # the attempt holds the owner's row: the transfer comes as soon as its transaction is over or gives way
        with database.connect("manager_de") as other:
            other.execute("SET lock_timeout = '200ms'")
            database.context(other, database.user(9), "DE")
            try:
                database.query(other, "SELECT {schema}.transfer_lead(%s, %s)", lead, database.user(2))
                other.commit()
            except psycopg.errors.LockNotAvailable:
                return  # the other rightful end: nobody becomes the owner before the edit is over
        assert late_edit(database, conn, lead) is False


# --- activities in the future


FUTURE = ["infinity", "2999-01-01"]


@pytest.mark.parametrize("at", FUTURE)
def test_an_activity_in_the_future_makes_no_owner_at_once(expanded: Database, at: str) -> None:
    planned, worked = expanded.lead("DE"), expanded.lead("DE")
    expanded.activity(planned, expanded.user(1), at=at)
    expanded.activity(worked, expanded.user(2))
    expanded.activity(worked, expanded.user(1), at=at)
    assert [expanded.owner(planned), expanded.owner(worked)] == [None, expanded.user(2)]
    expanded.activity(worked, expanded.user(3), at="2026-03-01")
    assert expanded.owner(worked) == expanded.user(3)


@pytest.mark.parametrize("at", FUTURE)
def test_an_activity_in_the_future_is_not_derived_asked_for_or_missed(host: Database, at: str) -> None:
    planned, worked = host.lead("DE"), host.lead("DE")
    host.activity(planned, host.user(1), at=at)
    host.activity(worked, host.user(2))
    host.activity(worked, host.user(1), at=at)
    host.upgrade()
    leadprotect.backfill(host.url, ["DE", "CH"], settings=host.settings)
    assert [host.owner(planned), host.owner(worked)] == [None, host.user(2)]
    with host.connect() as conn:
        assert [found.complete for found in verify_owners(conn, ["DE", "CH"], settings=host.settings)] == [True, True]
    assert closed(host) == []
    host.upgrade()
    assert host.revision() == HEAD


def test_a_lead_moved_or_corrected_under_a_planned_activity_gets_no_owner_from_it(expanded: Database) -> None:
    lead = expanded.lead("DE")
    number = expanded.activity(lead, expanded.user(2))
    expanded.activity(lead, expanded.user(1), at="infinity")
    expanded.sql("DELETE FROM {activities} WHERE {activity_id} = %s", number)
    assert expanded.owner(lead) != expanded.user(1)


def test_a_planned_activity_makes_the_owner_when_its_time_has_come(expanded: Database) -> None:
    for seconds in SOON:
        lead, at = expanded.lead("DE"), datetime.now(UTC) + timedelta(seconds=seconds)
        expanded.activity(lead, expanded.user(1), at=at)
        before = expanded.owner(lead), "owners" in closed(expanded)
        if datetime.now(UTC) < at:
            break
        expanded.sql(DELETE, lead)  # it took so long to ask that its time has come meanwhile
    assert (None, False) == before
    while datetime.now(UTC) <= at:
        time.sleep(0.02)
    assert "owners" in closed(expanded)
    leadprotect.backfill(expanded.url, ["DE", "CH"], settings=expanded.settings)
    assert expanded.owner(lead) == expanded.user(1)


def test_control_an_activity_of_the_past_makes_the_owner(expanded: Database) -> None:
    lead = expanded.lead("DE")
    expanded.activity(lead, expanded.user(1), at="-infinity")
    assert expanded.owner(lead) == expanded.user(1)


@pytest.mark.parametrize("at", ["2026-06-01", *FUTURE])
def test_after_contract_activities_and_the_backfill_s_functions_make_no_owner(database: Database, at: str) -> None:
    lead = database.lead("DE", owner=database.user(1))
    database.sql("UPDATE {schema}.user_lead_assignments SET source = 'activity' WHERE lead_id = %s", lead)
    database.activity(lead, database.user(2), at=at)
    with database.connect("operator") as conn:
        try:
            database.query(conn, "SELECT {schema}.backfill_settle(%s)", lead)
            conn.commit()
        except psycopg.Error:
            conn.rollback()
    assert database.owner(lead) == database.user(1)


def test_control_before_contract_the_backfill_s_functions_do(expanded: Database) -> None:
    lead = expanded.lead("DE", owner=expanded.user(1))
    with expanded.connect() as conn:
        conn.execute("SET session_replication_role = replica")
        columns = "{activity_lead_id}, {activity_user_id}, {activity_kind}, {activity_at}"
        add = f"INSERT INTO {{activities}} ({columns}) VALUES (%s, %s, 'QUALIFIED_CALL', '2026-06-01')"
        expanded.query(conn, add, lead, expanded.user(2))
        expanded.query(conn, "UPDATE {schema}.user_lead_assignments SET source = 'activity'")
    with expanded.connect("operator") as conn:
        expanded.query(conn, "SELECT {schema}.backfill_settle(%s)", lead)
    assert expanded.owner(lead) == expanded.user(2)


# --- logins that the gate must count


def test_an_exempt_role_that_a_service_can_become_closes_the_gate(
    make_database: Callable[..., Database], profile: Profile
) -> None:
    database = make_database("expanded", exempt_roles=f"{profile.name}_reporting")
    service, exempt = profile.login("seller_de"), f"{profile.name}_reporting"
    database.sql(f'CREATE ROLE "{exempt}" NOLOGIN')
    try:
        database.sql(f'GRANT SELECT, UPDATE ON {{leads}} TO "{exempt}"')
        assert closed(database) == []  # the control
        database.sql(f'GRANT "{exempt}" TO "{service}"')
        assert closed(database) != []
        assert exempt in said(database)
        assert service in said(database)
        with pytest.raises(CommandError, match=exempt):
            database.upgrade(contract="require")
    finally:
        database.sql_script(f'REVOKE ALL ON {{leads}} FROM "{exempt}"; DROP ROLE "{exempt}"')


@pytest.mark.parametrize("inherits", ["NOINHERIT", "INHERIT"])
def test_a_login_that_inherits_nothing_is_not_counted_as_a_member(expanded: Database, inherits: str) -> None:
    """With INHERIT it is one: the control."""
    login = f"gateway {expanded.name}"
    roles = ", ".join(f'"{expanded.settings.role(office)}"' for office in ("app", "de"))
    expanded.sql_script(f'CREATE ROLE "{login}" LOGIN {inherits}; GRANT {roles} TO "{login}"')
    try:
        expanded.sql(f'GRANT SELECT, UPDATE ON {{leads}} TO "{login}"')
        assert (closed(expanded) != []) is (inherits == "NOINHERIT")
        assert (login in said(expanded)) is (inherits == "NOINHERIT")
    finally:
        expanded.sql_script(f'REVOKE ALL ON {{leads}} FROM "{login}"; DROP ROLE "{login}"')


@pytest.mark.parametrize("code", ["none", "", "DE"])
def test_a_context_of_no_territory_is_no_context(make_database: Callable[..., Database], code: str) -> None:
    """With a territory it is one: the control."""
    database = make_database("expanded", observation_window="1 day")
    lead = database.lead(None)
    database.sql("DELETE FROM {schema}.contextless_writes")
    with database.connect("seller_de") as conn:
        conn.execute("SELECT set_config(%s, %s, true)", (database.settings.user_guc, database.user(1)))
        conn.execute("SELECT set_config(%s, %s, true)", (database.settings.territory_guc, code))
        database.query(conn, EDIT, lead)
    assert conditions(database)["contextless_writes"].met is (code == "DE")


# --- leads that move in the transition


def move(database: Database, lead: Any, code: str) -> None:
    database.sql("UPDATE {leads} SET {territory} = %s WHERE {lead_id} = %s", code, lead)


def test_a_lead_that_moves_in_the_transition_has_no_owner_until_a_newer_activity(expanded: Database) -> None:
    lead = expanded.lead("DE")
    expanded.activity(lead, expanded.user(1), at="2026-01-01")
    move(expanded, lead, "CH")
    assert expanded.owner(lead, "CH") is None
    leadprotect.backfill(expanded.url, ["DE", "CH"], settings=expanded.settings)
    assert expanded.owner(lead, "CH") is None
    assert closed(expanded) == []
    expanded.activity(lead, expanded.user(2), at=datetime.now(UTC))
    assert expanded.owner(lead, "CH") == expanded.user(2)


def test_a_lead_that_moved_in_the_transition_is_given_by_hand(expanded: Database) -> None:
    lead = expanded.lead("DE")
    expanded.activity(lead, expanded.user(1), at="2026-01-01")
    move(expanded, lead, "CH")
    with expanded.connect("seller_ch") as conn, leadprotect.acting_as(conn, expanded.user(2), "CH"):
        leadprotect.claim(conn, lead)
    assert expanded.owner(lead, "CH") == expanded.user(2)


def test_a_lead_that_moved_before_the_first_revision_is_derived(host: Database) -> None:
    """The control: nobody can tell it from one that was always there."""
    lead = host.lead("DE")
    host.activity(lead, host.user(1))
    move(host, lead, "CH")
    host.upgrade()
    leadprotect.backfill(host.url, ["DE", "CH"], settings=host.settings)
    assert host.owner(lead, "CH") == host.user(1)


def test_a_lead_that_enters_protection_in_the_transition_is_derived(expanded: Database) -> None:
    lead = expanded.lead(None)
    expanded.activity(lead, expanded.user(1))
    move(expanded, lead, "CH")
    leadprotect.backfill(expanded.url, ["CH"], settings=expanded.settings)
    assert expanded.owner(lead, "CH") == expanded.user(1)


# --- shares that outlive their reason


def share(database: Database, lead: Any, user: int, with_user: int, login: str = "seller_de") -> None:
    with database.connect(login) as conn, leadprotect.acting_as(conn, database.user(user), "DE"):
        leadprotect.share(conn, lead, database.user(with_user))


ENDS = ["transfer", "release", "assign", "release and claim"]


@pytest.mark.parametrize("end", ENDS)
def test_a_share_that_an_owner_made_ends_when_he_ceases_to_be_it(database: Database, end: str) -> None:
    lead = database.lead("DE", owner=database.user(1))
    share(database, lead, 1, 3)
    assert edits(database, lead, 3)
    cease(database, lead, end)
    assert [edits(database, lead, user) for user in (1, 3)] == [False, False]


def cease(database: Database, lead: Any, end: str) -> None:
    """User 1 ceases to own the lead."""
    if end.startswith("release"):
        with database.acting("seller_de", 1) as conn:
            leadprotect.release(conn, lead)
    else:
        manages(database, f"SELECT {{schema}}.{end}_lead(%s, %s)", lead, database.user(2))
    if end.endswith("claim"):
        with database.acting("seller_de", 2) as conn:
            leadprotect.claim(conn, lead)


def test_a_share_that_a_manager_made_stays(database: Database) -> None:
    """The control: it was no owner's to give."""
    lead = database.lead("DE", owner=database.user(1))
    manages(database, "SELECT {schema}.grant_protection(%s, 'DE', 'COLLABORATOR', %s)", database.user(3), lead)
    cease(database, lead, "transfer")
    assert edits(database, lead, 3)


def test_a_share_that_was_ended_does_not_come_back_with_its_owner(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    share(database, lead, 1, 3)
    cease(database, lead, "transfer")
    manages(database, "SELECT {schema}.transfer_lead(%s, %s)", lead, database.user(1))
    assert edits(database, lead, 3) is False


def test_sharing_with_oneself_is_refused(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with pytest.raises(leadprotect.errors.InvalidRequest):
        share(database, lead, 1, 1)
    assert tried(database, "SELECT {schema}.share_lead(%s, %s)", lead, database.user(1)) is False
    assert database.sql("SELECT count(*) FROM {schema}.lead_protection_rules") == [0]


def test_a_manager_shares_no_lead_with_its_owner(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with pytest.raises(leadprotect.errors.InvalidRequest):
        share(database, lead, 9, 1, login="manager_de")


# --- territories that are none


@pytest.mark.parametrize("code", ["app", "manager", "de", "De", "owner"])
def test_a_name_that_is_no_territory_s_is_no_territory_whatever_roles_are_called(database: Database, code: str) -> None:
    """The role of a territory ends with its code in lower case, and so do those of offices."""
    lead, statement = database.new_id(), "INSERT INTO {leads} ({lead_id}, {territory}) VALUES (%s, %s)"
    for login in ("seller_de", "manager_de"):
        with database.connect(login) as conn:
            database.context(conn, database.user(1), code)
            assert database.query(conn, "SELECT {schema}.admitted_territory()") == [None]
            with pytest.raises(psycopg.Error):
                database.query(conn, statement, lead, code)
    database.sql(statement, lead, code)
    with database.connect("seller_de") as conn:
        database.context(conn, database.user(1), code)
        assert database.query(conn, "SELECT {lead_id} FROM {leads}") == []
        assert database.query(conn, "SELECT {schema}.explain_edit(%s)", lead) == ["not_found"]
    # the control: two codes that would share a role are refused unless somebody takes the index away
    database.sql("DROP INDEX {schema}.ix_territories_role")
    database.sql("INSERT INTO {schema}.territories (code, name) VALUES (%s, 'the control')", code)
    database.sql("SELECT {schema}.publish_territories()")
    with database.connect("manager_de" if code == "manager" else "seller_de") as conn:
        database.context(conn, database.user(1), code)
        found = database.query(conn, "SELECT {lead_id} FROM {leads}")
    assert found == ([] if code == "owner" else [lead])


# --- TRUNCATE


@pytest.mark.parametrize("role", ["origin", "replica"])
def test_nobody_bound_truncates_the_leads(database: Database, role: str) -> None:
    lead = database.lead("CH")
    login = database.profile.login("seller_de")
    database.sql(f'GRANT TRUNCATE ON {{leads}}, {{activities}} TO "{login}"')
    database.sql(f'GRANT SET ON PARAMETER session_replication_role TO "{login}"')
    try:
        with database.connect("seller_de") as conn:
            conn.execute(f"SET session_replication_role = {role}")
            with pytest.raises(psycopg.Error):
                database.query(conn, "TRUNCATE {leads}, {activities}")
        assert territory(database, lead) == "CH"
        without_triggers(database)  # the control
        with database.connect("seller_de") as conn:
            database.query(conn, "TRUNCATE {leads}, {activities}")
        assert territory(database, lead) == "gone"
    finally:
        database.sql(f'REVOKE SET ON PARAMETER session_replication_role FROM "{login}"')


def test_what_replication_loaded_before_the_backfill_is_derived_like_anything_else(expanded: Database) -> None:
    """The control of every case above: without a conflict there is one truth."""
    expected = old_leads(expanded, 16)
    leadprotect.backfill(expanded.url, ["DE", "CH"], settings=expanded.settings)
    assert {lead: expanded.owner(lead) for lead in expected} == expected
