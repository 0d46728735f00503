"""Months of the audit: made ahead, filled late, and detached when they are sealed."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any

import psycopg
import pytest

from leadprotect.audit import partitions
from leadprotect.audit.verification import verify_audit
from leadprotect.errors import InvalidRequest, LockUnavailable, ProtectionUnavailable
from tests.support.auditing import record, said, seal, tamper, verify
from tests.support.database import Database

PARTS = """
SELECT p.name, to_char(p.from_month AT TIME ZONE 'UTC', 'YYYY-MM'), to_char(p.to_month AT TIME ZONE 'UTC', 'YYYY-MM')
FROM {schema}.audit_partitions() AS p ORDER BY p.from_month
"""
ROWS = "SELECT id, lead_id, at, note FROM {schema}.lead_access_audit ORDER BY id"
MONTHS = "SELECT count(*) FROM {schema}.audit_partitions()"


def create(database: Database, **how: int) -> int:
    with database.connect("operator", autocommit=True) as conn:
        return partitions.create_partitions(conn, **how)


def detach(database: Database, before: str) -> list[tuple[str, int]]:
    with database.connect("operator", autocommit=True) as conn:
        return [(gone.table, gone.rows) for gone in partitions.detach(conn, date.fromisoformat(before + "-01"))]


def unguarded(database: Database) -> list[str]:
    """Tables of the audit that lack row security or a guard that always fires; notes of anchors need the first."""
    return database.sql(
        """
        SELECT c.relname::text FROM pg_class AS c
        WHERE c.relnamespace = {schema_name}::regnamespace AND c.relkind IN ('r', 'p')
          AND starts_with(c.relname, 'lead_access_audit')
          AND NOT (c.relrowsecurity AND c.relforcerowsecurity AND (c.relname = 'audit_anchors' OR
            EXISTS (SELECT FROM pg_policy AS p WHERE p.polrelid = c.oid AND p.polname = 'lp_border')
            AND EXISTS (
              SELECT FROM pg_trigger AS t
              WHERE t.tgrelid = c.oid AND t.tgname = 'lp_append_only' AND t.tgenabled = 'A')))
        """
    )


def test_the_coming_months_are_made_once(database: Database) -> None:
    assert database.sql(MONTHS) == [4]
    assert (create(database, ahead=3), create(database, ahead=5), create(database, ahead=5)) == (0, 2, 0)
    assert database.sql(MONTHS) == [6]
    assert unguarded(database) == []


def test_control_a_partition_without_guard_is_found(database: Database) -> None:
    name = database.sql(PARTS)[0][0]
    database.sql(f"DROP TRIGGER lp_append_only ON {{schema}}.{name}")
    assert unguarded(database) == [name]


def test_the_default_partition_becomes_that_of_its_months(database: Database) -> None:
    """Nobody made partitions for a while: the rows get theirs without being copied or deleted."""
    for day in ("2025-03-31", "2025-05-01"):
        record(database, at=day)
    before = database.sql(ROWS)
    place = database.sql(
        "SELECT DISTINCT relfilenode FROM pg_class WHERE oid = '{schema}.lead_access_audit_default'::regclass"
    )
    assert create(database) == 1
    assert ("lead_access_audit_2025_03_to_2025_05", "2025-03", "2025-06") == database.sql(PARTS)[0]
    assert place == database.sql(
        "SELECT relfilenode FROM pg_class WHERE oid = '{schema}.lead_access_audit_2025_03_to_2025_05'::regclass"
    )
    assert database.sql(ROWS) == before
    assert database.sql("SELECT count(*) FROM {schema}.lead_access_audit_default") == [0]
    assert unguarded(database) == []
    record(database, at="2024-01-01")
    assert create(database) == 1
    assert "lead_access_audit_2024_01" == database.sql(PARTS)[0][0]


def test_the_current_month_may_have_been_missing(database: Database) -> None:
    for name, *_ in database.sql(PARTS):
        database.sql(f"DROP TABLE {{schema}}.{name}")
    record(database)
    assert create(database, ahead=1) == 2
    record(database)
    assert len(database.sql("SELECT DISTINCT tableoid FROM {schema}.lead_access_audit")) == 1
    assert database.sql("SELECT count(*) FROM {schema}.lead_access_audit_default") == [0]


def test_months_are_made_while_everybody_records(database: Database) -> None:
    """The current month is missing, so every row goes to the partition that is about to change its role."""
    for name, *_ in database.sql(PARTS):
        database.sql(f"DROP TABLE {{schema}}.{name}")
    ended = threading.Event()

    def write() -> int:
        written = 0
        with database.connect(autocommit=True) as conn:
            while not ended.is_set():
                record(database, conn=conn)
                written += 1
        return written

    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write) for _ in range(3)]
        while len(database.sql("SELECT FROM {schema}.lead_access_audit_default LIMIT 10")) < 10:
            pass
        created = create(database, ahead=1)
        ended.set()
        written = sum(writer.result() for writer in writers)
    assert (created, [written]) == (2, database.sql("SELECT count(*) FROM {schema}.lead_access_audit"))
    assert database.sql("SELECT count(*) FROM {schema}.lead_access_audit_default") == [0]
    assert unguarded(database) == []


def test_rows_of_months_that_others_lie_between_are_copied(database: Database) -> None:
    for day in ("2025-02-01", "2025-04-01"):
        record(database, at=day)
    create(database)
    for day in ("2025-01-15", "2025-06-01", "infinity"):
        record(database, at=day, note=day)
    before = database.sql("SELECT id, at::text, note FROM {schema}.lead_access_audit ORDER BY id")
    seal(database)
    assert create(database) == 2
    assert ["lead_access_audit_2025_01", "lead_access_audit_2025_02_to_2025_04", "lead_access_audit_2025_06"] == [
        name for name, *_ in database.sql(PARTS)[:3]
    ]
    assert database.sql("SELECT id, at::text, note FROM {schema}.lead_access_audit ORDER BY id") == before
    assert database.sql("SELECT at::text FROM {schema}.lead_access_audit_default") == ["infinity"]
    assert unguarded(database) == []
    assert verify(database).intact


def test_more_rows_than_may_be_copied_are_refused_with_the_remedy(database: Database) -> None:
    record(database, at="2025-02-01")
    create(database)
    for day in ("2025-01-15", "2025-06-01"):
        record(database, at=day)
    with pytest.raises(InvalidRequest, match=r"holds 2 rows of months that do not belong together.*--max-moved 2"):
        create(database, max_moved=1)
    assert database.sql("SELECT count(*) FROM {schema}.lead_access_audit_default") == [2]
    assert create(database, max_moved=2) == 2


@pytest.mark.parametrize("ahead", [-1, 121])
def test_a_number_of_months_that_can_t_be_right_is_refused(database: Database, ahead: int) -> None:
    with pytest.raises(InvalidRequest, match=f"months ahead: {ahead} is not between 0 and 120"):
        create(database, ahead=ahead)


# --- retention


def past(database: Database) -> None:
    """January and February 2025 in partitions of their own, each with rows, sealed."""
    record(database, at="2025-01-10")
    create(database)
    record(database, "CH", at="2025-02-10")
    create(database)
    record(database, at="2025-02-11")
    seal(database)


def test_old_months_are_detached_and_stay_readable_and_guarded(database: Database) -> None:
    past(database)
    record(database)
    seal(database)
    assert [("lead_access_audit_2025_01", 1), ("lead_access_audit_2025_02", 2)] == detach(database, "2025-03")
    assert database.sql("SELECT count(*) FROM {schema}.lead_access_audit") == [1]
    assert unguarded(database) == []
    found = verify(database)
    assert (found.intact, sum(chain.rows for chain in found.chains)) == (True, 4)
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        database.sql("DELETE FROM {schema}.lead_access_audit_2025_01")
    assert detach(database, "2025-03") == []


def test_a_detached_month_is_read_by_auditors_of_its_territory_only(database: Database) -> None:
    past(database)
    seal(database)
    detach(database, "2025-03")
    query = "SELECT territory FROM {schema}.lead_access_audit_2025_02"
    seen = {}
    for login in ("auditor_de", "auditor_both", "auditor"):
        with database.connect(login) as conn:
            database.context(conn, None, "DE")
            seen[login] = database.query(conn, query)
    assert {"auditor_de": ["DE"], "auditor_both": ["DE"], "auditor": []} == seen
    with database.connect("seller_de") as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        database.query(conn, query)


def test_a_change_of_a_detached_row_is_found(database: Database) -> None:
    past(database)
    seal(database)
    detach(database, "2025-03")
    tamper(database, "UPDATE {schema}.lead_access_audit_2025_01 SET note = 'x'")
    assert ["DE 1: row 1 was changed"] == said(verify(database))


def test_a_detached_month_may_be_dropped_but_not_one_that_was_not_detached(database: Database) -> None:
    past(database)
    seal(database)
    detach(database, "2025-02")
    database.sql("DROP TABLE {schema}.lead_access_audit_2025_01")
    found = verify(database)
    assert (found.intact, found.chains[-1].retired) == (True, {"2025-01": "lead_access_audit_2025_01"})
    database.sql("DROP TABLE {schema}.lead_access_audit_2025_02")
    assert ["CH 1: row 2 was removed", "DE 2: row 3 was removed"] == said(verify(database))


def test_who_detached_is_in_the_chain(database: Database) -> None:
    past(database)
    seal(database)
    detach(database, "2025-02")
    assert [("lead_access_audit_2025_01", database.profile.login("operator"), 1)] == database.sql(
        "SELECT detached_table, sealed_by, row_count FROM {schema}.lead_access_audit_seals "
        "WHERE territory = 'DE' ORDER BY number DESC LIMIT 1"
    )
    tamper(database, "DELETE FROM {schema}.lead_access_audit_seals WHERE detached_table IS NOT NULL")
    assert verify(database).intact  # the control: as long as the table is there, nothing is lost
    database.sql("DROP TABLE {schema}.lead_access_audit_2025_01")
    assert ["DE 1: row 1 was removed"] == said(verify(database))


def test_a_month_waits_for_transactions_that_may_still_belong_to_it(database: Database) -> None:
    with database.connect() as slow:
        slow.execute("SELECT pg_current_xact_id()")
        past(database)
        with pytest.raises(InvalidRequest, match="lead_access_audit_2025_01 is not sealed to its end"):
            detach(database, "2025-02")
        slow.commit()
    assert [("lead_access_audit_2025_01", 1)] == detach(database, "2025-02")


def test_a_month_with_rows_that_no_seal_names_is_refused(database: Database) -> None:
    past(database)
    record(database, at="2025-01-11")
    with pytest.raises(InvalidRequest, match="lead_access_audit_2025_01 holds 1 rows that no seal names"):
        detach(database, "2025-02")
    assert "lead_access_audit_2025_01" in [name for name, *_ in database.sql(PARTS)]


def test_a_month_that_was_never_sealed_is_refused(database: Database) -> None:
    record(database, at="2025-01-10")
    create(database)
    with pytest.raises(InvalidRequest, match="lead_access_audit_2025_01 is not sealed to its end"):
        detach(database, "2025-02")
    assert database.sql("SELECT count(*) FROM {schema}.lead_access_audit") == [1]


def test_a_month_that_is_not_over_is_refused(database: Database) -> None:
    seal(database)
    with pytest.raises(InvalidRequest, match="2999-01 is still to come"):
        detach(database, "2999-01")
    with database.connect("operator") as conn, pytest.raises(psycopg.errors.Error, match="is not over"):
        database.query(conn, "SELECT {schema}.detach_audit_month(date_trunc('month', now() AT TIME ZONE 'UTC')::date)")
    with database.connect("operator") as conn, pytest.raises(psycopg.errors.Error, match="begins with 1999-01"):
        database.query(conn, "SELECT {schema}.detach_audit_month('1999-01-01')")


def test_postgresql_detaches_nothing_concurrently_beside_a_default_partition(database: Database) -> None:
    """Why detaching takes its short lock on the whole audit."""
    name = database.sql(PARTS)[0][0]
    with pytest.raises(psycopg.errors.ObjectNotInPrerequisiteState, match="default partition exists"):
        database.sql(f"ALTER TABLE {{schema}}.lead_access_audit DETACH PARTITION {{schema}}.{name} CONCURRENTLY")


@pytest.mark.profiles("pg18")
def test_who_stands_in_the_way_is_named(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "_PAUSES_S", (0.01, 0.01))
    past(database)
    seal(database)
    with database.connect() as reader:
        pid = reader.info.backend_pid
        database.query(reader, "SELECT count(*) FROM {schema}.lead_access_audit")
        with pytest.raises(LockUnavailable, match=f"in 3 attempts, blocked by pid {pid}"):
            detach(database, "2025-02")
    assert [("lead_access_audit_2025_01", 1)] == detach(database, "2025-02")


@pytest.mark.parametrize("login", ["seller_de", "manager_de", "auditor_both", "outsider"])
def test_only_an_operator_makes_and_detaches_months(database: Database, login: str) -> None:
    with database.connect(login, autocommit=True) as conn:
        with pytest.raises(ProtectionUnavailable):
            partitions.create_partitions(conn)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            database.query(conn, "SELECT {schema}.detach_audit_month('2025-01-01')")


def test_detached_months_go_to_the_quarantine_and_back(database: Database) -> None:
    past(database)
    seal(database)
    detach(database, "2025-02")
    database.downgrade("base")
    with database.connect("auditor_both") as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        database.query(conn, "SELECT count(*) FROM {quarantine}.lead_access_audit_2025_01")
    with pytest.raises(psycopg.errors.InsufficientPrivilege):
        database.sql("TRUNCATE {quarantine}.lead_access_audit_2025_01")
    database.upgrade()
    found = verify(database)
    assert (found.intact, sum(chain.rows for chain in found.chains)) == (True, 3)
    assert unguarded(database) == []


def scans(database: Database, conn: psycopg.Connection[Any]) -> set[str]:
    """Months whose partitions this transaction has read."""
    query = """
        SELECT right(c.relname, 7) FROM pg_class AS c
        WHERE c.relnamespace = {schema_name}::regnamespace AND c.relkind = 'r'
          AND c.relname ~ '^lead_access_audit_[0-9]' AND (pg_stat_get_xact_numscans(c.oid) > 0 OR EXISTS (
            SELECT FROM pg_index AS i WHERE i.indrelid = c.oid AND pg_stat_get_xact_numscans(i.indexrelid) > 0))
        """
    return set(database.query(conn, query))


def test_rows_and_gaps_are_looked_for_in_the_months_asked_alone(database: Database) -> None:
    """What happened in February must not take a reading of all years; numbers of neighbours mix at midnight."""
    for day in ("2025-01-10", "2025-02-01", "2025-01-31", "2025-02-20", "2025-03-05"):
        record(database, at=day)
        database.sql("SELECT nextval('{schema}.lead_access_audit_id_seq')")
        create(database)
    for _ in range(2):  # the first run can't know yet until when all is sealed
        seal(database)
    found = {}
    january, february, march = (date(2025, month, 1) for month in (1, 2, 3))
    for since, until in ((None, None), (january, february), (february, march), (march, None)):
        with database.connect("auditor_both") as conn:
            judged = verify_audit(conn, since=since, until=until)
            read = scans(database, conn)
        (chain,) = (chain for chain in judged.chains if chain.territory == "DE")
        gaps = [number for gap in judged.gaps for number in gap]
        found[since] = (judged.intact, chain.rows, gaps, sorted(name for name in read if name < "2025_04"))
    everything = ["2025_01", "2025_02", "2025_03"]
    assert {
        None: (True, 5, [2, 4, 6, 8, 10], everything),
        # the end of a month is the first moment of the next, so that is asked for by its time, too
        january: (True, 2, [2, 4], everything[:2]),
        february: (True, 2, [4, 6, 8], everything[1:]),
        march: (True, 1, [8, 10], everything[2:]),
    } == found
