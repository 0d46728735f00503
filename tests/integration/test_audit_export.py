"""An export proves itself: without a database, and against the database later."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest

import leadprotect
from leadprotect.audit import proof
from leadprotect.audit.export import export
from leadprotect.errors import InvalidRequest
from tests.support.auditing import record, said, seal, tamper, verify
from tests.support.database import Database

Line = dict[str, Any]
HEADER = {"type": "export", "format": "leadprotect-audit-1", "heads": [], "left_out": [], "database": "", "origin": ""}
FEBRUARY, MARCH = datetime(2025, 2, 1, tzinfo=UTC), datetime(2025, 3, 1, tzinfo=UTC)


def exported(database: Database, login: str = "auditor_both", **how: Any) -> list[str]:
    out = io.StringIO()
    with database.connect(login) as conn:
        written = export(conn, out, **{"sealed": True, **how})
    lines = out.getvalue().splitlines()
    assert written.rows == sum(json.loads(line).get("type", "row") == "row" for line in lines)
    return lines


def fill(database: Database) -> None:
    """Rows 1 and 2 of DE in January, 3 in February, 4 of CH in March, 5 without territory; 6 is not sealed."""
    for day in ("2025-01-10", "2025-01-11", "2025-02-10"):
        record(database, at=day, note='Zürich: "\\ \t\x01 😀')
    record(database, "CH", at="2025-03-10")
    record(database, None, at="2025-03-10")
    seal(database)
    record(database)


def test_an_export_is_proved_without_a_database(database: Database) -> None:
    fill(database)
    proved = proof.verify_file(exported(database))
    assert (proved.rows, proved.seals, proved.findings) == (5, 4, ())
    heads = {chain.territory: (chain.seals, chain.head) for chain in verify(database).chains}
    assert proved.heads == heads


def test_an_export_of_an_empty_audit_is_proved(database: Database) -> None:
    assert proof.verify_file(exported(database)).intact
    seal(database)
    assert proof.verify_file(exported(database)).seals == 3


def test_a_period_brings_whole_seals_and_every_link_of_the_chain(database: Database) -> None:
    fill(database)
    seal(database)
    lines = [json.loads(line) for line in exported(database, since=FEBRUARY, until=MARCH)]
    assert [3] == [line["id"] for line in lines if line["type"] == "row"]
    links = [line for line in lines if line["type"] in {"seal", "link"} and line["territory"] == "DE"]
    assert ["link", "seal", "link"] == [line["type"] for line in links][:3]
    proved = proof.verify_file(json.dumps(line) for line in lines)
    assert (proved.rows, proved.intact) == (1, True)


def test_the_rows_of_a_seal_follow_it_so_that_a_reader_holds_one_seal_at_a_time(database: Database) -> None:
    fill(database)
    seal(database)
    fill(database)
    seal(database)
    last: tuple[Any, Any] = (None, None)
    followed = []
    for line in map(json.loads, exported(database)):
        if line["type"] == "row":
            followed.append(((line["territory"], line["seal"]), last))
        else:
            last = (line.get("territory"), line.get("number"))
    assert len({own for own, _ in followed}) > 2
    assert [] == [pair for pair in followed if pair[0] != pair[1]]


def test_an_auditor_exports_his_territory_and_what_has_none(database: Database) -> None:
    fill(database)
    lines = [json.loads(line) for line in exported(database, "auditor_de")]
    assert {None, "DE"} == {line["territory"] for line in lines if line["type"] != "export"}
    assert proof.verify_file(json.dumps(line) for line in lines).intact


def test_rows_without_seals_are_plain_lines(database: Database) -> None:
    fill(database)
    lines = [json.loads(line) for line in exported(database, sealed=False)]
    assert {1, 2, 3, 4, 5, 6} == {line["id"] for line in lines}
    lines = [json.loads(line) for line in exported(database, sealed=False, since=FEBRUARY, until=MARCH)]
    assert [(3, "2025-02-10T00:00:00Z", "DENY")] == [(line["id"], line["at"], line["outcome"]) for line in lines]


def test_a_detached_month_is_exported_as_long_as_its_table_is_there(database: Database) -> None:
    record(database, at="2025-01-10")
    with database.connect("operator", autocommit=True) as conn:
        database.query(conn, "SELECT {schema}.create_audit_partitions(3)")
        seal(database)
        seal(database)
        database.query(conn, "SELECT {schema}.detach_audit_month('2025-01-01')")
    assert (proof.verify_file(exported(database)).rows, proof.verify_file(exported(database)).intact) == (1, True)


def of(lines: list[Line], kind: str, **wanted: Any) -> Line:
    return next(line for line in lines if line["type"] == kind and wanted.items() <= line.items())


def change_row(lines: list[Line]) -> None:
    of(lines, "row", id=2)["reason"] = "owner"


def write_time_otherwise(lines: list[Line]) -> None:
    row = of(lines, "row", id=2)
    row["at"] = row["at"].replace("T", " ")


def change_type(lines: list[Line]) -> None:
    row = of(lines, "row", id=2)
    row["transaction_id"] = int(row["transaction_id"])


def remove_row(lines: list[Line]) -> None:
    lines.remove(of(lines, "row", id=1))


def remove_rows(lines: list[Line]) -> None:
    lines.remove(of(lines, "row", id=3))


def add_row(lines: list[Line]) -> None:
    row = of(lines, "row", id=2)
    lines.insert(lines.index(row) + 1, {**row, "id": 77})


def repeat_row(lines: list[Line]) -> None:
    row = of(lines, "row", id=2)
    lines.insert(lines.index(row), row)


def add_rows_of_no_seal(lines: list[Line]) -> None:
    lines.append({**of(lines, "row", id=2), "id": 78, "seal": 9})


def change_seal(lines: list[Line]) -> None:
    of(lines, "seal", territory="DE", number=1)["content"] = "00"


def make_seal_anew(lines: list[Line]) -> None:
    """The row and the seal fit each other; the next seal does not."""
    from leadprotect.audit import seals  # noqa: PLC0415

    seal = of(lines, "seal", territory="DE", number=1)
    seal["sealed_by"] = "somebody"
    seal["hash"] = seals.chained(seal["previous"], seals.seal_body(seals.unzoned(seal)))


def remove_seal(lines: list[Line]) -> None:
    lines.remove(of(lines, "seal", territory="DE", number=1))
    lines[:] = [line for line in lines if line.get("seal") != 1 or line["territory"] != "DE"]


def cut_off(lines: list[Line]) -> None:
    lines.remove(of(lines, "seal", territory="CH"))
    lines[:] = [line for line in lines if line["type"] != "row" or line["territory"] != "CH"]


FORGERIES: dict[Callable[[list[Line]], None], str] = {
    change_row: "DE 1: row 2 was changed",
    write_time_otherwise: "DE 1: row 2 was changed",
    change_type: "DE 1: row 2 was changed",
    remove_row: "DE 1: row 1 was removed",
    remove_rows: "DE 2: row 3 was removed",
    add_row: "DE 1: row 77 was inserted",
    repeat_row: "DE 1: its rows stand twice or in another order",
    add_rows_of_no_seal: "DE 9: row 78 was inserted: no seal has them",
    change_seal: "DE 1: the seal itself was changed",
    make_seal_anew: "DE 2: does not continue the seal before it",
    remove_seal: "DE 2: the seals before it were removed",
    cut_off: "CH 1: the newest seal of the chain is not in the file",
}


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_a_forged_export_is_found(database: Database, forge: Callable[[list[Line]], None]) -> None:
    fill(database)
    lines = [json.loads(line) for line in exported(database)]
    assert proof.verify_file(json.dumps(line) for line in lines).findings == ()
    forge(lines)
    found = proof.verify_file(json.dumps(line) for line in lines).findings
    assert FORGERIES[forge] in [f"{one.territory} {one.seal}: {one.what}" for one in found]


def test_an_export_of_a_changed_audit_does_not_prove_itself(database: Database) -> None:
    fill(database)
    tamper(database, "UPDATE {schema}.lead_access_audit SET reason = 'owner' WHERE id = 2")
    tamper(database, "DELETE FROM {schema}.lead_access_audit WHERE id = 3")
    found = proof.verify_file(exported(database)).findings
    assert ["row 2 was changed", "row 3 was removed"] == [one.what for one in found]


def test_an_earlier_export_shows_that_the_chains_were_made_anew(database: Database) -> None:
    fill(database)
    known = proof.known_seals(exported(database)).seals
    seal(database)
    assert verify(database, known=known).intact
    tamper(database, "UPDATE {schema}.lead_access_audit SET reason = 'owner' WHERE id = 2")
    database.sql("TRUNCATE {schema}.lead_access_audit_seals")
    seal(database)
    assert verify(database).intact
    assert "DE 1: this seal is not the one that was kept elsewhere" in said(verify(database, known=known))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "line 1: this is no export with seals"),
        (["{}"], "line 1: this is no line of an export with seals; it lacks type"),
        (["no json"], "line 1"),
        (["[1]"], "line 1"),
        ([json.dumps(HEADER | {"format": "other"})], "line 1: this is no export with seals"),
        (
            [json.dumps(HEADER), '{"type": "row", "seal": 1}'],
            "line 2: this is no line of an export with seals; it lacks action, at",
        ),
    ],
)
def test_what_is_no_export_is_refused_with_its_line(lines: list[str], message: str) -> None:
    for read in (proof.verify_file, proof.known_seals):
        with pytest.raises(InvalidRequest, match=message):
            read(lines)


def test_times_need_a_zone_and_reading_needs_a_transaction(database: Database) -> None:
    naive = datetime(2025, 1, 1)  # noqa: DTZ001
    with database.connect("auditor_de") as conn, pytest.raises(InvalidRequest, match="need a time zone"):
        export(conn, io.StringIO(), since=naive)
    with database.connect("auditor_de", autocommit=True) as conn, pytest.raises(leadprotect.ContextMissing):
        export(conn, io.StringIO())


@pytest.mark.parametrize("login", ["seller_de", "manager_de", "operator"])
def test_only_an_auditor_exports(database: Database, login: str) -> None:
    for sealed in (True, False):
        with database.connect(login) as conn, pytest.raises(leadprotect.ProtectionUnavailable):
            export(conn, io.StringIO(), sealed=sealed)
