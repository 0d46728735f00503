"""What we hold of the host's tables: columns that its next migration changes only with our help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from leadprotect.database.catalog import relation
from leadprotect.database.statements import own_names, rows
from leadprotect.preflight.columns import in_text
from leadprotect.settings import Settings, current
from leadprotect.settings.activities import is_expression, words
from leadprotect.settings.names import territory_columns

if TYPE_CHECKING:
    import psycopg

_HOLDING = """
    SELECT DISTINCT i.type,
           CASE WHEN i.type = 'rule' THEN 'view ' || v.oid::regclass ELSE i.type || ' ' || i.identity END
    FROM pg_depend AS d CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, 0) AS i
    LEFT JOIN pg_rewrite AS r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
    LEFT JOIN pg_class AS v ON v.oid = r.ev_class
    WHERE d.refclassid = 'pg_class'::regclass AND d.refobjid = %s AND d.refobjsubid = %s AND d.deptype IN ('n', 'a')
      AND (i.schema = quote_ident(%s) OR v.relnamespace = to_regnamespace(quote_ident(%s))
           OR starts_with(i.name, %s) OR starts_with(trim('"' FROM i.identity), %s)
           OR i.type = 'index' AND starts_with(i.name, 'ix_' || %s))
    ORDER BY 2
    """
_COLUMNS = """
    SELECT attname::text, attnum FROM pg_attribute
    WHERE attrelid = %s AND attnum > 0 AND NOT attisdropped ORDER BY attnum
    """


@dataclass(frozen=True)
class Pin:
    """A column that a setting names; `held_by` are our objects that refuse ALTER TYPE, `gone` that there is none."""

    table: str
    column: str
    setting: str
    gone: bool
    held_by: tuple[str, ...]


@dataclass(frozen=True)
class Pins:
    """What is pinned, and the other columns of those tables, that the host changes as it likes."""

    pinned: tuple[Pin, ...]
    free: tuple[str, ...]

    @property
    def broken(self) -> bool:
        """Whether a column that we read has another name, or is gone."""
        return any(pin.gone for pin in self.pinned)


def pins(conn: psycopg.Connection[object], *, settings: Settings | None = None) -> Pins:
    """Look at the host's leads, activities and lead_tables; reads the catalog only, as any login."""
    pinned: list[Pin] = []
    free: list[str] = []
    with conn.transaction(), own_names(conn):
        s = in_text(conn, settings or current())
        for name, wanted in _wanted(s).items():
            oid = relation(conn, *name.split(".", 1))
            standing = dict(rows(conn, _COLUMNS, (oid,)))
            read = {word: key for word, key in _read(s, name).items() if word in standing and word not in wanted}
            for column, setting in (wanted | read).items():
                number = standing.get(column)
                pinned.append(Pin(name, column, setting, number is None, _holding(conn, s, oid, number)))
            free += [f"{name}.{column}" for column in standing if column not in wanted | read]
    return Pins(tuple(pinned), tuple(free))


def _wanted(s: Settings) -> dict[str, dict[str, str]]:
    """The tables that the settings name -> their columns that a setting names, with its key."""
    territory = "territory_expression" if s.territory_expression else "territory_column"
    found = {s.leads_table: {s.lead_id_column: "lead_id_column"} | dict.fromkeys(territory_columns(s), territory)}
    if s.owner_column:
        found[s.leads_table].setdefault(s.owner_column, "owner_column")
    named = [(one.table, column, one.key(field)) for one in s.activities for field, column in one.columns.items()]
    for name, column, key in [*named, *((child.table, child.column, "lead_tables") for child in s.lead_tables)]:
        found.setdefault(name, {}).setdefault(column, key)
    return found


def _read(s: Settings, name: str) -> dict[str, str]:
    """Words of the expressions and conditions over a table's rows, with the key that says them: some are columns."""
    said = [
        (one.key(field), getattr(one, field))
        for one in s.activities
        if one.table == name
        for field in ("condition", "lead_id_column", "at_column")
    ]
    return {word: key for key, text in said if key.endswith("condition") or is_expression(text) for word in words(text)}


def _holding(conn: psycopg.Connection[object], s: Settings, oid: int | None, number: int | None) -> tuple[str, ...]:
    if number is None:
        return ()
    found = rows(conn, _HOLDING, (oid, number, s.schema, s.schema, s.role(""), s.role(""), s.schema))
    return tuple(held for kind, held in found if kind != "index")  # an index is made anew by ALTER TYPE itself
