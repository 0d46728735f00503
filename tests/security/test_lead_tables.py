"""Tables that hold data of leads: seen by whom the lead is seen by, changed by whom may edit it.

Each way to such a row that is not one's own is held, and each control shows that the way leads there once the
defence is gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from leadprotect.doctor.examine import CHECKS, examine
from tests.support.children import CONTACTS, NOTES, contact, contracted, note, with_children

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.database import Database

pytestmark = pytest.mark.everywhere("a defence that one version lacks is an open door there")

READ = f"SELECT id FROM {CONTACTS} ORDER BY id"
CHANGE = f"UPDATE {CONTACTS} SET email = 'changed' WHERE id = %s"
DELETE = f"DELETE FROM {CONTACTS} WHERE id = %s"
ADD = f"INSERT INTO {CONTACTS} (\"of lead\", email) VALUES (%s, 'added')"
APPEND = f"INSERT INTO {NOTES} (lead_id, body) VALUES (%s, 'added')"
MOVE = f'UPDATE {CONTACTS} SET "of lead" = %s WHERE id = %s'
DENIED = "LP403"
ROW_SECURITY = "42501"


@pytest.fixture
def database(make_database: Callable[..., Database]) -> Database:
    return contracted(make_database)


def tried(
    database: Database, statement: str, *params: Any, user: int = 1, territory: str | None = "DE",
    login: str = "seller_de", role: str | None = None,
) -> Any:  # fmt: skip
    """What it returned, how many rows it changed, or the SQLSTATE of its refusal."""
    try:
        with database.connect(login) as conn:
            if role:
                conn.execute(f'SET ROLE "{role}"')
            if territory:
                database.context(conn, database.user(user), territory)
            cursor = conn.execute(database.text(statement), params or None)
            return [row[0] for row in cursor.fetchall()] if cursor.description else cursor.rowcount
    except psycopg.Error as error:
        return error.sqlstate


def emails(database: Database) -> list[Any]:
    return database.sql(f"SELECT email FROM {CONTACTS} ORDER BY id")


def recorded(database: Database, columns: str) -> list[Any]:
    """The audit without what the tests put into the tables themselves."""
    theirs = "reason NOT IN ('maintenance', 'unprotected') OR note NOT LIKE 'insert %'"
    return database.sql(f"SELECT {columns} FROM {{schema}}.lead_access_audit WHERE {theirs} ORDER BY id")


def undefended(database: Database, table: str = CONTACTS) -> None:
    """The defence is gone: no trigger and no policy of ours, and no row security."""
    without_triggers(database, table)
    database.sql_script(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")


def without_triggers(database: Database, table: str = CONTACTS) -> None:
    query = f"""
        SELECT format('DROP TRIGGER %I ON %s', t.tgname, t.tgrelid::regclass)
        FROM pg_trigger AS t JOIN pg_proc AS p ON p.oid = t.tgfoid
        WHERE t.tgrelid = '{table}'::regclass AND p.pronamespace = {{schema_name}}::regnamespace
        """
    for statement in database.sql(query):
        database.sql(statement)


def test_a_service_that_owns_such_a_table_is_named_since_nothing_binds_it(database: Database) -> None:
    contacts = [contact(database, database.lead(territory)) for territory in ("DE", "CH")]
    asked = [check for check in CHECKS if check.name == "service-owns-leads"]
    login = database.profile.login("seller_de")
    with database.connect(autocommit=True) as conn:
        assert () == examine(conn, settings=database.settings, checks=asked).findings
        conn.execute(f'ALTER TABLE {CONTACTS} OWNER TO "{login}"'.encode())
        (one,) = examine(conn, settings=database.settings, checks=asked).findings
    assert (f"login {login}", True) == (one.where, "crm.lead contacts" in one.what)
    assert contacts == tried(database, READ)  # the control: it reads the other territory's


# --- reading


def test_a_row_is_seen_by_whom_its_lead_is_seen_by(database: Database) -> None:
    german = contact(database, database.lead("DE", owner=database.user(2)))
    swiss = contact(database, database.lead("CH", owner=database.user(3)))
    open_to_all, nobodys = contact(database, database.lead(None)), contact(database, None)
    assert tried(database, READ) == [german, open_to_all, nobodys]
    assert tried(database, READ, login="seller_ch", territory="CH") == [swiss, open_to_all, nobodys]
    assert tried(database, READ, territory="CH") == [open_to_all, nobodys]
    assert tried(database, READ, territory=None) == [open_to_all, nobodys]


WAYS_TO_READ = {
    "by its id": f"SELECT id FROM {CONTACTS} WHERE id = %s",
    "in a join": f"""
        SELECT c.id FROM {CONTACTS} AS c LEFT JOIN {{leads}} AS l ON l.{{lead_id}} = c."of lead" WHERE c.id = %s
        """,
    "with a function in the filter": f"""
        SELECT id FROM {CONTACTS} WHERE id = %s AND pg_catalog.set_config({{territory_guc}}, 'CH', true) <> ''
        """,
    "by its place": f"SELECT id FROM {CONTACTS} WHERE id = %s AND ctid IS NOT NULL",
    "locked": f"SELECT id FROM {CONTACTS} WHERE id = %s FOR SHARE",
    "deleted": f"DELETE FROM {CONTACTS} WHERE id = %s RETURNING id",
    "changed": f"UPDATE {CONTACTS} SET email = email WHERE id = %s RETURNING id",
}


@pytest.mark.parametrize("way", WAYS_TO_READ)
def test_no_way_shows_the_row_of_another_territory(database: Database, way: str) -> None:
    swiss = contact(database, database.lead("CH"))
    assert tried(database, WAYS_TO_READ[way], swiss) == []


@pytest.mark.parametrize("way", WAYS_TO_READ)
def test_control_each_of_them_shows_it_without_row_security(database: Database, way: str) -> None:
    swiss = contact(database, database.lead("CH"))
    undefended(database)
    assert tried(database, WAYS_TO_READ[way], swiss) == [swiss]


def test_a_permissive_policy_made_later_opens_nothing(database: Database) -> None:
    swiss = contact(database, database.lead("CH"))
    database.sql_script(f"CREATE POLICY more ON {CONTACTS} USING (true) WITH CHECK (true)")
    assert tried(database, READ) == []
    assert tried(database, CHANGE, swiss) == 0
    border = database.settings.role("child_border")
    database.sql_script(f'DROP POLICY "{border}" ON {CONTACTS}')
    assert tried(database, READ) == [swiss]


def test_a_row_of_a_lead_that_is_not_there_is_seen_by_nobody(database: Database) -> None:
    database.sql_script(f'ALTER TABLE {CONTACTS} DROP CONSTRAINT "lead contacts_of lead_fkey"')
    contact(database, database.new_id())
    assert tried(database, READ) == []


# --- changing


def test_whoever_may_edit_the_lead_changes_its_rows_and_nobody_else(database: Database) -> None:
    row = contact(database, database.lead("DE", owner=database.user(1)))
    assert tried(database, CHANGE, row, user=2) == 0
    assert tried(database, DELETE, row, user=2) == 0
    assert tried(database, CHANGE, row) == 1
    assert emails(database) == ["changed"]
    assert tried(database, DELETE, row) == 1
    assert emails(database) == []


def test_a_collaborator_changes_them_and_who_is_suspended_does_not(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    row = contact(database, lead)
    database.rule(database.user(2), "COLLABORATOR", lead)
    database.rule(database.user(1), "VIEW_ONLY")
    assert tried(database, CHANGE, row, user=2) == 1
    assert tried(database, CHANGE, row, user=1) == 0


def test_a_new_row_needs_the_right_to_edit_its_lead(database: Database) -> None:
    lead, foreign = database.lead("DE", owner=database.user(1)), database.lead("CH", owner=database.user(1))
    assert tried(database, ADD, lead, user=2) == ROW_SECURITY
    assert tried(database, ADD, foreign) == ROW_SECURITY
    assert tried(database, ADD, lead) == 1
    undefended(database)
    assert tried(database, ADD, foreign) == 1


def test_everybody_of_the_territory_appends_where_the_setting_says_so(database: Database) -> None:
    lead, foreign = database.lead("DE", owner=database.user(1)), database.lead("CH", owner=database.user(1))
    assert tried(database, APPEND, lead, user=2) == 1
    assert tried(database, APPEND, foreign) == ROW_SECURITY
    assert tried(database, APPEND, lead, user=2, territory=None) == ROW_SECURITY
    appended = f"UPDATE {NOTES} SET body = 'changed'"
    assert tried(database, appended, user=2) == 0
    assert tried(database, appended, user=1) == 1
    assert recorded(database, "reason, note") == [("owner", "update of crm.notes without assertion")]


def test_a_row_outside_protection_stays_everybody_s(database: Database) -> None:
    rows = [contact(database, database.lead(None)), contact(database, None)]
    for row in rows:
        assert tried(database, CHANGE, row, territory=None) == 1
        assert tried(database, DELETE, row, territory=None) == 1
    assert tried(database, ADD, None, territory=None) == 1
    assert tried(database, ADD, database.lead(None), territory=None) == 1
    assert database.sql("SELECT DISTINCT reason FROM {schema}.lead_access_audit") == ["unprotected"]


def test_a_row_goes_to_another_lead_only_by_whom_both_belong_to(database: Database) -> None:
    mine, also_mine = (database.lead("DE", owner=database.user(1)) for _ in range(2))
    other, foreign = database.lead("DE", owner=database.user(2)), database.lead("CH", owner=database.user(1))
    row, of_other = contact(database, mine), contact(database, other)
    assert tried(database, MOVE, other, row) == ROW_SECURITY
    assert tried(database, MOVE, foreign, row) == ROW_SECURITY
    assert tried(database, MOVE, mine, of_other) == 0
    assert tried(database, MOVE, also_mine, row) == 1
    assert sorted(recorded(database, "lead_id, reason")) == sorted([(mine, "owner"), (also_mine, "owner")])


def test_a_row_is_not_taken_out_of_protection(database: Database) -> None:
    row = contact(database, database.lead("DE", owner=database.user(1)))
    open_to_all = database.lead(None)
    assert tried(database, MOVE, None, row) == ROW_SECURITY
    assert tried(database, MOVE, open_to_all, row) == ROW_SECURITY
    without_triggers(database)
    assert tried(database, MOVE, None, row) == 1


def test_a_trigger_of_the_host_moves_no_row_to_a_lead_that_is_not_one_s_own(database: Database) -> None:
    row = contact(database, database.lead("DE", owner=database.user(1)))
    other = database.lead("DE", owner=database.user(2))
    database.sql_script(f"""
        CREATE FUNCTION crm.moves() RETURNS trigger LANGUAGE plpgsql
        AS $$ BEGIN NEW."of lead" := '{other}'; RETURN NEW; END $$;
        CREATE TRIGGER zz BEFORE INSERT OR UPDATE ON {CONTACTS} FOR EACH ROW EXECUTE FUNCTION crm.moves()
        """)
    assert tried(database, CHANGE, row) == ROW_SECURITY
    assert tried(database, ADD, None) == ROW_SECURITY
    undefended(database)
    assert tried(database, CHANGE, row) == 1


def test_truncate_is_refused_to_a_service_and_recorded_by_maintenance(database: Database) -> None:
    lead, empty = database.lead("DE", owner=database.user(1)), database.lead("CH")
    contact(database, lead), contact(database, None)
    assert tried(database, f"TRUNCATE {CONTACTS}") == ROW_SECURITY
    database.sql(f"TRUNCATE {CONTACTS}")
    assert recorded(database, "lead_id, reason, note") == [
        (lead, "maintenance", f"truncate of {CONTACTS} without assertion")
    ], empty
    contact(database, lead)
    without_triggers(database)
    assert tried(database, f"TRUNCATE {CONTACTS}") == -1


# --- ways that are no statement of a bound login on the table


def test_a_cascade_from_the_host_is_decided_like_an_edit(database: Database) -> None:
    database.sql_script(f"""
        CREATE TABLE crm.sources (id int PRIMARY KEY);
        INSERT INTO crm.sources VALUES (1);
        ALTER TABLE {CONTACTS} ADD COLUMN source int DEFAULT 1 REFERENCES crm.sources ON DELETE CASCADE;
        GRANT SELECT, DELETE ON crm.sources TO "{database.profile.login("seller_de")}"
        """)
    contact(database, database.lead("CH", owner=database.user(1)))
    assert tried(database, "DELETE FROM crm.sources") == DENIED
    assert emails(database) == [""]
    without_triggers(database)
    assert tried(database, "DELETE FROM crm.sources") == 1
    assert emails(database) == []


def test_the_rows_of_a_lead_go_with_it(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    contact(database, lead), note(database, lead)
    assert tried(database, "DELETE FROM {leads} WHERE {lead_id} = %s", lead) == 1
    assert emails(database) == []
    assert recorded(database, "reason, note") == [("owner", "delete without assertion")]


def test_a_definer_function_of_the_host_changes_no_row_of_somebody_else(database: Database) -> None:
    row = contact(database, database.lead("CH", owner=database.user(1)))
    database.sql_script(f"""
        CREATE FUNCTION crm.tidy() RETURNS void LANGUAGE sql SECURITY DEFINER
        AS $$ UPDATE {CONTACTS} SET email = 'changed' $$
        """)
    assert tried(database, "SELECT crm.tidy()") == DENIED
    without_triggers(database)
    assert tried(database, "SELECT crm.tidy()") == [""] or emails(database) == ["changed"], row


def test_a_replica_session_leaves_its_row_too(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    row = contact(database, lead)
    with database.connect(autocommit=True) as conn:
        conn.execute("SET session_replication_role = replica")
        database.query(conn, CHANGE, row)
    assert recorded(database, "lead_id, reason") == [(lead, "maintenance")]


def test_an_upsert_tells_nothing_of_another_territory_s_row(database: Database) -> None:
    """A unique key of the host reaches over territories; what it meets is neither read nor changed."""
    swiss = contact(database, database.lead("CH", owner=database.user(1)), "a@b.c")
    database.sql_script(f"CREATE UNIQUE INDEX ON {CONTACTS} (email)")
    mine = database.lead("DE", owner=database.user(1))
    upsert = f"""
        INSERT INTO {CONTACTS} AS c ("of lead", email) VALUES (%s, 'a@b.c')
        ON CONFLICT (email) DO UPDATE SET email = 'taken' RETURNING c.id
        """
    assert tried(database, upsert, mine) == ROW_SECURITY
    assert emails(database) == ["a@b.c"], swiss


def test_who_has_another_role_of_the_host_meets_the_border_too(database: Database) -> None:
    group, login = f"{database.profile.name}_children_group", database.profile.login("seller_de")
    if not database.sql("SELECT FROM pg_roles WHERE rolname = %s", group):
        database.sql(f'CREATE ROLE "{group}" NOLOGIN')
    database.sql_script(f"""
        GRANT "{group}" TO "{login}"; GRANT USAGE ON SCHEMA crm TO "{group}";
        GRANT SELECT, UPDATE ON {CONTACTS} TO "{group}";
        GRANT SELECT ON {{leads}} TO "{group}"; GRANT USAGE ON SCHEMA {{schema}} TO "{group}"
        """)
    row = contact(database, database.lead("DE", owner=database.user(1)))
    assert tried(database, READ, role=group, territory=None) == []
    assert tried(database, CHANGE, row, role=group, territory=None) in (0, ROW_SECURITY)
    database.sql_script(f'REVOKE "{group}" FROM "{login}"')


# --- evidence


def test_one_row_for_lead_user_and_transaction_however_much_was_edited(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    rows = [contact(database, lead) for _ in range(3)]
    with database.connect("seller_de") as conn:
        database.context(conn, database.user(1), "DE")
        for row in rows:
            database.query(conn, CHANGE, row)
        database.query(conn, ADD, lead)
        database.query(conn, "UPDATE {leads} SET city = 'Bern' WHERE {lead_id} = %s", lead)
    assert recorded(database, "lead_id, action::text, outcome::text, reason") == [(lead, "EDIT", "ALLOW", "owner")]


def test_a_transfer_between_two_reads_is_noticed_under_the_lock(database: Database) -> None:
    """The policy decided in the statement's snapshot, and the trigger decides under the lock that the transfer held."""
    lead = database.lead("DE", owner=database.user(1))
    row = contact(database, lead)
    with database.connect("seller_de") as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        database.context(conn, database.user(1), "DE")
        database.query(conn, READ)
        with database.connect("manager_de") as manager:
            database.context(manager, database.user(9), "DE")
            database.query(manager, "SELECT {schema}.transfer_lead(%s, %s)", lead, database.user(2))
        with pytest.raises(psycopg.errors.SerializationFailure):
            database.query(conn, CHANGE, row)


# --- off


def test_with_host_rls_off_the_tables_are_left_alone(make_database: Callable[..., Database]) -> None:
    database = with_children(make_database, host_rls="off")
    contact(database, database.lead("CH"))
    database.upgrade("head", contract="require")
    assert len(tried(database, READ)) == 1
