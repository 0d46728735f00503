"""Nothing recorded can be changed, by anybody, on the parent or on a partition."""

from __future__ import annotations

import psycopg
import pytest

from tests.support.database import Database

CHANGES = ("UPDATE {table} SET reason = 'owner'", "DELETE FROM {table}", "TRUNCATE {table}")


def recorded(database: Database) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with database.connect("seller_de") as conn:
        database.context(conn, database.user(1), "DE")
        database.query(conn, "SELECT {schema}.record_edit_attempt(%s)", lead)


def partition_with_rows(database: Database) -> str:
    return str(database.sql("SELECT tableoid::regclass::text FROM {schema}.lead_access_audit")[0])


def refusals(database: Database, *before: str) -> int:
    """How many of the changes are refused, as superuser, on the parent and on the partition."""
    refused = 0
    for table in (database.text("{schema}.lead_access_audit"), partition_with_rows(database)):
        for change in CHANGES:
            with database.connect() as conn:
                for statement in before:
                    conn.execute(statement)
                try:
                    conn.execute(change.format(table=table))
                except psycopg.errors.InsufficientPrivilege:
                    refused += 1
                conn.rollback()
    return refused


def test_not_even_a_superuser_changes_the_audit(database: Database) -> None:
    recorded(database)
    assert refusals(database) == 6


def test_the_guards_hold_in_a_session_that_replicates(database: Database) -> None:
    recorded(database)
    assert refusals(database, "SET session_replication_role = replica") == 6


def test_control_without_the_guards_all_changes_pass(database: Database) -> None:
    recorded(database)
    for table in database.sql("SELECT relid::regclass::text FROM pg_partition_tree('{schema}.lead_access_audit')"):
        database.sql(f"DROP TRIGGER lp_append_only ON {table}")
    assert refusals(database) == 0


def test_deleting_a_lead_keeps_its_history(database: Database) -> None:
    recorded(database)
    database.sql("DELETE FROM {leads}")
    assert len(database.audit()) >= 1


def test_facts_come_from_the_server_and_not_from_arguments(database: Database) -> None:
    recorded(database)
    facts = "login, at <= clock_timestamp() AND at > clock_timestamp() - interval '1 min', transaction_id IS NOT NULL"
    assert database.audit(facts) == [(database.profile.login("seller_de"), True, True)]


def test_a_service_can_t_insert_a_row_of_its_own(database: Database) -> None:
    with database.connect("seller_de") as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        database.query(
            conn,
            "INSERT INTO {schema}.lead_access_audit (lead_id, role, action, outcome, reason) "
            "VALUES (%s, 'x', 'EDIT', 'ALLOW', 'owner')",
            database.new_id(),
        )


def test_rows_go_to_the_month_s_partition_and_next_months_are_ready(database: Database) -> None:
    recorded(database)
    month = database.sql("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')")[0]
    assert partition_with_rows(database).strip('"').endswith(month)
    assert database.sql("SELECT {schema}.create_audit_partitions(5)") == [2]
