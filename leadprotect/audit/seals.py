"""Seals of the audit: chains of hashes that show whether a record was changed since.

A run of `seal` takes every row whose transaction has ended, and appends to each chain (one per
territory, one of the rows without territory) what it found. The texts that are hashed are defined
here once more, apart from the database, which an attacker may own: verification trusts nothing of
its functions but PostgreSQL's own.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadprotect.database.statements import rows
from leadprotect.settings import current, render

if TYPE_CHECKING:
    from collections.abc import Sequence

    from leadprotect.database.drivers import AnyConnection

ROWS_PER_SEAL = 10_000
_PLAIN = re.compile(r'[^{}",\\ \t\n\r\v\f]+')  # an element of an array that needs no quotes
FORMAT = "leadprotect-audit-1"
"""What the first line of an export with seals says."""

_TIMES = ("at", "first_at", "last_at", "sealed_at", "settled_until")
_ENDLESS = ("infinity", "-infinity")

# what s.ids::text is, in a fifth of its time
_IDS = """(
    SELECT '{' || coalesce(string_agg(concat('[', lower(r), ',', upper(r), ')'), ','), '') || '}'
    FROM unnest(s.ids) AS r)"""

ROW = {
    "id": "a.id",
    "transaction_id": "a.transaction_id::text",
    "at": "a.at AT TIME ZONE 'Etc/UTC'",
    "lead_id": "a.lead_id::text",
    "user_id": "a.user_id::text",
    "login": "a.login::text",
    "role": "a.role::text",
    "territory": "a.territory",
    "action": "a.action::text",
    "outcome": "a.outcome::text",
    "reason": "a.reason",
    "note": "a.note",
    "correlation_id": "a.correlation_id",
    "basis": "a.basis",
}
"""Fields of a recorded row, in the order in which they are hashed -> their SQL, as an export shows them."""

SEAL = {
    "territory": "s.territory",
    "number": "s.number",
    "run": "s.run",
    "month": "s.month",
    "row_count": "s.row_count",
    "ids": _IDS,
    "content": "encode(s.content, 'hex')",
    "row_checks": "encode(s.row_checks, 'hex')",
    "first_at": "s.first_at AT TIME ZONE 'Etc/UTC'",
    "last_at": "s.last_at AT TIME ZONE 'Etc/UTC'",
    "sealed_at": "s.sealed_at AT TIME ZONE 'Etc/UTC'",
    "sealed_by": "s.sealed_by",
    "origin": "s.origin",
    "snapshot": "s.snapshot::text",
    "transaction_id": "s.transaction_id::text",
    "last_number": "s.last_number",
    "settled_until": "s.settled_until AT TIME ZONE 'Etc/UTC'",
    "detached_table": "s.detached_table",
}
"""The same of a seal; its hash covers them and the hash of the seal before it."""

ROW_SHOWN = f"json_build_array({', '.join(ROW.values())})::text"
# what is hashed: all fields as one array, which PostgreSQL writes in half the time of JSON; under DateStyle ISO
ROW_TEXT = f"ARRAY['lp-row-1', {', '.join(f'({value})::text' for value in ROW.values())}]::text"
ROW_HASH = f"sha256(convert_to({ROW_TEXT}, 'UTF8'))"
ROW_ORDER = 'id, at, lead_id::text COLLATE "C"'
SEAL_TEXT = f"json_build_array('lp-seal-1', {', '.join(SEAL.values())})::text"
SEAL_HASH = f"sha256(coalesce(s.previous, '') || sha256(convert_to({SEAL_TEXT}, 'UTF8')))"


@dataclass(frozen=True)
class Head:
    """The newest seal of a chain: keep `hash` where nobody of this database can reach it.

    `territory` is None for the rows without one; `sealed` counts the rows that the run added.
    """

    territory: str | None
    number: int
    hash: str
    sealed: int


def seal(conn: AnyConnection, *, rows_per_seal: int = ROWS_PER_SEAL) -> tuple[Head, ...]:
    """Seal every recorded row whose transaction has ended; returns the newest seal of each chain.

    For operators, in a transaction of its own. Two runs at once wait for each other. Raises
    `InvalidRequest` in a transaction that has written already or is not READ COMMITTED.
    """
    columns = "territory, number, pg_catalog.encode(hash, 'hex'), sealed"
    statement = f"SELECT {columns} FROM {render('{schema}', current())}.seal_audit(%s::integer)"
    return tuple(Head(*found) for found in rows(conn, statement, (rows_per_seal,)))


def zoned(fields: dict[str, Any]) -> dict[str, Any]:
    """A row or a seal as an export shows it: what is hashed has its times in UTC, and no zone."""
    return {name: f"{value}Z" if _is_moment(name, value) else value for name, value in fields.items()}


def unzoned(fields: dict[str, Any]) -> dict[str, Any]:
    """The same as it is hashed; raises ValueError for a time that an export would not write so."""
    if wrong := [name for name, value in fields.items() if _is_moment(name, value) and not str(value).endswith("Z")]:
        raise ValueError(*wrong)
    return {name: str(value)[:-1] if _is_moment(name, value) else value for name, value in fields.items()}


def _is_moment(name: str, value: Any) -> bool:
    return name in _TIMES and value not in {None, *_ENDLESS}


def row_hash(fields: dict[str, Any]) -> bytes:
    """The hash of a row as an export holds it; the same as ROW_HASH. Raises ValueError for what is no such row."""
    plain = unzoned(fields)
    texts = [_element(_hashed(name, plain[name])) for name in ROW]
    return hashlib.sha256(f"{{lp-row-1,{','.join(texts)}}}".encode()).digest()


def transaction_of(text: str) -> int:
    """The transaction id in the text of a row that is hashed."""
    return int(text.split(",", 3)[2])


def _hashed(name: str, value: Any) -> str | None:
    """A field as a text; an export has the number of a row as one, and writes its time as XML does."""
    if type(value) is not (int if name == "id" else str) and (value is not None or name in {"id", "at"}):
        raise ValueError(name)
    text = None if value is None else str(value)
    if name == "at" and text not in _ENDLESS:
        day, time = str(text).split("T")
        return f"{day} {time}"
    return text


def _element(text: str | None) -> str:
    """What PostgreSQL writes of an element of an array.

    Source: https://www.postgresql.org/docs/current/arrays.html#ARRAYS-IO.
    """
    if text is None:
        return "NULL"
    if _PLAIN.fullmatch(text) and text.upper() != "NULL":
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def seal_body(fields: dict[str, Any]) -> bytes:
    """The hash of a seal's own fields, without the seal before it."""
    return hashlib.sha256(canonical(["lp-seal-1", *(fields[name] for name in SEAL)])).digest()


def chained(previous: str | None, body: bytes) -> str:
    """The hash of a seal that follows `previous`; the same as SEAL_HASH."""
    return hashlib.sha256(bytes.fromhex(previous or "") + body).hexdigest()


def canonical(values: Sequence[Any]) -> bytes:
    """What PostgreSQL's json_build_array writes of texts, whole numbers and nulls."""
    return json.dumps(list(values), ensure_ascii=False).encode()


def numbers(ranges: str | None) -> tuple[range, ...]:
    """The text of an int8multirange, ``{[1,4),[7,8)}``, as ranges."""
    pairs = (part.split(",") for part in (ranges or "{}").strip("{[)}").split("),[") if part)
    return tuple(range(int(low), int(high)) for low, high in pairs)


def joined(found: Sequence[int]) -> tuple[range, ...]:
    """Ascending numbers as ranges."""
    starts = [number for at, number in enumerate(found) if at == 0 or number > found[at - 1] + 1]
    ends = [number for at, number in enumerate(found) if at + 1 == len(found) or found[at + 1] > number + 1]
    return tuple(range(low, high + 1) for low, high in zip(starts, ends, strict=True))


def listed(ranges: Sequence[range], *, at_most: int = 20) -> str:
    """Numbers for a reader: ``3, 7-9, 12`` and how many more."""
    shown = [str(r[0]) if len(r) == 1 else f"{r[0]}-{r[-1]}" for r in ranges[:at_most]]
    more = sum(map(len, ranges[at_most:]))
    return ", ".join(shown) + (f" and {more:,} more" if more else "")
