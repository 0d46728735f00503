"""The user's own CSV files, read by the demo's server: what is loaded, and what is said of a file that is refused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any
from uuid import UUID

import psycopg
import pytest

from leadprotect.errors import InvalidRequest
from leadprotect.lab.data import create_host_tables
from leadprotect.lab.demo.files import copy_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.servers import Server

ONE, TWO = UUID(int=1), UUID(int=2)
LEADS = f"id,territory,company,city\n{ONE},DE,Muster GmbH,Köln\n{TWO},,,\n"
ACTIVITIES = f"lead_id,user_id,kind,created_at\n{ONE},{TWO},NOTE,2026-01-01\n"
LOADED = [(ONE, "DE", "Muster GmbH", "Köln"), (TWO, None, None, None)]


@pytest.fixture(scope="module")
def demo(running: Callable[[int], Server]) -> str:
    """A database with the demo's tables, on the version that the demo runs on."""
    url = running(18).create_database("demo_files")
    with psycopg.connect(url) as conn:
        create_host_tables(conn, id_type="uuid")
    return url


@pytest.fixture
def conn(demo: str) -> Iterator[psycopg.Connection[Any]]:
    """In a transaction that leaves nothing."""
    with psycopg.connect(demo) as conn:
        yield conn
        conn.rollback()


def written(folder: Path, name: str, text: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def leads_of(conn: psycopg.Connection[Any]) -> list[Any]:
    return conn.execute("SELECT id, territory, company, city FROM public.leads ORDER BY id").fetchall()


def activities_of(conn: psycopg.Connection[Any], columns: str = "id, lead_id, user_id, kind, created_at") -> list[Any]:
    return conn.execute(f"SELECT {columns} FROM public.activities ORDER BY id").fetchall()


def test_good_files_are_loaded_as_they_are(conn: psycopg.Connection[Any], tmp_path: Path) -> None:
    copy_files(conn, written(tmp_path, "leads.csv", LEADS), written(tmp_path, "activities.csv", ACTIVITIES))
    assert LOADED == leads_of(conn)
    assert [(ONE, ONE, TWO, "NOTE", datetime(2026, 1, 1, tzinfo=UTC))] == activities_of(conn)


def test_leads_alone_are_enough(conn: psycopg.Connection[Any], tmp_path: Path) -> None:
    copy_files(conn, written(tmp_path, "leads.csv", LEADS))
    assert (LOADED, []) == (leads_of(conn), activities_of(conn))


@pytest.mark.parametrize(
    "text",
    [
        b"\xef\xbb\xbf" + LEADS.encode(),
        LEADS.replace("\n", "\r\n"),
        LEADS.removesuffix("\n"),
        LEADS.replace(",,,", ',"","",""'),
        f"city,extra,id,company,territory,extra\nKöln,x,{ONE},Muster GmbH,DE,y\n,,{{{TWO}}},,,\n",
    ],
    ids=["byte order mark", "CRLF", "no last line end", "all quoted", "other order, more columns, braces"],
)
def test_what_spreadsheets_write_is_read(conn: psycopg.Connection[Any], tmp_path: Path, text: str | bytes) -> None:
    copy_files(conn, written(tmp_path, "leads.csv", text))
    assert LOADED == leads_of(conn)


def test_a_quoted_value_may_hold_lines_commas_and_quotes(conn: psycopg.Connection[Any], tmp_path: Path) -> None:
    copy_files(conn, written(tmp_path, "leads.csv", f'id,territory,company\n{ONE},CH,"A, ""B""\nC"\n'))
    assert [(ONE, "CH", 'A, "B"\nC', None)] == leads_of(conn)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-03-31T14:05:00+02:00", datetime(2026, 3, 31, 14, 5, tzinfo=timezone(timedelta(hours=2)))),
        ("2026-03-31 14:05", datetime(2026, 3, 31, 14, 5, tzinfo=UTC)),
        ("2026-03-31T14:05:00Z", datetime(2026, 3, 31, 14, 5, tzinfo=UTC)),
        ("", None),
    ],
)
def test_a_time_without_offset_is_utc(
    conn: psycopg.Connection[Any], tmp_path: Path, text: str, expected: datetime | None
) -> None:
    activities = written(tmp_path, "a.csv", f"lead_id,user_id,kind,created_at\n{ONE},,NOTE,{text}\n")
    copy_files(conn, written(tmp_path, "leads.csv", LEADS), activities)
    assert [(expected,)] == activities_of(conn, "created_at")


def test_without_ids_the_order_in_the_file_is_that_of_the_activities(
    conn: psycopg.Connection[Any], tmp_path: Path
) -> None:
    lines = "".join(f"{lead},,kind {number:03},\n" for number in range(100) for lead in (ONE, TWO))
    activities = written(tmp_path, "a.csv", f"lead_id,user_id,kind,created_at\n{lines}")
    copy_files(conn, written(tmp_path, "leads.csv", LEADS), activities)
    assert [(f"kind {number:03}",) for number in range(100) for _ in range(2)] == activities_of(conn, "kind")


BAD_LEADS = {
    "no file content": ("", "line 1, column id: not in the header, which has nothing (separated by commas)"),
    "missing column": (f"id,city\n{ONE},Köln\n", "line 1, column territory: not in the header, which has id, city"),
    "semicolons": (f"id;territory\n{ONE};DE\n", "line 1, column id: not in the header, which has id;territory"),
    "column twice": (f"id,territory,id\n{ONE},DE,{ONE}\n", "line 1, column id: twice in the header"),
    "another encoding": (LEADS.encode("utf-16"), "line 1: it is not UTF-8 text"),
    "bad id": ("id,territory\n17,DE\n", 'line 2, column id: invalid input syntax for type uuid: "17"; it takes a uuid'),
    "empty id": ("id,territory\n,DE\n", 'line 2, column id: empty; it takes a uuid, once; the line is ",DE"'),
    "id twice": (f"id,territory\n{ONE},DE\n{TWO},DE\n{ONE},CH\n", "line 4, column id: there already; it takes a uuid"),
    "id twice, in other spelling": (
        f"id,territory\n{UUID(int=10)},DE\n{str(UUID(int=10)).upper()},DE\n",
        "line 3, column id: there already",
    ),
    "unknown territory": (
        f"id,territory\n{ONE},FR\n",
        'line 2, column territory: invalid input value for enum territory: "FR"; it takes DE or CH, or nothing for',
    ),
    "lower case": (
        f"id,territory\n{ONE},de\n",
        'line 2, column territory: invalid input value for enum territory: "de"',
    ),
    "too few values": (f"id,territory,city\n{ONE},DE\n", 'line 2: missing data for column "city"; the line is'),
    "too many values": (f"id,territory\n{ONE},DE,x\n", "line 2: extra data after last expected column; the line is"),
    "empty line": (f"id,territory\n{ONE},DE\n\n", 'line 3: missing data for column "territory"'),
    "Latin-1": (LEADS.encode("latin-1"), 'line 2: invalid byte sequence for encoding "UTF8"'),
    "NUL": (f"id,territory,city\n{ONE},DE,a\0b\n", 'line 2: invalid byte sequence for encoding "UTF8": 0x00'),
    "open quote": (
        f'id,territory,city\n{ONE},DE,x\n{TWO},"DE,y\n',
        f'line 4: unterminated CSV quoted field; the line is "{TWO},"DE,y',
    ),
    "open quote in the header": ('id,"territory\n', "line 1, column territory: not in the header"),
    "a line after a value of several lines": (
        f'id,territory,city\n{ONE},DE,"a\nb\nc"\nx,DE,d\n',
        "line 5, column id: invalid input syntax",
    ),
}


@pytest.mark.parametrize(("text", "expected"), BAD_LEADS.values(), ids=BAD_LEADS.keys())
def test_a_bad_leads_file_is_refused_with_its_line_and_column(
    conn: psycopg.Connection[Any], tmp_path: Path, text: str | bytes, expected: str
) -> None:
    path = written(tmp_path, "leads.csv", text)
    with pytest.raises(InvalidRequest) as refused:
        copy_files(conn, path)
    assert f"{path}, {expected}" == str(refused.value)[: len(f"{path}, {expected}")]
    conn.rollback()
    assert [] == leads_of(conn)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("id,territory\n", ": no lead follows the header; add a line for each"),
        (
            f"id,territory\n{ONE},\n",
            ", column territory: no lead has one, so there is nothing to protect; name DE or CH for some",
        ),
    ],
)
def test_a_file_without_a_lead_to_protect_is_refused(
    conn: psycopg.Connection[Any], tmp_path: Path, text: str, expected: str
) -> None:
    path = written(tmp_path, "leads.csv", text)
    with pytest.raises(InvalidRequest) as refused:
        copy_files(conn, path)
    assert f"{path}{expected}" == str(refused.value)


HEADER = "id,lead_id,user_id,kind,created_at\n"
TIME = "it takes a time such as 2026-03-31T14:05:00+02:00, or nothing"
BAD_ACTIVITIES = {
    "missing column": (f"lead_id,user_id,kind\n{ONE},,NOTE\n", "line 1, column created_at: not in the header"),
    "unknown lead": (
        f"{HEADER}{ONE},{UUID(int=9)},,NOTE,\n",
        "line 2, column lead_id: not possible; it takes the id of a lead in the other file; the line is",
    ),
    "no lead": (f"{HEADER}{ONE},,,NOTE,\n", "line 2, column lead_id: empty; it takes the id of a lead"),
    "bad user": (f"{HEADER}{ONE},{ONE},Petra,NOTE,\n", "line 2, column user_id: invalid input syntax for type uuid"),
    "no kind": (f"{HEADER}{ONE},{ONE},,,\n", "line 2, column kind: empty; it takes any text"),
    "bad time": (
        f"{HEADER}{ONE},{ONE},,NOTE,31.3.2026\n",
        f'line 2, column created_at: date/time field value out of range: "31.3.2026"; {TIME}',
    ),
    "impossible time": (f"{HEADER}{ONE},{ONE},,NOTE,2026-02-30\n", "line 2, column created_at: date/time field value"),
    "endless time": (f"{HEADER}{ONE},{ONE},,NOTE,infinity\n", f"line 2, column created_at: not possible; {TIME}"),
    "id twice": (f"{HEADER}{ONE},{ONE},,A,\n{ONE},{TWO},,A,\n", "line 3, column id: there already"),
    "no id in a column of ids": (f"{HEADER},{ONE},,A,\n", "line 2, column id: empty"),
}


@pytest.mark.parametrize(("text", "expected"), BAD_ACTIVITIES.values(), ids=BAD_ACTIVITIES.keys())
def test_a_bad_activities_file_is_refused_with_its_line_and_column(
    conn: psycopg.Connection[Any], tmp_path: Path, text: str, expected: str
) -> None:
    path = written(tmp_path, "activities.csv", text)
    with pytest.raises(InvalidRequest) as refused:
        copy_files(conn, written(tmp_path, "leads.csv", LEADS), path)
    assert f"{path}, {expected}" == str(refused.value)[: len(f"{path}, {expected}")]
    conn.rollback()
    assert ([], []) == (leads_of(conn), activities_of(conn))


def test_a_long_bad_value_is_cut_in_the_message(conn: psycopg.Connection[Any], tmp_path: Path) -> None:
    path = written(tmp_path, "leads.csv", f"id,territory\n{'x' * 5000},DE\n")
    with pytest.raises(InvalidRequest) as refused:
        copy_files(conn, path)
    assert len(str(refused.value)) < len(str(path)) + 200
