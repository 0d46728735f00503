"""Ids of many leads, as they are sent and as the answer tells them: most of what a list costs a client is this."""

from __future__ import annotations

from collections.abc import Iterable
from struct import iter_unpack, pack
from typing import TYPE_CHECKING, Any
from uuid import UUID

from psycopg.adapt import Dumper
from psycopg.pq import Format

from leadprotect.access.arguments import NOT_READ, READERS, as_lead_id
from leadprotect.database.statements import let_send
from leadprotect.errors import InvalidRequest
from leadprotect.settings import current, render, type_name

if TYPE_CHECKING:
    from leadprotect.database.drivers import AnyConnection
    from leadprotect.settings import Settings

_UUID_OID, _UUIDS_OID = 2950, 2951
_WRITTEN = 36
"""Letters of a UUID as it is usually written, with a dash before each place of `_DASHES` in the next part."""

_LENGTH = "00000010"
"""That of a UUID, in hexadecimal, which stands before each in an array."""

_DASHES = tuple(len(_LENGTH) + place for place in (8, 13, 18, 23))
_WITHOUT_DASHES = {ord("-"): None}


class LeadList:
    """Leads that are asked for together; `given` are they as the caller wrote them, also twice, and None for none.

    Raises `InvalidRequest` for one that is no id, and for what is no collection of them.
    """

    def __init__(self, lead_ids: Iterable[Any]) -> None:
        # a text is a collection, too: of its characters
        if isinstance(lead_ids, (str, bytes)) or not isinstance(lead_ids, Iterable):
            raise InvalidRequest(f"lead_ids: {type(lead_ids).__name__} is no collection of ids; of one, give [lead_id]")
        self.given = list(lead_ids)
        self._keys: list[Any] | None = None
        self._asked = [lead for lead in self.given if lead is not None]
        kind = current().lead_id_type
        try:
            self._sent: Any = _as_array(self._asked) if kind == "uuid" else [READERS[kind](one) for one in self._asked]
        except NOT_READ:
            for lead in self._asked:
                as_lead_id(lead)  # names the first that is wrong
            raise

    def statement(self, when: str = "") -> str:
        """Which of them may be edited, as one value; its parameter is that of `value`, sent where `when` is no NULL."""
        return _statement(current(), when)

    def value(self, conn: AnyConnection) -> Any:
        """What stands for them in the statement, once the connection knows how to send it."""
        if isinstance(self._sent, _Uuids):
            let_send(conn, _Uuids, _UuidsDumper)
        return self._sent

    def expect(self) -> list[Any]:
        """What an answer is looked up by; made while the server works, it costs nobody anything."""
        if self._keys is None:
            self._keys = _each(self._sent.array) if isinstance(self._sent, _Uuids) else self._sent
        return self._keys

    def told(self, found: Any) -> list[bool]:
        """What the value of the statement says of each of `given`."""
        editable = set(_each(bytes.fromhex(found or "")) if isinstance(self._sent, _Uuids) else found or ())
        told = map(editable.__contains__, self.expect())
        if len(self._asked) == len(self.given):
            return list(told)
        return [lead is not None and next(told) for lead in self.given]


def _statement(s: Settings, when: str) -> str:
    # in binary, and as one array, a thousand ids cost a fraction of as many rows
    found = "pg_catalog.array_agg(lead)"
    if s.lead_id_type == "uuid":  # as a text, which the driver gives as it is
        found = f"pg_catalog.encode(pg_catalog.array_send({found}), 'hex')"
    asked = f"%b::{type_name(s.lead_id_type)}[]"
    if when:
        asked = f"CASE WHEN {when} IS NOT NULL THEN {asked} END"
    return f"SELECT {found} FROM {render('{schema}.editable_among', s)}({asked})"


class _Uuids:
    """An array of uuid as PostgreSQL sends and receives it."""

    def __init__(self, array: bytes) -> None:
        self.array = array


class _UuidsDumper(Dumper):
    oid = _UUIDS_OID
    format = Format.BINARY

    def dump(self, obj: _Uuids) -> bytes:
        return obj.array


def _as_array(asked: list[Any]) -> _Uuids:
    """One dimension; no text of ids as they are usually written is read one by one.

    Raises what shows that one of them is no id. Source: array_recv in src/backend/utils/adt/arrayfuncs.c.
    """
    elements = _of_texts(asked)
    if elements is None:
        reader = READERS["uuid"]
        length = bytes.fromhex(_LENGTH)
        elements = b"".join([length + (one if type(one) is UUID else reader(one)).bytes for one in asked])
    return _Uuids(pack("!5i", 1, 0, _UUID_OID, len(asked), 1) + elements)


def _of_texts(asked: list[Any]) -> bytes | None:
    """Each with its length before it; None unless all are texts in the usual form, in whatever case."""
    try:
        if {*map(len, asked)} != {_WRITTEN}:
            return None
        text = _LENGTH + _LENGTH.join(asked)
        width, dashes = len(_LENGTH) + _WRITTEN, "-" * len(asked)
        if any(text[place::width] != dashes for place in _DASHES):
            return None
        # a blank between two digits would be left out
        elements = bytes.fromhex(text.translate(_WITHOUT_DASHES))
    except (TypeError, ValueError):
        return None
    return elements if len(elements) == (width - len(_DASHES)) // 2 * len(asked) else None


def _each(array: bytes) -> list[bytes]:
    """The elements of an array of uuid; five numbers stand before them."""
    return [element for (element,) in iter_unpack("4x16s", array[20:])]
