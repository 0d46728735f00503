"""The user's own leads and activities for the demo, from two CSV files: PostgreSQL reads them, and says what is wrong.

Comma separated, UTF-8 (with or without a byte order mark), a header in the first line; other columns
are ignored. Both are loaded in one transaction, so nothing is left of a file that is refused.

========== ================ =======================================================================
file       column           value
========== ================ =======================================================================
leads      id               uuid, once
leads      territory        a code of the demo's territories, or empty: the lead is not protected
leads      company, city    optional, any text
activities lead_id          uuid of a lead in the other file
activities user_id          uuid, or empty
activities kind             any text; `qualifying_kinds` make an owner
activities created_at       a date and time, UTC where it has no offset; or empty
activities id               optional: uuid, once; without it the order in the file decides a tie
========== ================ =======================================================================
"""

from __future__ import annotations

import csv
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.errors import InvalidRequest
from leadprotect.settings import Settings, ident, literal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CODES = Settings().territories
LEADS = {
    "id": "uuid NOT NULL PRIMARY KEY",
    "territory": "pg_temp.territory",
    "company": "text",
    "city": "text",
}
ACTIVITIES = {
    "id": "uuid NOT NULL PRIMARY KEY",
    "lead_id": "uuid NOT NULL CONSTRAINT lead_id CHECK (pg_temp.is_lead(lead_id))",
    "user_id": "uuid",
    "kind": "text NOT NULL",
    "created_at": "timestamptz CONSTRAINT created_at CHECK (isfinite(created_at))",
}
OPTIONAL = {"leads": {"company": "text", "city": "text"}, "activities": {"id": "uuid"}}
"""Table -> columns that a file need not have, and what they are then."""

EXPECTED = {
    "id": "a uuid, once",
    "territory": f"{' or '.join(CODES)}, or nothing for a lead outside protection",
    "lead_id": "the id of a lead in the other file",
    "user_id": "a uuid, or nothing",
    "kind": "any text",
    "created_at": "a time such as 2026-03-31T14:05:00+02:00, or nothing",
}
BROKEN = {"23502": "empty", "23505": "there already", "23514": "not possible"}
"""SQLSTATE -> what is wrong, where the server tells of the rule only."""

_SHOWN = 100
# a server that speaks English names line and column in a known place
_CHECKS = f"""
SET LOCAL lc_messages = 'C';
SET LOCAL datestyle = 'ISO, YMD';
SET LOCAL timezone = 'UTC';
CREATE TYPE pg_temp.territory AS ENUM ({", ".join(map(literal, CODES))});
CREATE FUNCTION pg_temp.is_lead(uuid) RETURNS boolean LANGUAGE plpgsql STABLE
AS 'BEGIN RETURN EXISTS (SELECT FROM public.leads WHERE id = $1); END';
"""
_LEADS = """
INSERT INTO public.leads (id, territory, company, city)
SELECT id, territory::text, company, city FROM pg_temp.leads
"""
_ACTIVITIES = """
INSERT INTO public.activities (id, lead_id, user_id, kind, created_at)
SELECT coalesce(id, lpad(to_hex(row_number() OVER (ORDER BY ctid)), 32, '0')::uuid), lead_id, user_id, kind, created_at
FROM pg_temp.activities
"""
_PLACE = re.compile(r"COPY \w+, (line \d+)(?:, column ([^:]*))?(?:: (.*))?", re.DOTALL)


def copy_files(conn: psycopg.Connection[Any], leads: Path, activities: Path | None = None) -> None:
    """COPY both files into the tables of the demo; raises `InvalidRequest` naming file, line and column."""
    conn.execute(_CHECKS)
    _copy(conn, leads, "leads", LEADS)
    conn.execute(_LEADS)
    if conn.execute("SELECT FROM public.leads LIMIT 1").rowcount == 0:
        raise InvalidRequest(f"{leads}: no lead follows the header; add a line for each")
    if conn.execute("SELECT FROM public.leads WHERE territory IS NOT NULL LIMIT 1").rowcount == 0:
        raise InvalidRequest(
            f"{leads}, column territory: no lead has one, so there is nothing to protect; name DE or CH for some"
        )
    if activities is not None:
        _copy(conn, activities, "activities", ACTIVITIES)
        conn.execute(_ACTIVITIES)


def _copy(conn: psycopg.Connection[Any], path: Path, name: str, columns: dict[str, str]) -> None:
    """COPY a file into a table for this transaction, with a column for each of its own."""
    with path.open("rb") as file:
        first = file.readline()
        header = _header(path, first, columns, OPTIONAL[name])
        # what is not read needs a name that no other column has
        found = {text if text in columns else f"column {place}": columns.get(text, "text")
                 for place, text in enumerate(header, 1)}  # fmt: skip
        made = ", ".join(f"{ident(column)} {kind}" for column, kind in (OPTIONAL[name] | found).items())
        conn.execute(f"CREATE TEMP TABLE {name} ({made}) ON COMMIT DROP")
        target = f"pg_temp.{name} ({', '.join(map(ident, found))})"
        options = "FORMAT csv, HEADER, FORCE_NULL *, ENCODING 'UTF8'"
        with _refusals(path), conn.cursor().copy(f"COPY {target} FROM STDIN ({options})") as copy:
            copy.write(first)
            while block := file.read(2**16):
                copy.write(block)


def _header(path: Path, line: bytes, columns: dict[str, str], optional: dict[str, str]) -> list[str]:
    try:
        header = next(csv.reader([line.decode("utf-8-sig")]), [])
    except UnicodeDecodeError:
        raise InvalidRequest(f"{path}, line 1: it is not UTF-8 text; save it as that") from None
    for column in columns:
        if header.count(column) > 1:
            raise InvalidRequest(f"{path}, line 1, column {column}: twice in the header; leave one out")
        if column not in header and column not in optional:
            found = ", ".join(header) or "nothing"
            raise InvalidRequest(
                f"{path}, line 1, column {column}: not in the header, which has {found} (separated by commas)"
            )
    return header


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    try:
        yield
    except (psycopg.DataError, psycopg.IntegrityError) as error:
        said = error.diag
        place = _PLACE.search(said.context or "")
        if place is None:
            raise
        rule = "id" if isinstance(error, psycopg.errors.UniqueViolation) else said.constraint_name
        column = place[2] or said.column_name or rule
        parts = [BROKEN.get(error.sqlstate or "") or _cut(said.message_primary or "")]
        if column in EXPECTED:
            parts.append(f"it takes {EXPECTED[column]}")
        if place[3] and not place[2]:
            parts.append(f"the line is {_cut(place[3])}")
        where = f"{path}, {place[1]}" + (f", column {column}" if column else "")
        raise InvalidRequest(f"{where}: {'; '.join(parts)}") from None


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
