"""What we hold of the host's tables: columns that its next migration changes only with our help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from leadprotect.database.catalog import relation
from leadprotect.database.connection import own_names, rows
from leadprotect.settings import KEYS, Settings, current

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
    """What is pinned, and the columns of the two tables that the host changes as it likes."""

    pinned: tuple[Pin, ...]
    free: tuple[str, ...]

    @property
    def broken(self) -> bool:
        """Whether a column that we read has another name, or is gone."""
        return any(pin.gone for pin in self.pinned)


def pins(conn: psycopg.Connection[object], *, settings: Settings | None = None) -> Pins:
    """Look at the host's leads and activities; reads the catalog only, as any login."""
    s = settings or current()
    pinned: list[Pin] = []
    free: list[str] = []
    with conn.transaction(), own_names(conn):
        for key, prefixes in (("leads_table", ("lead_", "territory_")), ("activities_table", ("activity_",))):
            name = getattr(s, key)
            oid = relation(conn, *name.split(".", 1))
            standing = dict(rows(conn, _COLUMNS, (oid,)))
            wanted = {getattr(s, one): one for one in KEYS if one.startswith(prefixes) and one.endswith("_column")}
            for column, setting in wanted.items():
                number = standing.get(column)
                pinned.append(Pin(name, column, setting, number is None, _holding(conn, s, oid, number)))
            free += [f"{name}.{column}" for column in standing if column not in wanted]
    return Pins(tuple(pinned), tuple(free))


def _holding(conn: psycopg.Connection[object], s: Settings, oid: int | None, number: int | None) -> tuple[str, ...]:
    if number is None:
        return ()
    found = rows(conn, _HOLDING, (oid, number, s.schema, s.schema, s.role(""), s.role(""), s.schema))
    return tuple(held for kind, held in found if kind != "index")  # an index is made anew by ALTER TYPE itself
