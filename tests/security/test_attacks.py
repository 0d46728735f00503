"""Known attacks, each with its negative control: against a broken schema the same attack succeeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg
import pytest

from tests.support.database import Database

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True)
class Attack:
    """`attempt` returns whether it succeeded; `damage` breaks the defence that stops it."""

    attempt: Callable[[Database], bool]
    damage: str

    def __str__(self) -> str:
        return self.attempt.__name__


def as_seller(database: Database, *statements: str, user: int = 1, territory: str | None = "DE") -> list[Any]:
    """What the last statement returns, for a seller of DE alone; refused statements return nothing."""
    found: list[Any] = []
    with database.connect("seller_de") as conn:
        try:
            if territory is not None:
                database.context(conn, database.user(user), territory)
            for statement in statements:
                found = database.query(conn, statement)
        except psycopg.Error:
            return []
    return found


def forge_the_territory(database: Database) -> bool:
    return as_seller(database, "SELECT lead_id FROM {schema}.user_lead_assignments", territory="CH") != []


def forge_the_territory_while_reading(database: Database) -> bool:
    read = "SELECT set_config({territory_guc}, 'CH', true), lead_id FROM {schema}.user_lead_assignments"
    return as_seller(database, read, read) != [] and as_seller(database, read, "SELECT {lead_id} FROM {leads}") != []


def read_without_a_context(database: Database) -> bool:
    return as_seller(database, "SELECT lead_id FROM {schema}.user_lead_assignments", territory=None) != []


def read_the_other_territory_s_leads(database: Database) -> bool:
    return as_seller(database, "SELECT 1 FROM {leads} WHERE {territory} = 'CH'", territory="CH") != []


def read_under_a_stray_policy(database: Database) -> bool:
    database.sql("CREATE POLICY stray ON {schema}.user_lead_assignments USING (true)")
    try:
        seen = as_seller(
            database, "SELECT 1 FROM {schema}.user_lead_assignments WHERE territory = 'CH'", territory="CH"
        )
        return seen != []
    finally:
        database.sql("DROP POLICY stray ON {schema}.user_lead_assignments")


def read_the_view_with_a_leaky_function(database: Database) -> bool:
    seen: list[str] = []
    with database.connect("seller_de") as conn:
        conn.add_notice_handler(lambda notice: seen.append(notice.message_primary or ""))
        database.context(conn, database.user(1), "DE")
        conn.execute(
            "CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 "
            "AS $$ BEGIN RAISE NOTICE 'leak %', $1; RETURN true; END $$"
        )
        database.query(conn, "SELECT count(*) FROM {schema}.v_lead_protection WHERE pg_temp.leak(territory)")
    return "leak CH" in seen


def decide_across_the_border(database: Database) -> bool:
    (lead,) = database.sql("SELECT {lead_id} FROM {leads} WHERE {territory} = 'CH'")
    return as_seller(database, f"SELECT {{schema}}.can_edit_lead('{lead}')", territory="CH") == [True]


def claim_across_the_border(database: Database) -> bool:
    (lead,) = database.sql("SELECT {lead_id} FROM {leads} WHERE {territory} = 'CH'")
    as_seller(database, f"SELECT {{schema}}.release_lead('{lead}')", territory="CH")
    return database.owner(lead, "CH") is None


def move_a_lead_across_the_border(database: Database) -> bool:
    as_seller(database, "UPDATE {leads} SET {territory} = 'CH'")
    return database.sql("SELECT count(*) FROM {leads} WHERE {territory} = 'CH'") != [1]


def move_a_lead_out_of_protection(database: Database) -> bool:
    as_seller(database, "UPDATE {leads} SET {territory} = NULL")
    return database.sql("SELECT count(*) FROM {leads} WHERE {territory} IS NULL") != [0]


def edit_a_lead_of_somebody_else(database: Database) -> bool:
    as_seller(database, "UPDATE {leads} SET city = 'Bern'", user=2)
    return database.sql("SELECT count(*) FROM {leads} WHERE city = 'Bern'") != [0]


def delete_a_lead_of_somebody_else(database: Database) -> bool:
    as_seller(database, "DELETE FROM {leads}", user=2)
    return database.sql("SELECT count(*) FROM {leads}") != [2]


def grant_oneself_a_lead(database: Database) -> bool:
    as_seller(database, f"UPDATE {{schema}}.user_lead_assignments SET user_id = '{database.user(2)}'", user=2)
    return as_seller(database, "SELECT {schema}.can_edit_lead({lead_id}) FROM {leads}", user=2) == [True]


def shadow_a_table_and_an_operator(database: Database) -> bool:
    """The caller's own schema comes first, with a table of assignments and a rewritten `=`."""
    database.sql_script("DROP SCHEMA IF EXISTS trap CASCADE; CREATE SCHEMA trap; GRANT ALL ON SCHEMA trap TO PUBLIC")
    kind = database.settings.user_id_type
    body = "SELECT true"
    return as_seller(
        database,
        "CREATE TEMP TABLE user_lead_assignments AS SELECT {lead_id} AS lead_id, {territory} AS territory, "
        f"'{database.user(2)}'::{kind} AS user_id FROM {{leads}}",
        f"CREATE OR REPLACE FUNCTION trap.same({kind}, {kind}) RETURNS boolean LANGUAGE sql AS '{body}'",
        "GRANT SELECT ON user_lead_assignments TO PUBLIC",
        f"CREATE OPERATOR trap.= (LEFTARG = {kind}, RIGHTARG = {kind}, FUNCTION = trap.same)",
        "SET LOCAL search_path = trap, pg_temp, pg_catalog",
        "SELECT {schema}.can_edit_lead({lead_id}) FROM {leads}",
        user=2,
    ) == [True]


def execute_as_anybody(database: Database) -> bool:
    with database.connect("outsider") as conn:
        try:
            database.query(conn, "SELECT {schema}.can_edit_lead(NULL)")
        except psycopg.Error:
            return False
    return True


def keep_an_answer_in_a_prepared_statement(database: Database) -> bool:
    (lead,) = database.sql("SELECT {lead_id} FROM {leads} WHERE {territory} = 'DE'")
    with database.connect("seller_de", autocommit=True) as conn:
        database.query(conn, f"PREPARE ask AS SELECT {{schema}}.can_edit_lead('{lead}')")
        with conn.transaction():
            database.context(conn, database.user(1), "DE")
            assert conn.execute("EXECUTE ask").fetchone() == (True,)
        with conn.transaction():
            database.context(conn, database.user(2), "DE")
            return bool(conn.execute("EXECUTE ask").fetchone() == (True,))


def read_another_territory_s_audit(database: Database) -> bool:
    partition = "{schema}.lead_access_audit"
    with database.connect("auditor_de") as conn:
        database.context(conn, database.user(1), "CH")
        return database.query(conn, f"SELECT 1 FROM {partition} WHERE territory = 'CH'") != []


def read_a_partition_of_the_audit(database: Database) -> bool:
    (partition,) = database.sql("SELECT tableoid::regclass::text FROM {schema}.lead_access_audit")
    with database.connect("auditor_de") as conn:
        try:
            database.context(conn, database.user(1), "CH")
            return conn.execute(f"SELECT 1 FROM {partition} WHERE territory = 'CH'").fetchall() != []
        except psycopg.Error:
            return False


def read_the_audit_as_a_service(database: Database) -> bool:
    return as_seller(database, "SELECT reason FROM {schema}.lead_access_audit", territory="CH") != []


def truncate_the_leads(database: Database) -> bool:
    database.sql(f'GRANT TRUNCATE ON {{leads}}, {{activities}} TO "{database.profile.login("seller_de")}"')
    as_seller(database, "TRUNCATE {leads}, {activities}")
    return database.sql("SELECT count(*) FROM {leads}") == [0]


ATTACKS = [
    Attack(
        forge_the_territory,
        "DROP POLICY lp_border ON {schema}.user_lead_assignments",
    ),
    Attack(
        forge_the_territory_while_reading,
        "ALTER TABLE {schema}.user_lead_assignments DISABLE ROW LEVEL SECURITY;"
        "ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY",
    ),
    Attack(read_without_a_context, "ALTER TABLE {schema}.user_lead_assignments DISABLE ROW LEVEL SECURITY"),
    Attack(read_the_other_territory_s_leads, "ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY"),
    Attack(read_under_a_stray_policy, "DROP POLICY lp_border ON {schema}.user_lead_assignments"),
    Attack(
        read_the_view_with_a_leaky_function,
        "ALTER VIEW {schema}.v_lead_protection SET (security_barrier = false);"
        "ALTER TABLE {schema}.user_lead_assignments DISABLE ROW LEVEL SECURITY;"
        "ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY",
    ),
    Attack(
        decide_across_the_border,
        "CREATE OR REPLACE FUNCTION {schema}.is_member(territory text) RETURNS boolean LANGUAGE sql STABLE RETURN true",
    ),
    Attack(
        claim_across_the_border,
        "CREATE OR REPLACE FUNCTION {schema}.is_member(territory text) RETURNS boolean LANGUAGE sql STABLE RETURN true",
    ),
    Attack(
        move_a_lead_across_the_border,
        "DROP TRIGGER {refuse_move} ON {leads}; DROP TRIGGER {audit_edit} ON {leads};"
        "ALTER TABLE {leads} DISABLE ROW LEVEL SECURITY",
    ),
    Attack(move_a_lead_out_of_protection, "DROP TRIGGER {refuse_move} ON {leads}"),
    Attack(
        edit_a_lead_of_somebody_else, "DROP POLICY {update_policy} ON {leads}; DROP TRIGGER {audit_edit} ON {leads}"
    ),
    Attack(
        delete_a_lead_of_somebody_else, "DROP POLICY {delete_policy} ON {leads}; DROP TRIGGER {audit_edit} ON {leads}"
    ),
    Attack(
        grant_oneself_a_lead,
        "GRANT UPDATE ON {schema}.user_lead_assignments TO {app};"
        "CREATE POLICY stray ON {schema}.user_lead_assignments USING (true)",
    ),
    Attack(
        shadow_a_table_and_an_operator,
        "ALTER FUNCTION {schema}.decide({lead_id_type}, text, text) RESET search_path",
    ),
    Attack(
        execute_as_anybody,
        "GRANT USAGE ON SCHEMA {schema} TO PUBLIC; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} TO PUBLIC",
    ),
    Attack(
        keep_an_answer_in_a_prepared_statement,
        "ALTER FUNCTION {schema}.decide({lead_id_type}, text, text) IMMUTABLE;"
        "CREATE OR REPLACE FUNCTION {schema}.can_edit_lead(lead {lead_id_type}) RETURNS boolean "
        "LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN RETURN "
        "{schema}.decide(lead, current_setting({user_guc}, true), current_setting({territory_guc}, true)) = 'owner'; "
        "END $$",
    ),
    Attack(read_another_territory_s_audit, "ALTER TABLE {schema}.lead_access_audit DISABLE ROW LEVEL SECURITY"),
    Attack(
        read_a_partition_of_the_audit,
        "GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {auditor};"
        "DO $$ DECLARE part regclass; BEGIN "
        "FOR part IN SELECT relid FROM pg_partition_tree('{schema}.lead_access_audit') LOOP "
        "EXECUTE format('ALTER TABLE %s DISABLE ROW LEVEL SECURITY', part); END LOOP; END $$",
    ),
    Attack(
        read_the_audit_as_a_service,
        "GRANT SELECT ON {schema}.lead_access_audit TO {app};"
        "ALTER TABLE {schema}.lead_access_audit DISABLE ROW LEVEL SECURITY",
    ),
    Attack(truncate_the_leads, "DROP TRIGGER {audit_truncate} ON {leads}"),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_the_attack_fails_and_succeeds_only_against_a_broken_schema(database: Database, attack: Attack) -> None:
    database.lead("DE", owner=database.user(1))
    swiss = database.lead("CH", owner=database.user(1))
    with database.connect("seller_ch") as conn:
        database.context(conn, database.user(1), "CH")
        database.query(conn, "SELECT {schema}.record_edit_attempt(%s)", swiss)
    assert attack.attempt(database) is False, "the defence does not hold"
    prefix = database.settings.schema
    damage = attack.damage.replace("{update_policy}", f'"{prefix}_update"')
    database.sql_script(damage.replace("{delete_policy}", f'"{prefix}_delete"'))
    assert attack.attempt(database) is True, "this attack can't succeed at all, so it proves nothing"
