"""Rows for the audit, and what somebody with every right does to it afterwards."""

from __future__ import annotations

from typing import Any

import psycopg
import pytest

from leadprotect.audit import seals, verification
from tests.support.database import Database

INSERT = """
INSERT INTO {schema}.lead_access_audit (lead_id, at, role, territory, action, outcome, reason, note)
VALUES (%s, coalesce(%s::timestamptz, clock_timestamp()), 'none', %s, 'EDIT', 'DENY', 'not_owner', %s) RETURNING id
"""


def record(
    database: Database,
    territory: str | None = "DE",
    *,
    at: str | None = None,
    note: str | None = None,
    conn: psycopg.Connection[Any] | None = None,
) -> int:
    """Record an attempt as of `at`, which no service could choose; returns its number."""
    values = (database.new_id(), at, territory, note)
    found = database.query(conn, INSERT, *values) if conn else database.sql(INSERT, *values)
    return int(found[0])


def raised_denial(database: Database) -> str:
    """A denial whose row is rolled back with the exception; returns the line that it leaves in the server's log."""
    lead = database.lead("DE", owner=database.user(1))
    said: list[str] = []
    with database.connect("seller_de") as conn:
        conn.add_notice_handler(lambda notice: said.append(notice.message_primary or ""))
        conn.execute("SET client_min_messages = log")  # what goes to the log comes here, too
        database.context(conn, database.user(2), "DE")
        with pytest.raises(psycopg.Error, match="access to the lead denied"):
            database.query(conn, "SELECT {schema}.assert_edit_and_audit(%s)", lead)
    (line,) = (line for line in said if line.startswith("leadprotect denial"))
    return line


def seal(database: Database, *, rows_per_seal: int = seals.ROWS_PER_SEAL) -> dict[str | None, int]:
    """Seal as the operator; the number of rows that were sealed, by chain."""
    with database.connect("operator", autocommit=True) as conn:
        return {head.territory: head.sealed for head in seals.seal(conn, rows_per_seal=rows_per_seal)}


def verify(database: Database, login: str | None = "auditor_both", **how: Any) -> verification.Verification:
    with database.connect(login) as conn:
        return verification.verify_audit(conn, **how)


def said(found: verification.Verification) -> list[str]:
    """Findings as one line each."""
    return [f"{finding.territory} {finding.seal}: {finding.what}" for finding in found.findings]


def tamper(database: Database, statement: str, *params: Any) -> list[Any]:
    """As superuser, with every guard of the audit dropped."""
    for table in database.sql(
        "SELECT c.oid::regclass::text FROM pg_class AS c JOIN pg_trigger AS t ON t.tgrelid = c.oid "
        "WHERE t.tgname = 'lp_append_only' AND c.relnamespace = {schema_name}::regnamespace"
    ):
        database.sql(f"DROP TRIGGER lp_append_only ON {table}")
    return database.sql(statement, *params)
