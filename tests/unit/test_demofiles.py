from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING
from uuid import UUID

import pytest

from leadprotect.errors import InvalidRequest
from leadprotect.lab.demo import files

if TYPE_CHECKING:
    from pathlib import Path

ONE, TWO = UUID(int=1), UUID(int=2)
LEADS = f"id,territory,company,city\n{ONE},DE,Muster GmbH,Köln\n{TWO},,,\n"
ACTIVITIES = f"lead_id,user_id,kind,created_at\n{ONE},{TWO},NOTE,2026-01-01\n"


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_good_files_come_as_they_are(tmp_path: Path) -> None:
    data = files.read(written(tmp_path, "leads.csv", LEADS), written(tmp_path, "activities.csv", ACTIVITIES))
    assert [[ONE, "DE", "Muster GmbH", "Köln"], [TWO, None, None, None]] == [list(lead) for lead in data.leads()]
    assert [(UUID(int=2), ONE, TWO, "NOTE", datetime(2026, 1, 1, tzinfo=UTC))] == list(data.activities())


def test_leads_alone_are_enough(tmp_path: Path) -> None:
    data = files.read(written(tmp_path, "leads.csv", LEADS))
    assert [] == list(data.activities())


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + LEADS.encode(),
        LEADS.replace("\n", "\r\n"),
        LEADS.replace("\n", "\n\n"),
        LEADS.removesuffix("\n"),
        f"city,extra,id,company,territory\nKöln,x,{ONE},Muster GmbH,DE\n,,{{{TWO}}},,\n",
    ],
    ids=["byte order mark", "CRLF", "empty lines", "no last line end", "other order, one more column, braces"],
)
def test_what_spreadsheets_write_is_read(tmp_path: Path, text: str | bytes) -> None:
    data = files.read(written(tmp_path, "leads.csv", text))
    assert [[ONE, "DE", "Muster GmbH", "Köln"], [TWO, None, None, None]] == [list(lead) for lead in data.leads()]


def test_a_quoted_value_may_hold_lines_commas_and_quotes(tmp_path: Path) -> None:
    data = files.read(written(tmp_path, "leads.csv", f'id,territory,company\n{ONE},CH,"A, ""B""\nC"\n'))
    assert [[ONE, "CH", 'A, "B"\nC', None]] == [list(lead) for lead in data.leads()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-03-31T14:05:00+02:00", datetime(2026, 3, 31, 14, 5, tzinfo=timezone(timedelta(hours=2)))),
        ("2026-03-31 14:05", datetime(2026, 3, 31, 14, 5, tzinfo=UTC)),
        ("2026-03-31T14:05:00Z", datetime(2026, 3, 31, 14, 5, tzinfo=UTC)),
        ("", None),
    ],
)
def test_a_time_without_offset_is_utc(tmp_path: Path, text: str, expected: datetime | None) -> None:
    leads = written(tmp_path, "leads.csv", LEADS)
    activities = written(tmp_path, "a.csv", f"lead_id,user_id,kind,created_at\n{ONE},,NOTE,{text}\n")
    assert [expected] == [activity[4] for activity in files.read(leads, activities).activities()]


BAD_LEADS = {
    "no file content": ("", "line 1, column id: not in the header, which has nothing (separated by commas)"),
    "missing column": (f"id,city\n{ONE},Köln\n", "line 1, column territory: not in the header, which has id, city"),
    "semicolons": (f"id;territory\n{ONE};DE\n", "line 1, column id: not in the header, which has id;territory"),
    "column twice": (f"id,territory,id\n{ONE},DE,{ONE}\n", "line 1, column id: twice in the header"),
    "another encoding": (LEADS.encode("utf-16"), "line 1, column 1: holds a byte that is not UTF-8 text"),
    "bad id": ("id,territory\n17,DE\n", "line 2, column id: '17' is not a uuid"),
    "empty id": ("id,territory\n,DE\n", "line 2, column id: '' is not a uuid"),
    "id twice": (f"id,territory\n{ONE},DE\n{TWO},DE\n{ONE},CH\n", f"line 4, column id: {ONE} is in line 2 already"),
    "id twice, in other spelling": (
        f"id,territory\n{UUID(int=10)},DE\n{str(UUID(int=10)).upper()},DE\n",
        f"line 3, column id: {UUID(int=10)} is in line 2 already",
    ),
    "unknown territory": (
        f"id,territory\n{ONE},FR\n",
        "line 2, column territory: 'FR' is not DE or CH; leave it empty",
    ),
    "lower case": (f"id,territory\n{ONE},de\n", "line 2, column territory: 'de' is not DE or CH"),
    "too few values": (f"id,territory,city\n{ONE},DE\n", "line 2, column city: missing: 2 of 3 values"),
    "too many values": (f"id,territory\n{ONE},DE,x\n", "line 2, column 3: the header has 2 columns only"),
    "Latin-1": (LEADS.encode("latin-1"), "line 2, column city: holds a byte that is not UTF-8 text"),
    "NUL": (
        f"id,territory,city\n{ONE},DE,a\0b\n",
        "line 2, column city: holds a NUL byte, which PostgreSQL can't store",
    ),
    "NUL in the header": ("id,territory,ci\0ty\n", "line 1, column 3: holds a NUL byte"),
    "header only": ("id,territory\n", "line 2, column id: missing: no lead follows the header"),
    "open quote": (f'id,territory\n{ONE},"DE\n', "line 2, column territory: not CSV (unexpected end of data)"),
    "open quote over several lines": (
        f'id,territory,company,city\n{TWO},DE,"a\nb",c\n{ONE},DE,"d, ""e"",\nf","g\n{UUID(int=3)},CH,h,i\n',
        "line 4, column city: not CSV (unexpected end of data)",
    ),
    "open quote in a long file": (
        f'id,territory,city\n{ONE},"DE\n' + "x,y,z\n" * 50_000,
        "line 2, column territory: not CSV (field larger than field limit",
    ),
    "open quote in the header": ('id,"territory\n', "line 1, column 2: not CSV (unexpected end of data)"),
    "open quote past the header": (f'id,territory\n{ONE},DE,"x\n', "line 2, column 3: not CSV (unexpected end"),
    "text after a quote": (
        f'id,territory\n{ONE},"DE"x\n',
        "line 2, column territory: not CSV (',' expected after '\"')",
    ),
    "a line after a value of several lines": (
        f'id,territory,city\n{ONE},DE,"a\nb\nc"\nx,DE,d\n',
        "line 5, column id: 'x' is not a uuid",
    ),
    "nothing to protect": (
        f"id,territory\n{ONE},\n",
        "column territory: no lead has one, so there is nothing to protect",
    ),
}


@pytest.mark.parametrize(("text", "expected"), BAD_LEADS.values(), ids=BAD_LEADS.keys())
def test_a_bad_leads_file_is_refused_with_its_line_and_column(tmp_path: Path, text: str | bytes, expected: str) -> None:
    path = written(tmp_path, "leads.csv", text)
    with pytest.raises(InvalidRequest) as refused:
        files.read(path)
    assert f"{path}, {expected}" == str(refused.value)[: len(f"{path}, {expected}")]


HEADER = "id,lead_id,user_id,kind,created_at\n"
BAD_ACTIVITIES = {
    "missing column": (f"lead_id,user_id,kind\n{ONE},,NOTE\n", "line 1, column created_at: not in the header"),
    "unknown lead": (f"{HEADER}{ONE},{UUID(int=9)},,NOTE,\n", f"line 2, column lead_id: {UUID(int=9)} is not in"),
    "no lead": (f"{HEADER}{ONE},,,NOTE,\n", "line 2, column lead_id: '' is not a uuid"),
    "bad user": (f"{HEADER}{ONE},{ONE},Petra,NOTE,\n", "line 2, column user_id: 'Petra' is not a uuid"),
    "no kind": (f"{HEADER}{ONE},{ONE},,,\n", "line 2, column kind: empty"),
    "bad time": (
        f"{HEADER}{ONE},{ONE},,NOTE,31.3.2026\n",
        "line 2, column created_at: '31.3.2026' is not a time in ISO",
    ),
    "impossible time": (f"{HEADER}{ONE},{ONE},,NOTE,2026-02-30\n", "line 2, column created_at: '2026-02-30' is not"),
    "id twice": (f"{HEADER}{ONE},{ONE},,A,\n{ONE},{TWO},,A,\n", f"line 3, column id: {ONE} is in line 2 already"),
    "no id in a column of ids": (f"{HEADER},{ONE},,A,\n", "line 2, column id: '' is not a uuid"),
}


@pytest.mark.parametrize(("text", "expected"), BAD_ACTIVITIES.values(), ids=BAD_ACTIVITIES.keys())
def test_a_bad_activities_file_is_refused_with_its_line_and_column(tmp_path: Path, text: str, expected: str) -> None:
    path = written(tmp_path, "activities.csv", text)
    with pytest.raises(InvalidRequest) as refused:
        files.read(written(tmp_path, "leads.csv", LEADS), path)
    assert f"{path}, {expected}" == str(refused.value)[: len(f"{path}, {expected}")]


def test_a_long_bad_value_is_cut_in_the_message(tmp_path: Path) -> None:
    path = written(tmp_path, "leads.csv", f"id,territory\n{'x' * 5000},DE\n")
    with pytest.raises(InvalidRequest) as refused:
        files.read(path)
    assert f"{path}, line 2, column id: '{'x' * 60}' is not a uuid" == str(refused.value)
