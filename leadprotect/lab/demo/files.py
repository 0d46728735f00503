"""The user's own leads and activities for the demo, from two CSV files.

Comma separated, UTF-8 (with or without a byte order mark), a header in the first line; other columns
are ignored. Everything is checked before anything is loaded.

========== ================ =======================================================================
file       column           value
========== ================ =======================================================================
leads      id               uuid, once
leads      territory        a code of the demo's territories, or empty: the lead is not protected
leads      company, city    optional, any text
activities lead_id          uuid of a lead in the other file
activities user_id          uuid, or empty
activities kind             any text; `qualifying_kinds` make an owner
activities created_at       ISO 8601, UTC where it has no offset; or empty
activities id               optional: uuid, once; without it the order in the file decides a tie
========== ================ =======================================================================
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from leadprotect.errors import InvalidRequest
from leadprotect.lab.demo.data import Dataset
from leadprotect.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from leadprotect.lab.demo.data import Activity, Lead

TERRITORIES = Settings().territories
NOT_TEXT = re.compile(r"[\0\ud800-\udfff]")
FIELD = re.compile(r'(?:"(?:[^"]|"")*"|[^",\r\n][^,\r\n]*|),')


@dataclass(frozen=True)
class Column:
    """A column that is read: `parse` raises ValueError with the end of a sentence."""

    name: str
    parse: Callable[[str], Any]
    required: bool = True


def read(leads: Path, activities: Path | None = None) -> Dataset:
    """Check both files to the last line; raises `InvalidRequest` naming file, line and column."""
    for path in (leads, activities):
        if path is not None and not path.is_file():
            message = f"{path} is not an ordinary file; it must be, because it is read twice"
            raise InvalidRequest(message)
    known = _check_leads(leads)
    if activities is not None:
        _check_activities(activities, leads, known)
    # the second time, the current folder may be another one
    loaded = [path and path.absolute() for path in (leads, activities)]
    return Dataset(leads=lambda: _leads(loaded[0]), activities=lambda: _activities(loaded[1]))


def _check_leads(path: Path) -> dict[UUID, int]:
    lines: dict[UUID, int] = {}
    protected = False
    for line, (lead, territory, *_) in _records(path, LEADS):
        _once(lines, lead, path, line)
        protected = protected or territory is not None
    if not lines:
        raise _refusal(path, 2, "id", "missing: no lead follows the header")
    if not protected:
        message = f"{path}, column territory: no lead has one, so there is nothing to protect"
        raise InvalidRequest(message)
    return lines


def _check_activities(path: Path, leads: Path, known: dict[UUID, int]) -> None:
    lines: dict[UUID, int] = {}
    for line, (activity, lead, *_) in _records(path, ACTIVITIES):
        if activity is not None:
            _once(lines, activity, path, line)
        if lead not in known:
            raise _refusal(path, line, "lead_id", f"{lead} is not in {leads}")


def _once(lines: dict[UUID, int], found: UUID, path: Path, line: int) -> None:
    if lines.setdefault(found, line) != line:
        raise _refusal(path, line, "id", f"{found} is in line {lines[found]} already")


def _leads(path: Path | None) -> Iterator[Lead]:
    if path is None:
        return
    for _, values in _records(path, LEADS):
        yield values


def _activities(path: Path | None) -> Iterator[Activity]:
    if path is None:
        return
    for line, (activity, *values) in _records(path, ACTIVITIES):
        yield (activity or UUID(int=line), *values)


def _records(path: Path, columns: tuple[Column, ...]) -> Iterator[tuple[int, Any]]:
    """Each record as (line it begins in, parsed values in the order of `columns`)."""
    # bytes that are no UTF-8 come as surrogates, so that their cell can be named
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        record: list[str] = []  # the lines of the one that is being read
        reader = csv.reader(_kept(file, record), strict=True)
        header = _header(path, _rows(path, reader, record, []), columns)
        places = [header.index(column.name) if column.name in header else None for column in columns]
        begin = reader.line_num + 1
        for row in _rows(path, reader, record, header):
            if row:  # an empty line is no record
                if len(row) < len(header):
                    raise _refusal(path, begin, header[len(row)], f"missing: {len(row)} of {len(header)} values")
                if len(row) > len(header):
                    raise _refusal(path, begin, str(len(header) + 1), f"the header has {len(header)} columns only")
                yield (
                    begin,
                    [
                        None if place is None else _value(path, begin, column, row[place])
                        for column, place in zip(columns, places, strict=True)
                    ],
                )
            begin = reader.line_num + 1


def _kept(file: Iterable[str], record: list[str]) -> Iterator[str]:
    for line in file:
        record.append(line)
        yield line


def _rows(path: Path, reader: Any, record: list[str], header: list[str]) -> Iterator[list[str]]:
    try:
        for row in reader:
            record.clear()
            yield row
    except csv.Error as error:
        begin, number = reader.line_num - len(record) + 1, _bad_field("".join(record))
        column = header[number] if number < len(header) else str(number + 1)
        raise _refusal(path, begin, column, f"not CSV ({error})") from None


def _bad_field(record: str) -> int:
    """Which value of a record, from 0, is the first that is not CSV: the reader's error does not tell."""
    number, place = 0, 0
    while field := FIELD.match(record, place):
        number, place = number + 1, field.end()
    return number


def _header(path: Path, rows: Iterator[list[str]], columns: tuple[Column, ...]) -> list[str]:
    header = next(rows, [])
    for number, name in enumerate(header, 1):
        try:
            _readable(name)
        except ValueError as error:
            raise _refusal(path, 1, str(number), str(error)) from None
    for column in columns:
        if header.count(column.name) > 1:
            raise _refusal(path, 1, column.name, "twice in the header")
        if column.required and column.name not in header:
            found = ", ".join(header) or "nothing"
            raise _refusal(path, 1, column.name, f"not in the header, which has {found} (separated by commas)")
    return header


def _value(path: Path, line: int, column: Column, text: str) -> Any:
    try:
        return column.parse(_readable(text))
    except ValueError as error:
        raise _refusal(path, line, column.name, str(error)) from None


def _refusal(path: Path, line: int, column: str, what: str) -> InvalidRequest:
    return InvalidRequest(f"{path}, line {line}, column {column}: {what}")


def _readable(text: str) -> str:
    if found := NOT_TEXT.search(text):
        nul = "holds a NUL byte, which PostgreSQL can't store"
        raise ValueError(nul if found[0] == "\0" else "holds a byte that is not UTF-8 text")
    return text


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise ValueError(f"{text[:60]!r} is not a uuid") from None


def _optional_uuid(text: str) -> UUID | None:
    return _uuid(text) if text else None


def _territory(text: str) -> str | None:
    if text and text not in TERRITORIES:
        known = " or ".join(TERRITORIES)
        raise ValueError(f"{text[:60]!r} is not {known}; leave it empty for a lead outside protection")
    return text or None


def _text(text: str) -> str | None:
    return text or None


def _kind(text: str) -> str:
    if not text:
        raise ValueError("empty")
    return text


def _time(text: str) -> datetime | None:
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text[:60]!r} is not a time in ISO 8601, such as 2026-03-31T14:05:00+02:00") from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


LEADS = (
    Column("id", _uuid),
    Column("territory", _territory),
    Column("company", _text, required=False),
    Column("city", _text, required=False),
)
ACTIVITIES = (
    Column("id", _uuid, required=False),
    Column("lead_id", _uuid),
    Column("user_id", _optional_uuid),
    Column("kind", _kind),
    Column("created_at", _time),
)
