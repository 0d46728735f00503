"""Role x object x verb: what is not in this table is denied to everybody."""

from __future__ import annotations

import psycopg
import pytest

from tests.support.database import Database
from tests.support.profiles import LOGINS

pytestmark = pytest.mark.everywhere("a defence that one version lacks is an open door there")

VERBS = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "REFERENCES", "TRIGGER")

READERS = {
    "territories": {"app", "auditor", "operator", "manager"},
    "territory_vat_rates": {"app", "auditor", "operator", "manager"},
    "user_lead_assignments": {"app", "auditor", "manager"},
    "user_lead_assignment_history": {"auditor", "manager"},
    "lead_protection_rules": {"auditor", "manager"},
    "lead_handovers": {"auditor", "manager"},
    "lead_access_audit": {"auditor"},
    "lead_access_audit_seals": {"auditor"},
    "audit_anchors": {"auditor"},
    "v_lead_protection": {"app", "auditor", "manager"},
    "backfill_jobs": {"operator"},
    "revision_undo": {"operator"},
    "backfill_chunks": {"operator"},
    "backfill_deferred": {"operator"},
    "unsettled_leads": {"operator"},
    "accepted_conditions": {"operator"},
    "guard_runs": {"operator"},
}
"""Table or view -> the offices that may SELECT; no office may do anything else."""

EVERYBODY = {"app", "auditor", "manager"}
PUBLIC = {
    "admitted_territory",
    "all_territories",
    "asked_by",
    "claimed",
    "inside",
    "own_border",
    "territory_role",
    "territory_roles",
}
"""What policies TO PUBLIC call for whoever asks; nobody else has the right to use our schema."""

CALLERS = {
    "acting_role": {"app", "auditor", "manager", "operator"},
    "is_member": EVERYBODY,
    "parse_user": EVERYBODY,
    "context": EVERYBODY,
    "claiming": EVERYBODY,
    "set_context": EVERYBODY,
    "decide": EVERYBODY,
    "can_edit_lead": EVERYBODY,
    "explain_edit": EVERYBODY,
    "editable_among": EVERYBODY,
    "has_rules": EVERYBODY,
    "protection_page": EVERYBODY,
    "editable_leads": {"app", "manager"},
    "record_edit_attempt": {"app", "manager"},
    "record_denial": {"app", "manager"},
    "allow_edit": {"app", "manager"},
    "allow_edits": {"app", "manager"},
    "assert_edit_and_audit": {"app", "manager"},
    "change_owner": {"app", "manager"},
    "change_owners": {"app", "manager"},
    "change_rule": {"app", "manager"},
    "change_sharing": {"app", "manager"},
    "claim_lead": {"app", "manager"},
    "release_lead": {"app", "manager"},
    "share_lead": {"app", "manager"},
    "unshare_lead": {"app", "manager"},
    "lead_shares": {"app", "manager"},
    "assign_lead": {"manager"},
    "transfer_lead": {"manager"},
    "grant_protection": {"manager"},
    "revoke_protection": {"manager"},
    "send_lead": {"manager"},
    "receive_lead": {"manager"},
    "hand_over": {"manager"},
    "standing_handovers": {"operator", "auditor", "manager"},
    "note_anchor": {"auditor"},
    "territory_terms": {"app", "auditor", "operator", "manager"},
    "create_audit_partitions": {"operator"},
    "audit_partitions": {"auditor", "operator"},
    "seal_audit": {"operator"},
    "detach_audit_month": {"operator"},
    "audit_origin": {"auditor"},
    "audit_number_gaps": {"auditor"},
    "proved_denials": {"auditor"},
    "who_could_edit": {"auditor", "manager"},
    "unowned_leads": {"operator"},
    "unowned_count": {"operator"},
    "column_code": {"operator"},
    "owner_column_differs": {"operator"},
    "settle_owner_column": {"operator"},
    "unreadable": {"operator"},
    "gate_conditions": {"operator"},
    "shadow_run": {"operator"},
    "shadow_noted": {"operator"},
    "shadow_saw": {"operator"},
    "shadow_fold": {"operator"},
    "guard_beat": {"operator"},
    "guard_release": {"operator"},
}
"""Function -> the offices that may call it; the backfill_* functions are the operator's."""


def offices(login: str) -> set[str]:
    return set(LOGINS[login])


def versions_elsewhere(database: Database) -> bool:
    return database.settings.version_table_schema != database.settings.schema


def table_privileges(database: Database, login: str) -> set[tuple[str, str]]:
    found = database.sql(
        """
        SELECT c.relname, verb FROM pg_class AS c, unnest(%s::text[]) AS verb
        WHERE c.relnamespace = to_regnamespace(%s) AND c.relkind IN ('r', 'p', 'v', 'm')
          AND has_table_privilege(%s, c.oid, verb)
        """,
        list(VERBS),
        f'"{database.settings.schema}"',
        database.profile.login(login),
    )
    return set(found)


def callable_functions(database: Database, login: str) -> set[str]:
    found = database.sql(
        """
        SELECT p.proname FROM pg_proc AS p
        WHERE p.pronamespace = to_regnamespace(%s) AND has_function_privilege(%s, p.oid, 'EXECUTE')
        """,
        f'"{database.settings.schema}"',
        database.profile.login(login),
    )
    return set(found)


@pytest.mark.parametrize("login", LOGINS)
def test_a_login_has_the_table_privileges_of_its_offices_and_no_other(database: Database, login: str) -> None:
    readers = READERS | ({} if versions_elsewhere(database) else {database.settings.version_table: {"operator"}})
    expected = {(name, "SELECT") for name, allowed in readers.items() if allowed & offices(login)}
    assert table_privileges(database, login) == expected


@pytest.mark.parametrize("login", LOGINS)
def test_a_login_may_call_the_functions_of_its_offices_and_no_other(database: Database, login: str) -> None:
    expected = PUBLIC | {name for name, callers in CALLERS.items() if callers & offices(login)}
    found = callable_functions(database, login)
    assert {name for name in found if not name.startswith("backfill_")} == expected
    assert any(name.startswith("backfill_") for name in found) == ("operator" in offices(login))


def test_control_a_stray_grant_is_found(database: Database) -> None:
    database.sql("GRANT INSERT ON {schema}.lead_access_audit TO {app}")
    database.sql("GRANT EXECUTE ON FUNCTION {schema}.gate_conditions(interval, text, name[], text[]) TO PUBLIC")
    database.sql("GRANT USAGE ON SCHEMA {schema} TO PUBLIC")
    assert ("lead_access_audit", "INSERT") in table_privileges(database, "seller_de")
    assert "gate_conditions" in callable_functions(database, "outsider")


def unsecured_tables(database: Database) -> list[str]:
    """Tables of ours but Alembic's, partitions included, without forced row security or the standard policies."""
    return database.sql(
        """
        SELECT c.oid::regclass::text FROM pg_class AS c
        WHERE c.relnamespace = to_regnamespace(%s) AND c.relkind IN ('r', 'p') AND c.relname <> %s
          AND NOT (c.relrowsecurity AND c.relforcerowsecurity
            AND EXISTS (SELECT FROM pg_policy AS p WHERE p.polrelid = c.oid AND p.polname = 'lp_inside')
            AND (c.relname = 'territories'
              OR NOT EXISTS (SELECT FROM pg_attribute AS a WHERE a.attrelid = c.oid AND a.attname = 'territory')
              OR EXISTS (SELECT FROM pg_policy AS p
                         WHERE p.polrelid = c.oid AND p.polname = 'lp_border' AND NOT p.polpermissive)))
        """,
        *(f'"{database.settings.schema}"', database.settings.version_table),
    )


def test_every_table_is_secured_for_its_owner_too(database: Database) -> None:
    assert unsecured_tables(database) == []


@pytest.mark.parametrize(
    "damage",
    [
        "CREATE TABLE {schema}.notes (territory text)",
        "ALTER TABLE {schema}.user_lead_assignments NO FORCE ROW LEVEL SECURITY",
        "ALTER TABLE {schema}.lead_access_audit_default DISABLE ROW LEVEL SECURITY",
        "DROP POLICY lp_border ON {schema}.lead_protection_rules",
    ],
)
def test_control_an_unsecured_table_is_found(database: Database, damage: str) -> None:
    database.sql(damage)
    assert len(unsecured_tables(database)) == 1


def unpinned_functions(database: Database) -> list[str]:
    """Definer functions whose names could be shadowed: no pinned search_path, no body parsed at creation."""
    return database.sql(
        """
        SELECT p.oid::regprocedure::text FROM pg_proc AS p
        WHERE p.pronamespace = to_regnamespace(%s) AND p.prosecdef AND p.prosqlbody IS NULL
          AND NOT coalesce(p.proconfig @> ARRAY['search_path=pg_catalog, pg_temp'], false)
        """,
        f'"{database.settings.schema}"',
    )


def test_every_definer_function_pins_its_names(database: Database) -> None:
    assert unpinned_functions(database) == []
    database.sql("ALTER FUNCTION {schema}.decide({lead_id_type}, text, text) RESET search_path")
    assert len(unpinned_functions(database)) == 1


def test_our_roles_have_no_power_of_their_own(database: Database) -> None:
    powers = """
        SELECT rolname FROM pg_roles
        WHERE rolname LIKE %s AND NOT rolcanlogin
          AND (rolsuper OR rolbypassrls OR rolcreaterole OR rolcreatedb OR rolreplication)
        """
    assert database.sql(powers, database.settings.schema + "\\_%") == []


@pytest.mark.parametrize("table", ["user_lead_assignments", "lead_protection_rules", "lead_access_audit"])
def test_no_service_writes_a_table_of_ours(database: Database, table: str) -> None:
    with database.connect("seller_de", autocommit=True) as conn:
        for statement in (f"INSERT INTO {{schema}}.{table} DEFAULT VALUES", f"DELETE FROM {{schema}}.{table}"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                database.query(conn, statement)
