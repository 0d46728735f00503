"""Every recorded row is sealed exactly once, in whatever order transactions commit."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from leadprotect.audit import chains, seals, verification
from leadprotect.errors import ConnectionUnusable, InvalidRequest, ProtectionUnavailable
from tests.support.auditing import record, said, seal, tamper, verify
from tests.support.database import Database

TIMES_SEALED = """
SELECT a.id, (SELECT count(*) FROM {schema}.lead_access_audit_seals AS s
              WHERE s.ids @> a.id AND s.territory IS NOT DISTINCT FROM a.territory)
FROM {schema}.lead_access_audit AS a ORDER BY a.id
"""


def test_a_run_seals_what_is_new_in_every_chain(database: Database) -> None:
    for territory in ("DE", "DE", "CH", None):
        record(database, territory)
    assert {None: 1, "CH": 1, "DE": 2} == seal(database)
    assert {None: 0, "CH": 0, "DE": 0} == seal(database)
    record(database, "CH")
    assert {None: 0, "CH": 1, "DE": 0} == seal(database)
    found = verify(database)
    assert [(None, 3, 1, 0), ("CH", 3, 2, 0), ("DE", 3, 2, 0)] == [
        (chain.territory, chain.seals, chain.rows, chain.pending) for chain in found.chains
    ]
    assert found.intact


def test_a_row_that_commits_late_is_sealed_once_though_its_number_is_lower(database: Database) -> None:
    with database.connect() as slow:
        late = record(database, conn=slow)
        early = record(database)
        assert late < early
        assert seal(database)["DE"] == 1
        assert database.sql(TIMES_SEALED) == [(early, 1)]
        slow.commit()
    assert seal(database)["DE"] == 1
    assert database.sql(TIMES_SEALED) == [(late, 1), (early, 1)]
    assert verify(database).intact


def test_a_transaction_that_stays_open_over_many_runs_holds_nobody_up(database: Database) -> None:
    with database.connect() as slow:
        late = [record(database, conn=slow)]
        for _ in range(3):
            record(database)
            assert seal(database)["DE"] == 1
            late.append(record(database, conn=slow))
        slow.commit()
    assert seal(database)["DE"] == len(late)
    assert {1} == {times for _, times in database.sql(TIMES_SEALED)}
    assert verify(database).intact


def test_what_is_rolled_back_is_never_sealed(database: Database) -> None:
    with database.connect() as conn:
        record(database, conn=conn)
        assert seal(database)["DE"] == 0
        conn.rollback()
    assert seal(database)["DE"] == 0


def test_writers_and_sealers_at_once_leave_every_row_in_one_seal(database: Database) -> None:
    ended = threading.Event()

    def write(number: int) -> None:
        with database.connect() as conn:
            for step in range(30):
                for _ in range(step % 3 + 1):
                    record(database, ("DE", "CH", None)[number % 3], conn=conn)
                (conn.rollback if step % 5 == number else conn.commit)()

    def seal_on() -> int:
        runs = 0
        while runs < 2 or not ended.is_set():  # at least twice, however slow the machine is
            seal(database, rows_per_seal=7)
            runs += 1
        return runs

    with ThreadPoolExecutor() as pool:
        sealers = [pool.submit(seal_on) for _ in range(2)]
        for writer in [pool.submit(write, number) for number in range(4)]:
            writer.result()
        ended.set()
        assert min(sealer.result() for sealer in sealers) > 1
    seal(database)
    times = database.sql(TIMES_SEALED)
    assert len(times) > 100
    assert {1} == {count for _, count in times}
    found = verify(database)
    assert (found.intact, sum(chain.rows for chain in found.chains)) == (True, len(times))


def test_a_run_that_begins_while_somebody_verifies_is_no_tampering(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    record(database)
    seal(database)
    runs = chains.runs

    def meanwhile(*asked: Any) -> list[chains.SealRun]:
        record(database)
        seal(database)
        return runs(*asked)

    monkeypatch.setattr(chains, "runs", meanwhile)
    found = verify(database)
    assert ([], 1) == (said(found), max(chain.last_run or 0 for chain in found.chains))
    monkeypatch.undo()
    found = verify(database)
    assert ([], 4) == (said(found), max(chain.last_run or 0 for chain in found.chains))


def test_every_kind_of_connection_verifies(database: Database) -> None:
    for note in ("100 %", "%s and %(name)s", None):
        record(database, note=note)
    seal(database)

    async def run() -> str:
        query = {"host": database.server.host, "user": database.profile.login("auditor_both")}
        engine = create_async_engine(f"postgresql+psycopg:///{database.name}", connect_args=query)
        try:
            async with engine.connect() as conn:
                return (await conn.run_sync(verification.verify_audit)).verdict
        finally:
            await engine.dispose()

    def verdicts() -> set[str]:
        with database.engine("auditor_both") as engine, engine.connect() as conn, Session(engine) as session:
            return {asyncio.run(run()), *(verification.verify_audit(each).verdict for each in (conn, session))}

    assert {"intact"} == verdicts()
    tamper(database, "UPDATE {schema}.lead_access_audit SET note = '100' WHERE id = 1")
    assert {"tampered"} == verdicts()


def test_a_seal_that_ends_after_others_began_is_compared_whole(database: Database) -> None:
    """Seals overlap where transactions end in another order than their rows have numbers."""
    with database.connect() as slow, database.connect() as slower:
        late = [record(database, conn=slow), record(database, conn=slower)]
        record(database)
        seal(database)
        late += [record(database, conn=slow), record(database, conn=slower)]
        slow.commit()
        record(database)
        seal(database)
        slower.commit()
    seal(database)
    assert ([], 6) == (said(found := verify(database)), sum(chain.rows for chain in found.chains))
    tamper(database, "UPDATE {schema}.lead_access_audit SET reason = 'owner' WHERE id = ANY (%s)", late)
    assert [f"DE 2: rows {late[0]}, {late[2]} were changed", f"DE 3: rows {late[1]}, {late[3]} were changed"] == said(
        verify(database)
    )


def test_a_seal_holds_so_many_rows_of_one_month(database: Database) -> None:
    for day in ("2025-01-30", "2025-01-31", "2025-02-01", "2025-02-02", "2025-02-03"):
        record(database, at=day)
    assert seal(database, rows_per_seal=2)["DE"] == 5
    assert [("2025-01-01", 2), ("2025-02-01", 2), ("2025-02-01", 1)] == database.sql(
        "SELECT month::text, row_count FROM {schema}.lead_access_audit_seals WHERE territory = 'DE' ORDER BY number"
    )
    assert verify(database).intact


def test_texts_of_every_kind_are_hashed_alike_by_database_and_library(database: Database) -> None:
    for note in (
        '"quoted" \\ back\\slash',
        "tab\t, line\n, \x01 and \x7f",
        "Zürich, 東京, 😀, \u2028",
        "",
        "%s {x} $1",
        "null",
        "Null ",
        "plain-text_of.no:quotes",
        "{a,b}",
        "no-break\u00a0space",
        "\v",
        None,
    ):
        record(database, note=note)
    record(database, at="infinity")
    record(database, at="-infinity")
    record(database, at="12026-01-01")
    fields = list(seals.ROW)
    query = f"SELECT {seals.ROW_SHOWN}, {seals.ROW_HASH} FROM {{schema}}.lead_access_audit AS a"
    for text, hashed in database.sql(query):
        values = seals.zoned(dict(zip(fields, json.loads(text), strict=True)))
        assert seals.row_hash(values) == hashed
    seal(database)
    assert verify(database).intact
    query = f"SELECT hash, {seals.SEAL_HASH}, encode(previous, 'hex'), {seals.SEAL_TEXT} "
    for stored, computed, previous, text in database.sql(query + "FROM {schema}.lead_access_audit_seals AS s"):
        values = dict(zip(seals.SEAL, json.loads(text)[1:], strict=True))
        assert stored == computed == bytes.fromhex(seals.chained(previous, seals.seal_body(values)))


def test_how_a_session_writes_times_changes_no_hash(database: Database) -> None:
    record(database)
    for style in ("German", "SQL, DMY"):
        with database.connect() as conn:
            conn.execute("SELECT set_config('datestyle', %s, false)", (style,))
            conn.commit()
            database.query(conn, "SELECT {schema}.seal_audit()")
            conn.commit()
            assert verification.verify_audit(conn).intact
            assert [(style,)] == conn.execute(
                "SELECT replace(current_setting('datestyle'), 'German, DMY', 'German')"
            ).fetchall()
    assert verify(database).intact


def test_rows_of_a_territory_that_is_unknown_have_a_chain_of_their_own(database: Database) -> None:
    for territory in ("DE", "zz", None, "aa", "zz"):
        record(database, territory)
    assert {None: 1, "DE": 1, "aa": 1, "zz": 2}.items() <= seal(database).items()


def test_sealing_needs_a_transaction_of_its_own(database: Database) -> None:
    with database.connect() as conn:
        record(database, conn=conn)
        with pytest.raises(InvalidRequest, match="a transaction of its own"):
            seals.seal(conn)
    with database.connect("operator") as conn:
        conn.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with pytest.raises(InvalidRequest, match="READ COMMITTED"):
            seals.seal(conn)
    with database.connect("operator") as conn, pytest.raises(InvalidRequest, match="rows per seal: 0 is not"):
        seals.seal(conn, rows_per_seal=0)


def test_where_nothing_can_be_written_sealing_says_so(database: Database) -> None:
    with database.connect("operator") as conn:
        conn.read_only = True
        with pytest.raises(ConnectionUnusable, match="this is a read replica, or a read-only transaction"):
            seals.seal(conn)


@pytest.mark.parametrize("login", ["seller_de", "manager_de", "auditor_both", "outsider"])
def test_only_an_operator_seals(database: Database, login: str) -> None:
    with database.connect(login) as conn, pytest.raises(ProtectionUnavailable):
        seals.seal(conn)


def test_a_chain_goes_on_after_a_downgrade(database: Database) -> None:
    first = record(database)
    seal(database)
    database.downgrade("base")
    database.upgrade()
    second = record(database)
    assert seal(database)["DE"] == 1
    assert database.sql(TIMES_SEALED) == [(first, 1), (second, 1)]
    assert said(verify(database)) == []
