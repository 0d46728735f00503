"""Seals hold in a restored copy, where transaction ids mean something else."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.conftest import use
from tests.support import servers
from tests.support.auditing import INSERT, record, said, seal, tamper, verify
from tests.support.database import Database

TIMES_SEALED = """
SELECT a.id, (SELECT count(*) FROM {schema}.lead_access_audit_seals AS s
              WHERE s.ids @> a.id AND s.territory IS NOT DISTINCT FROM a.territory)
FROM {schema}.lead_access_audit AS a ORDER BY a.id
"""
XID = "SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint"


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[servers.Server]:
    """A server of its own: its transactions are counted from the beginning."""
    with servers.embedded() as server:
        yield server


def restored(database: Database, elsewhere: servers.Server) -> Database:
    """What pg_dump and psql make of it there."""
    copy = Database(elsewhere, database.profile, database.name)
    programs = database.server.programs
    roles = subprocess.run(
        [programs / "pg_dumpall", "--roles-only", "--no-role-passwords", "-d", database.server.url()],
        check=True, capture_output=True,
    ).stdout  # fmt: skip
    dump = subprocess.run([programs / "pg_dump", database.url], check=True, capture_output=True).stdout
    psql = [str(elsewhere.programs / "psql"), "-X", "-q", "-o", "/dev/null"]
    # some roles are there already
    subprocess.run([*psql, elsewhere.url()], input=roles, check=True, capture_output=True)
    subprocess.run([*psql, "-c", f'CREATE DATABASE "{copy.name}"', elsewhere.url()], check=True)
    done = subprocess.run([*psql, copy.url], input=dump, check=True, capture_output=True)
    assert done.stderr == b""
    return copy


@pytest.fixture
def copied(database: Database, elsewhere: servers.Server, monkeypatch: pytest.MonkeyPatch) -> Database:
    """Sealed rows 1 and 2, and unsealed ones: 3, and 4 of a transaction that the copy has yet to reach."""
    record(database)
    record(database, "CH")
    # so that a new transaction of the copy has a lower id than the newest seal
    ahead = int(Database(elsewhere, database.profile, "postgres").sql(XID)[0]) + 2000 - int(database.sql(XID)[0])
    database.sql(f"DO $$ BEGIN FOR i IN 1 .. {ahead} LOOP PERFORM pg_current_xact_id(); COMMIT; END LOOP; END $$")
    seal(database)
    record(database)
    database.sql(
        INSERT.replace("note)", "note, transaction_id)").replace("%s) RETURNING", "%s, '9000000000') RETURNING"),
        *(database.new_id(), None, "DE", None),
    )
    copy = restored(database, elsewhere)
    use(copy, monkeypatch)
    assert int(copy.sql(XID)[0]) < int(database.sql(XID)[0])
    return copy


def test_a_copy_is_intact_before_anything_is_sealed_there(copied: Database) -> None:
    record(copied)
    found = verify(copied)
    assert said(found) == []
    assert [("CH", 1, 0), ("DE", 1, 3)] == [(c.territory, c.rows, c.pending) for c in found.chains if c.territory]


def test_rows_of_before_and_after_are_sealed_once(copied: Database) -> None:
    with copied.connect() as slow:
        late = record(copied, conn=slow)
        new = record(copied)
        assert seal(copied) == {None: 0, "CH": 0, "DE": 3}
        slow.commit()
    assert seal(copied)["DE"] == 1
    assert seal(copied)["DE"] == 0
    assert copied.sql(TIMES_SEALED) == [(number, 1) for number in (1, 2, 3, 4, late, new)]
    found = verify(copied)
    assert (said(found), found.gaps) == ([], ())


@pytest.mark.nightly_elsewhere("by day a copy that is intact, and rows of before and after, are met there")
def test_changes_in_the_copy_are_found(copied: Database) -> None:
    tamper(copied, "UPDATE {schema}.lead_access_audit SET note = 'x' WHERE id = 1")
    assert ["DE 1: row 1 was changed"] == said(verify(copied))
    seal(copied)
    copied.sql("DELETE FROM {schema}.lead_access_audit WHERE id = 3")
    assert ["DE 1: row 1 was changed", "DE 2: row 3 was removed"] == said(verify(copied))


@pytest.mark.nightly_elsewhere("by day a copy that is intact, and rows of before and after, are met there")
def test_a_backdated_row_in_the_copy_is_found(copied: Database) -> None:
    seal(copied)
    record(copied, at="2025-01-01")
    assert seal(copied)["DE"] == 1
    assert [] != said(verify(copied))
