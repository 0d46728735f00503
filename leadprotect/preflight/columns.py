"""A column of the host, as the catalog has it, and why it can't serve."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from leadprotect.database.catalog import relation
from leadprotect.database.statements import rows
from leadprotect.errors import SettingsError
from leadprotect.settings import ident, literal
from leadprotect.settings.values import read

if TYPE_CHECKING:
    from leadprotect.database.drivers import AnyConnection
    from leadprotect.settings import Settings

TEXTS = ("text", "character varying")
IDS = {"bigint": ("bigint",), "integer": ("integer",), "uuid": ("uuid",), "text": TEXTS}
"""The types of a column, domains aside, that a type of the settings may be."""
_CODES = ("character", "smallint", "integer", "bigint")
"""Whose values are codes of territories, too: their text is immutable, as an index needs it."""


class Column(NamedTuple):
    """A column as the catalog has it: `base` is its type below domains, `virtual` the expression it is made of."""

    name: str
    type: str
    base: str
    virtual: str | None
    folds: str | None
    labels: list[str]

    @property
    def as_text(self) -> str:
        """The expression of text for a column that is none: the text of an enum's label is not immutable."""
        named = ident(self.name)
        if not self.labels:
            return f"{named}::text"
        place = named if self.type == self.base else f"{named}::{self.base}"
        cases = " ".join(f"WHEN {literal(label)} THEN {literal(label)}" for label in self.labels)
        # a label that comes later is a territory that nobody holds, never one outside protection
        later = f"CASE WHEN {named} IS NOT NULL THEN 'a new label' ELSE NULL END"
        return f"CASE {place} {cases} ELSE {later} END"


# what a row of the table has in each of its columns; the innermost type of a domain comes last
_SHAPES = """
    WITH RECURSIVE typed AS (
      SELECT a.attrelid, a.attnum, a.attname::text AS name, a.atttypid AS declared, a.attcollation,
             to_jsonb(a) ->> 'attgenerated' AS generated, a.atttypid AS base, 0 AS depth
      FROM pg_attribute AS a WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped
      UNION ALL
      SELECT c.attrelid, c.attnum, c.name, c.declared, c.attcollation, c.generated, t.typbasetype, c.depth + 1
      FROM typed AS c JOIN pg_type AS t ON t.oid = c.base WHERE t.typtype = 'd')
    SELECT DISTINCT ON (c.attnum) c.name, format_type(c.declared, NULL), format_type(c.base, NULL),
           CASE c.generated WHEN 'v' THEN pg_get_expr(d.adbin, d.adrelid) END,
           CASE WHEN NOT coalesce(l.collisdeterministic, true) THEN l.collname::text END,
           ARRAY(SELECT e.enumlabel::text FROM pg_enum AS e WHERE e.enumtypid = c.base ORDER BY e.enumsortorder)
    FROM typed AS c
    LEFT JOIN pg_attrdef AS d ON d.adrelid = c.attrelid AND d.adnum = c.attnum
    LEFT JOIN pg_collation AS l ON l.oid = c.attcollation
    ORDER BY c.attnum, c.depth DESC
    """


def columns_of(conn: AnyConnection, oid: int | None) -> dict[str, Column]:
    """The columns of a table, by name."""
    return {column.name: column for column in map(Column._make, rows(conn, _SHAPES, (oid,)))}


def unfit(key: str, where: str, column: Column, allowed: tuple[str, ...] | None, type_key: str) -> list[str]:
    """Why a column can't serve: what no index holds, what takes two values for one, another type than `allowed`."""
    if column.virtual:
        return [
            (
                f"{key}: {where} is a VIRTUAL generated column, which no index can hold: store it "
                f"(GENERATED ALWAYS AS ({column.virtual}) STORED), or name a column that is stored"
            )
        ]
    if column.folds:
        return [
            (
                f"{key}: {where} has the collation {column.folds}, in which texts that differ are equal, "
                "and so one lead would be another: give it a deterministic one"
            )
        ]
    if allowed is not None and column.base not in allowed:
        named = column.base if column.type == column.base else f"{column.type}, a domain over {column.base}"
        instead = {
            "territory_column": f"; name it as an expression: territory_expression = {column.as_text}",
            "lead_tables": "; name a generated column of that type, which leadprotect init writes out",
        }.get(key, "")
        return [f"{type_key}: {where} is {named}, expected {' or '.join(allowed)}{instead}"]
    return []


def in_text(conn: AnyConnection, s: Settings) -> Settings:
    """The settings, where the territory's column is a char, an integer or an enum: with the expression of its text.

    The catalog alone knows the type, so whoever writes or compares SQL about the territory asks here first.
    """
    if not s.territory_column:
        return s
    column = columns_of(conn, relation(conn, *s.leads_table.split(".", 1))).get(s.territory_column)
    if column is None or column.virtual or not (column.labels or column.base in _CODES):
        return s
    try:
        expression = str(read("territory_expression", column.as_text))
    except SettingsError:  # a name or a label that no expression can hold: preflight refuses the column
        return s
    return replace(s, territory_column="", territory_expression=expression)
