"""What a caller passes to a function, checked before a statement: the server's refusal would cost his transaction."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

from leadprotect.errors import ContextMissing, InvalidRequest
from leadprotect.settings import current

if TYPE_CHECKING:
    from collections.abc import Callable

_UUID_DIGITS = 32
_WRITTEN_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}").fullmatch
_NUMBER = re.compile(r"-?[0-9]{1,19}")
# what a text of PostgreSQL can't hold, or the driver can't send
_UNSENDABLE = re.compile(r"[\0\ud800-\udfff]")

NOT_READ = (TypeError, ValueError, AttributeError)


def as_lead_id(lead_id: Any) -> Any:
    """The id in the type of the setting lead_id_type; raises `InvalidRequest` if it can't be one."""
    return None if lead_id is None else _typed("lead_id", lead_id, current().lead_id_type)


def as_lead_ids(lead_ids: Iterable[Any]) -> tuple[str, dict[Any, Any]]:
    """The same for each, by the id as it was given, and the SQL type to send and fetch them in.

    To make a UUID costs more than all else that is done with it here: written as PostgreSQL writes
    them, they stay text.
    """
    kind = current().lead_id_type
    # a text is a collection, too: of its characters
    if isinstance(lead_ids, (str, bytes)) or not isinstance(lead_ids, Iterable):
        raise InvalidRequest(f"lead_ids: {type(lead_ids).__name__} is no collection of ids; of one, give [lead_id]")
    given = list(lead_ids)
    try:
        if kind == "uuid" and all(lead is None or _WRITTEN_UUID(lead) for lead in given):
            return "text", {lead: lead for lead in given}
    except TypeError:  # not every one is a text
        pass
    reader = READERS[kind]
    try:
        return kind, {lead: None if lead is None else reader(lead) for lead in given}
    except NOT_READ:
        return kind, {lead: as_lead_id(lead) for lead in given}  # names the first that is wrong


def as_user_id(user_id: Any) -> str:
    """The id of a user as text of the setting user_id_type; raises `InvalidRequest` if it can't be one."""
    if user_id is None or user_id == "":
        message = "user_id is missing; pass the user who asks"
        raise InvalidRequest(message)
    if isinstance(user_id, UUID):
        return str(user_id)
    return str(_typed("user_id", user_id, current().user_id_type))


def check_caller(user_id: Any, territory: Any) -> None:
    """Check who is declared to act, as far as types go: a malformed id is a denial, and that has its record.

    Raises `ContextMissing` where one is None or '', `InvalidRequest` for another type than text
    (or UUID, for the user).
    """
    if user_id in (None, "") or territory in (None, ""):
        missing(user_id, territory)
    if not isinstance(user_id, UUID):
        check_text("user_id", user_id)
    check_text("territory", territory)


def check_text(name: str, value: Any) -> None:
    """Raise `InvalidRequest` unless `value` is None or a text that PostgreSQL can hold."""
    if value is None:
        return
    if not isinstance(value, str):
        message = f"{name}: {value!r} is not a text"
        raise InvalidRequest(message)
    if found := _UNSENDABLE.search(value):
        message = f"{name}: holds {found[0]!r}, which PostgreSQL can't store; leave it out"
        raise InvalidRequest(message)


def check_dates(effective_from: Any, effective_to: Any) -> None:
    """Raise `InvalidRequest` unless each is None or a datetime with a time zone."""
    for name, date in (("effective_from", effective_from), ("effective_to", effective_to)):
        if date is not None and not isinstance(date, datetime):
            message = f"{name}: {date!r} is not a datetime"
            raise InvalidRequest(message)
        if date is not None and date.tzinfo is None:
            message = f"{name} needs a time zone: 9 o'clock is another moment in another place"
            raise InvalidRequest(message)


def missing(user_id: object, territory: object) -> None:
    """Raise `ContextMissing`, naming which of the two is not set."""
    what = " and ".join(name for name, value in (("user", user_id), ("territory", territory)) if not value)
    message = f"no {what} in context: use leadprotect.acting_as(conn, user_id, territory), or name them"
    raise ContextMissing(message)


def _typed(name: str, given: Any, kind: str) -> Any:
    try:
        return READERS[kind](given)
    except NOT_READ:
        message = f"{name}: {given!r} is not of type {kind}, which the setting {name}_type names"
        raise InvalidRequest(message) from None


def _uuid(given: Any) -> UUID:
    if isinstance(given, UUID):
        return given
    digits = given.replace("-", "")
    if len(digits) != _UUID_DIGITS:
        digits = digits.removeprefix("urn:uuid:").strip("{}")
    # UUID() would take blanks, underscores and a sign for digits, as int() does
    raw = bytes.fromhex(digits)
    if len(digits) != _UUID_DIGITS:
        raise ValueError
    return UUID(bytes=raw)


def _number(given: Any, bits: int) -> int:
    if isinstance(given, bool) or not (isinstance(given, int) or _NUMBER.fullmatch(given)):
        raise ValueError
    number = int(given)
    if number >> bits not in {0, -1}:
        raise ValueError
    return number


def _text(given: Any) -> str:
    if not isinstance(given, str) or _UNSENDABLE.search(given):
        raise ValueError
    return given


READERS: dict[str, Callable[[Any], Any]] = {
    "uuid": _uuid,
    "bigint": partial(_number, bits=63),
    "integer": partial(_number, bits=31),
    "text": _text,
}
