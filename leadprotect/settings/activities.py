"""One table of activities, as the settings name it."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

KINDS = ("QUALIFIED_CALL", "CUSTOMER_REACTION", "SCHEDULED_FOLLOWUP", "SAMPLE_FEEDBACK", "ROI_PRESENTATION")
_NAME = r"[A-Za-z_\x80-\U0010ffff][\w$]*"
_SCHEMA = re.compile(rf"""'(?:[^']|'')*'|(?:"((?:[^"]|"")+)"|({_NAME}))\s*\.(?=\s*["A-Za-z_\x80-\U0010ffff])""")
_WORD = re.compile(r"""'(?:[^']|'')*'|"((?:[^"]|"")+)"|([A-Za-z_\x80-\U0010ffff][\w$]*)""")


@dataclass(frozen=True, kw_only=True)
class Activities:
    """One table of activities; the fields are the keys of a section ``[leadprotect.activities.NAME]``.

    `name` is empty for the one that section ``[leadprotect]`` itself names.
    """

    name: str = ""
    table: str = "public.activities"
    base_table: str = ""
    id_column: str = "id"
    lead_id_column: str = "lead_id"
    user_id_column: str = "user_id"
    kind_column: str = "kind"
    at_column: str = "created_at"
    condition: str = ""
    qualifying_kinds: tuple[str, ...] = KINDS

    def key(self, field: str) -> str:
        """The key of the settings that holds a field, as a message names it."""
        if self.name:
            return f"[leadprotect.activities.{self.name}] {field}"
        return {"table": "activities_table", "qualifying_kinds": field}.get(field, f"activity_{field}")

    @property
    def stands_on(self) -> str:
        """The table with the trigger and the index: what is read, or what the view that is read shows."""
        return self.base_table or self.table

    @property
    def columns(self) -> dict[str, str]:
        """Field -> column, of those that name one."""
        named = {field: str(getattr(self, field)) for field in COLUMNS if getattr(self, field)}
        return {field: column for field, column in named.items() if not is_expression(column)}

    @property
    def words(self) -> tuple[str, ...]:
        """Every word of the source's expressions: those that are columns it reads, beside `columns`."""
        said = [self.condition, *(text for text in (self.lead_id_column, self.at_column) if is_expression(text))]
        return tuple(sorted({word for text in said for word in words(text)}))


ACTIVITY_KEYS = tuple(entry.name for entry in fields(Activities) if entry.name != "name")
"""The keys of a section ``[leadprotect.activities.NAME]``."""

COLUMNS = tuple(key for key in ACTIVITY_KEYS if key.endswith("_column"))


def is_expression(text: str) -> bool:
    """Whether a column's setting is SQL: with a cast, or in parentheses; no name holds a colon."""
    return "::" in text or (text.startswith("(") and text.endswith(")"))


def schemas(text: str) -> Iterator[str]:
    """Where the functions and types of an expression are, as the catalog has it: its columns stand alone."""
    for match in _SCHEMA.finditer(text):
        named = match[1].replace('""', '"') if match[1] else (match[2] or "").lower()
        if named and not named.startswith("pg_"):
            yield named


def words(text: str) -> Iterator[str]:
    """The identifiers of an expression, as the catalog has them."""
    for match in _WORD.finditer(text):
        if match[1]:
            yield match[1].replace('""', '"')
        elif match[2]:
            yield match[2].lower()
