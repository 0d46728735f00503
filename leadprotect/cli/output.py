"""JSON as every command writes it: times by RFC 3339 in UTC, ids and exact numbers as text."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import PurePath
from uuid import UUID


def as_json(value: object, *, indent: int | None = None) -> str:
    """`value` as JSON text; a range becomes its first and last number.

    Raises `TypeError` for a time without a zone, which would be another moment in another place, and
    for a type that nobody has decided about.
    """
    return json.dumps(value, default=_plain, indent=indent)


def event(name: str, answer: object, **more: object) -> str:
    """One line of JSON that tells what happened and the fields of a dataclass."""
    return as_json({"event": name, **fields_of(answer), **more})


def fields_of(answer: object) -> dict[str, object]:
    """The fields of a dataclass by name; an id is a text, of whatever type the database has it."""
    values = {one.name: getattr(answer, one.name) for one in fields(answer)}  # type: ignore[arg-type] # checked by it
    return {name: str(value) if _is_id(name, value) else value for name, value in values.items()}


def _is_id(name: str, value: object) -> bool:
    return type(value) is int and (name == "shared_by" or name.endswith("_id"))


def _plain(value: object) -> object:
    if isinstance(value, datetime):
        if value.tzinfo is None:
            message = f"{value.isoformat()} has no time zone"
            raise TypeError(message)
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if is_dataclass(value):
        return fields_of(value)
    if isinstance(value, range):
        return [value[0], value[-1]]
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, (Decimal, UUID, PurePath)):
        return str(value)
    message = f"{type(value).__name__} has no form in JSON"
    raise TypeError(message)
