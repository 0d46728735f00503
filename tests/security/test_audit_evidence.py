"""Whoever owns the server can change a record; no one can do it unseen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest

from leadprotect.audit import verification
from leadprotect.audit.findings import KeptSeal
from leadprotect.errors import ProtectionUnavailable
from tests.support.auditing import raised_denial, record, said, seal, tamper, verify
from tests.support.database import Database

if TYPE_CHECKING:
    from collections.abc import Callable

DAY = "2025-03-{:02}"


def sealed_audit(database: Database) -> None:
    """Rows 1 to 4 of DE and 5 of CH in a first run, 6 of DE in a second, 7 not sealed yet."""
    for day in range(1, 5):
        record(database, at=DAY.format(day))
    record(database, "CH", at=DAY.format(5))
    seal(database, rows_per_seal=3)
    record(database)
    seal(database)
    record(database)


ROW_TAMPERING = {
    "UPDATE {schema}.lead_access_audit SET reason = 'owner', outcome = 'ALLOW' WHERE id = 2": [
        "DE 1: row 2 was changed"
    ],
    "UPDATE {schema}.lead_access_audit SET note = '' WHERE id IN (1, 3, 4)": [
        "DE 1: rows 1, 3 were changed",
        "DE 2: row 4 was changed",
    ],
    "UPDATE {schema}.lead_access_audit SET at = at - interval '1 second' WHERE id = 6": ["DE 3: row 6 was changed"],
    "UPDATE {schema}.lead_access_audit SET transaction_id = '3' WHERE id = 2": ["DE 1: row 2 was changed"],
    "DELETE FROM {schema}.lead_access_audit WHERE id = 2": ["DE 1: row 2 was removed"],
    "DELETE FROM {schema}.lead_access_audit WHERE id < 5": [
        "DE 1: rows 1-3 were removed",
        "DE 2: row 4 was removed",
    ],
    "TRUNCATE {schema}.lead_access_audit_default": [
        "CH 1: row 5 was removed",
        "DE 1: rows 1-3 were removed",
        "DE 2: row 4 was removed",
    ],
    "UPDATE {schema}.lead_access_audit SET territory = 'CH' WHERE id = 2": [
        "CH None: row 2 was inserted into a time that was sealed before",
        "DE 1: row 2 was removed",
    ],
    "UPDATE {schema}.lead_access_audit SET at = 'infinity' WHERE id = 2": [
        "DE None: row 2 was inserted into a time that was sealed before",
        "DE 1: row 2 was removed",
    ],
}
"""What is done to rows -> what verification says."""


@pytest.mark.parametrize("change", ROW_TAMPERING)
def test_a_change_of_sealed_rows_is_found_and_named(database: Database, change: str) -> None:
    sealed_audit(database)
    assert said(verify(database)) == []
    tamper(database, change)
    assert ROW_TAMPERING[change] == said(verify(database))


@pytest.mark.parametrize("change", ROW_TAMPERING)
def test_control_the_guards_refuse_the_same_changes(database: Database, change: str) -> None:
    sealed_audit(database)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        database.sql(change)


@pytest.mark.parametrize("change", ROW_TAMPERING)
def test_control_without_a_seal_nothing_is_found(database: Database, change: str) -> None:
    for day in range(1, 7):
        record(database, "CH" if day == 5 else "DE", at=DAY.format(day))
    tamper(database, change)
    found = verify(database)
    assert (found.intact, {chain.seals for chain in found.chains}) == (True, {0})


FORGED = """
INSERT INTO {schema}.lead_access_audit (lead_id, at, id, role, territory, action, outcome, reason, transaction_id)
VALUES (%s, %s, {id}, 'none', 'DE', 'EDIT', 'ALLOW', 'owner', {transaction})
"""


def forge(
    database: Database, *, at: str, number: str = "nextval('{schema}.lead_access_audit_id_seq')", xid: str
) -> None:
    statement = FORGED.replace("{id}", number).replace("{transaction}", xid)
    database.sql(statement, database.new_id(), at)


@pytest.mark.parametrize(
    ("at", "xid"),
    [
        ("2025-03-02", "pg_current_xact_id()"),
        ("2025-03-02", "'700'::xid8"),
        ("2001-01-01", "pg_current_xact_id()"),
        ("infinity", "'700'::xid8"),
    ],
    ids=["backdated", "backdated with an old transaction", "long ago", "never"],
)
def test_a_forged_row_in_a_sealed_time_is_found(database: Database, at: str, xid: str) -> None:
    sealed_audit(database)
    forge(database, at=at, xid=xid)
    assert ["DE None: row 8 was inserted into a time that was sealed before"] == said(verify(database))
    seal(database)
    found = verify(database)
    assert ["row 8 was inserted into a time that was sealed before"] == [one.what for one in found.findings]


def test_a_forged_row_between_two_runs_is_found(database: Database) -> None:
    """It claims to be older than the run before it, but its transaction is younger."""
    seal(database)
    recent = str(database.sql("SELECT (now() - interval '90 seconds')::text")[0])
    seal(database)
    forge(database, at=recent, xid="pg_current_xact_id()")
    seal(database)
    assert [] != said(verify(database))


def test_a_number_that_stands_twice_is_found(database: Database) -> None:
    sealed_audit(database)
    forge(database, at="2025-03-02", number="2", xid="pg_current_xact_id()")
    assert ["DE 1: row 2 was changed"] == said(verify(database))


SEALS = "{schema}.lead_access_audit_seals"
CHANGED, NEWEST = (
    "the seal itself was changed",
    "left no seal here, but in another chain: the newest seals were removed",
)
SEAL_TAMPERING = {
    f"UPDATE {SEALS} SET row_count = 0, ids = '{{}}' WHERE territory = 'DE' AND number = 1": f"DE 1: {CHANGED}",
    f"UPDATE {SEALS} SET row_checks = '' WHERE territory = 'DE' AND number = 2": f"DE 2: {CHANGED}",
    f"UPDATE {SEALS} SET sealed_by = 'x' WHERE territory IS NULL AND number = 1": f"None 1: {CHANGED}",
    f"UPDATE {SEALS} SET previous = hash WHERE territory = 'DE' AND number = 3": (
        "DE 3: does not continue the seal before it"
    ),
    f"DELETE FROM {SEALS} WHERE territory = 'DE' AND number = 2": "DE 3: seal 2 was removed before it",
    f"DELETE FROM {SEALS} WHERE territory = 'DE' AND number = 1": "DE 2: seal 1 was removed before it",
    f"DELETE FROM {SEALS} WHERE territory = 'DE' AND number = 3": f"DE None: run 2 {NEWEST}",
    f"DELETE FROM {SEALS} WHERE territory IS NULL": f"None None: runs 1-2 {NEWEST}",
    f"DELETE FROM {SEALS} WHERE territory = 'CH'": "CH None: row 5 was inserted into a time that was sealed before",
}
"""What is done to seals -> one of the things that verification says."""


@pytest.mark.parametrize("change", SEAL_TAMPERING)
def test_a_change_of_seals_is_found(database: Database, change: str) -> None:
    sealed_audit(database)
    tamper(database, change)
    assert SEAL_TAMPERING[change] in said(verify(database))


@pytest.mark.parametrize("change", [*SEAL_TAMPERING, f"TRUNCATE {SEALS}"])
def test_control_the_guards_refuse_changes_of_seals(database: Database, change: str) -> None:
    sealed_audit(database)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        database.sql(change)


REMAKE = """
DELETE FROM {schema}.lead_access_audit_seals WHERE run = 2;
DELETE FROM {schema}.lead_access_audit WHERE id = 6
"""


def test_a_cut_off_end_is_found_only_with_a_hash_kept_elsewhere(database: Database) -> None:
    sealed_audit(database)
    (kept,) = database.sql(f"SELECT encode(hash, 'hex') FROM {SEALS} WHERE territory = 'DE' AND number = 3")
    tamper(database, "SELECT 1")
    database.sql_script(REMAKE)
    assert verify(database).intact
    assert ["DE 3: this seal was kept elsewhere, and is gone"] == said(
        verify(database, known={KeptSeal("DE", 3, kept)})
    )
    seal(database)
    assert verify(database).intact
    assert ["DE 3: this seal is not the one that was kept elsewhere"] == said(
        verify(database, known={KeptSeal("DE", 3, kept)})
    )


def test_an_auditor_of_one_territory_checks_that_one(database: Database) -> None:
    sealed_audit(database)
    tamper(database, "UPDATE {schema}.lead_access_audit SET note = 'x' WHERE id IN (2, 5)")
    found = verify(database, "auditor_de")
    assert ["DE 1: row 2 was changed"] == said(found)
    verdicts = {chain.territory: chain.verdict for chain in found.chains}
    assert {None: "intact", "CH": "not judged", "DE": "tampered"} == verdicts
    assert (("CH",), "tampered") == (found.left_out, found.verdict)
    found = verify(database, "auditor")
    assert (("CH", "DE"), "not judged", False) == (found.left_out, found.verdict, found.intact)
    assert ["CH 1: row 5 was changed", "DE 1: row 2 was changed"] == said(verify(database, None))


def test_a_login_that_is_a_service_as_well_checks_rows_without_territory_too(database: Database) -> None:
    sealed_audit(database)
    record(database, None)
    seal(database)
    login = f"{database.name}_both"
    roles = ", ".join(f'"{database.settings.role(name)}"' for name in ("app", "auditor", "de"))
    database.sql(f'CREATE ROLE "{login}" LOGIN IN ROLE {roles}')
    try:
        with psycopg.connect(database.server.url(database.name, login)) as conn:
            found = verification.verify_audit(conn)
        assert ([], ("CH",)) == (said(found), found.left_out)
    finally:
        database.sql(f'DROP ROLE "{login}"')


@pytest.mark.parametrize("login", ["seller_de", "manager_de", "operator", "outsider"])
def test_only_an_auditor_verifies(database: Database, login: str) -> None:
    with database.connect(login) as conn, pytest.raises(ProtectionUnavailable):
        verification.verify_audit(conn)


# --- numbers without a row


def test_a_denial_that_was_raised_leaves_a_gap_that_the_log_explains(database: Database) -> None:
    record(database)
    lines = [raised_denial(database), raised_denial(database)]
    record(database)
    seal(database)
    found = verify(database)
    assert (found.intact, found.gaps, found.explained) == (True, (range(2, 4),), 0)
    log = [f"LOG:  {lines[1]}\n", "LOG:  checkpoint 2\n"]
    found = verify(database, log=log)
    assert (found.gaps, found.explained) == ((range(2, 3),), 1)
    quoted = lines[0].replace('"', '""')
    assert verify(database, log=[f'2026-01-01 00:00:00 UTC,"{quoted}",\n']).gaps == (range(3, 4),)


def test_only_what_our_function_said_in_this_database_explains_a_gap(
    database: Database, make_database: Callable[..., Database]
) -> None:
    """Any login can write a line that looks the same, and other databases of the server have denials, too."""
    lines = [raised_denial(database)]
    elsewhere = raised_denial(make_database("head"))
    seal(database)
    forged = ["leadprotect denial 1: ", lines[0].rsplit(",", 1)[0], elsewhere, lines[0].replace("EDIT", "VIEW")]
    for line in forged:
        found = verify(database, log=[f"LOG:  {line}\n"])
        assert (found.gaps, found.explained) == ((range(1, 2),), 0), line
    assert verify(database, log=[f"LOG:  {lines[0]}\n"]).explained == 1


def test_a_name_of_an_application_hides_no_denial_in_the_log(database: Database) -> None:
    """A login chooses it, log_line_prefix writes it before the message, and a log in CSV after it."""
    line = raised_denial(database)
    seal(database)
    for before in ("leadprotect denial 5: ", "leadprotect denial 5: lead '"):
        for after in ("", f", proof {32 * '0'}", f"', note 'x', proof {32 * '0'}"):
            written = f'seller@{before} LOG:  {line}",,,"{after}'
            assert verify(database, log=[written]).explained == 1, written
            # control: without the end of the message nothing around it explains it
            assert verify(database, log=[written.replace(line, line[:-60])]).explained == 0, written


def test_a_line_of_the_log_that_begins_denials_without_end_is_read_to_its_end(database: Database) -> None:
    """Any login can write one of any length: read again from each begin, it would keep the verification for hours."""
    line = raised_denial(database)
    seal(database)
    endless = ["leadprotect denial 1: " * 50_000, "leadprotect denial 1: lead '" * 50_000]
    assert verify(database, log=[*endless, line]).explained == 1


def test_control_rows_leave_no_gap(database: Database) -> None:
    for territory in ("DE", "CH", None):
        record(database, territory)
    seal(database)
    record(database)
    assert verify(database).gaps == ()


def test_a_number_of_an_open_transaction_is_no_gap_yet(database: Database) -> None:
    with database.connect() as conn:
        record(database, conn=conn)
        record(database)
        seal(database)
        assert verify(database).gaps == ()
        conn.rollback()
    assert verify(database).gaps == (range(1, 2),)


def test_a_row_removed_before_it_was_sealed_is_a_gap(database: Database) -> None:
    record(database)
    gone = record(database)
    tamper(database, "DELETE FROM {schema}.lead_access_audit WHERE id = %s", gone)
    seal(database)
    found = verify(database)
    assert (found.intact, found.gaps) == (True, (range(gone, gone + 1),))
