"""Where owners come from: what the settings name, and the one derivation of it, as SQL.

Every function, trigger and check asks by what is written here. A row qualifies by its condition, its kind and
its user; the newest one of a lead that is not in the future makes the owner, of all sources together.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from leadprotect.settings.activities import COLUMNS, Activities, is_expression, schemas
from leadprotect.settings.quoting import ident, literal, table

if TYPE_CHECKING:
    from leadprotect.settings.load import Settings


_REFUSE_PARTITIONS = """
DO $do$
DECLARE
  parted text := (
    SELECT pg_catalog.string_agg(c.oid::regclass::text, ', ') FROM pg_catalog.pg_class AS c
    WHERE c.oid = ANY (ARRAY[NAMES]::regclass[]) AND c.relkind = 'p');
BEGIN
  IF parted IS NOT NULL THEN
    RAISE EXCEPTION '% is partitioned: a script can''t build its index CONCURRENTLY; nothing was touched', parted
      USING ERRCODE = 'feature_not_supported', HINT = 'Run alembic on the database itself, without --sql.';
  END IF;
END
$do$"""


@dataclass(frozen=True)
class SourceTable:
    """A source, for a revision; `first`: of several that read one table, what is once on a table is its."""

    name: str
    first: bool

    def key(self, placeholder: str) -> str:
        """What `leadprotect.settings.names` calls a placeholder of this source."""
        return f"{placeholder}__{self.name}"

    def fill(self, statement: str) -> str:
        """`statement` with ``{source_table}`` and its kin naming this source's, for `leadprotect.settings.sql`."""
        return re.sub(r"\{(source_[a-z_]+)\}", lambda match: f"{{{self.key(match[1])}}}", statement)


def suffix(activities: Activities) -> str:
    """What tells the objects of a further source from those of the first."""
    return f"_{activities.name}" if activities.name else ""


def filled(s: Settings) -> list[SourceTable]:
    """The sources of the settings, for a revision."""
    known = [one.stands_on for one in s.activities]
    return [SourceTable(one.name, one.stands_on not in known[:place]) for place, one in enumerate(s.activities)]


def derivation(s: Settings) -> dict[str, str]:
    """What a revision calls the derivation and its parts."""
    own = {f"{key}__{one.name}": text for one in s.activities for key, text in _source(s, one).items()}
    return own | {
        "qualifying": _qualifying(s),
        "derived_owner": _derived_owner(s),
        "derived_owners": _derived_owners(s),
        "read_activity": "\n".join(_read_activity(s, one) for one in s.activities),
        "host_names": ", ".join(
            literal(table(name)) for name in dict.fromkeys([s.leads_table, *(one.table for one in s.activities)])
        ),
        "owned_by": literal(owned_by(s)),
        "owner_says": literal(" or ".join(_told(s, "their {}", "their newest qualifying activity"))),
        "host_schemas": ", ".join(sorted(map(literal, schemas_read(s)))),
        "source_times": ", ".join(
            f"({literal(table(one.table))}, {'NULL' if is_expression(one.at_column) else literal(one.at_column)})"
            for one in s.activities
        )
        or "(NULL, NULL)",
        # ids of several tables are of several types, and each is compared with those of its own table alone
        "source_id": f"{literal(table(s.activities[0].table))}, {literal(s.activities[0].id_column)}"
        if len(s.activities) == 1
        else "NULL, NULL",
        "compare_activities": "\n          ".join(_compare(one) for one in s.activities),
        "named": "true" if s.owner_column else "false",
        "named_first": "true" if s.owners_from[0] == "column" else "false",
        "named_old": _named(s, "OLD"),
        "named_new": _named(s, "NEW"),
        **_column_in_step(s),
        "named_before": _named(s, "l"),
        "named_after": _named(s, "c"),
        "named_columns": ", ".join(map(ident, filter(None, [s.lead_id_column, s.owner_column]))),
        "source_triggers": ", ".join(
            [
                *(
                    line
                    for one in s.activities
                    for line in _triggers(s, one.stands_on, ("own_active_lead", f"transition{suffix(one)}"))
                ),
                *(_triggers(s, s.leads_table, ("own_named_lead", "own_named")) if s.owner_column else []),
            ]
        ),
        "transition_triggers": ",\n                         ".join(
            [
                *_triggers(
                    s, s.leads_table, ("note_contextless_write", "note_writes"), ("own_moved_lead", "territory")
                ),
                *(_triggers(s, s.leads_table, ("own_named_lead", "own_named")) if s.owner_column else []),
                *(
                    line
                    for name in _tables(s)
                    for line in _triggers(s, name, ("note_contextless_write", "note_writes"))
                ),
                *(
                    line
                    for one in s.activities
                    for line in _triggers(s, one.stands_on, ("own_active_lead", f"transition{suffix(one)}"))
                ),
            ]
        ),
        "refuse_partitions": _REFUSE_PARTITIONS.replace("NAMES", ", ".join(literal(table(one)) for one in _tables(s))),
        "source_index_shapes": "".join(_index_shape(s, one) for one in s.activities),
        "source_indexes": ", ".join(_source(s, one)["source_index_path_name"] for one in s.activities),
        "derivation": literal(fingerprint(s)),
        "excluded_users": ", ".join(map(literal, s.excluded_users)),
    }


def owned_by(s: Settings) -> str:
    """What a lead has that makes an owner, by where the settings say that owners come from."""
    return " or ".join(_told(s, "somebody in {}", "a qualifying activity"))


def owned_by_none(s: Settings) -> str:
    """The same of a lead of which nothing makes an owner."""
    return " and ".join(_told(s, "nobody in {}", "no qualifying activity"))


def _told(s: Settings, column: str, activity: str) -> list[str]:
    told = {"column": column.format(s.owner_column), "activities": activity}
    return [told[source] for source in s.owners_from]


def schemas_read(s: Settings) -> dict[str, str]:
    """The schemas that our functions look into: of the tables, and of what is called about their rows -> the key."""
    found = {name.split(".", 1)[0]: key for name, key in reversed(s.host_tables.items())}
    said = [(s.territory_expression, "territory_expression")]
    for one in s.activities:
        found.setdefault(one.table.split(".", 1)[0], one.key("table"))
        said += [(getattr(one, field), one.key(field)) for field in ("condition", *COLUMNS)]
    for text, key in said:
        if key.endswith(("expression", "condition")) or is_expression(text):
            for schema in schemas(text):
                found.setdefault(schema, key)
    return found


def fingerprint(s: Settings) -> str:
    """The settings that decide who owns a lead, as the functions in the database hold them."""
    leads = [table(s.leads_table), ident(s.lead_id_column), s.territory_expression or ident(s.territory_column)]
    sources = [
        part
        for one in s.activities
        for part in (
            *([f"[{one.name}]"] if one.name else []),
            table(one.table),
            *([f"on {table(one.base_table)}"] if one.base_table else []),
            *(column_sql(getattr(one, field), "") for field in COLUMNS if getattr(one, field)),
            *([one.condition] if one.condition else []),
            *([", ".join(sorted(one.qualifying_kinds))] if one.kind_column else []),
        )
    ]
    excluded = [f"without {', '.join(sorted(s.excluded_users))}"] if s.excluded_users else []
    column = [f"{', '.join(s.owners_from)}: {ident(s.owner_column)}"] if s.owner_column else []
    return "; ".join([*leads, *sources, *column, *excluded])


def qualifies(s: Settings, one: Activities, alias: str = "v", *, indexed: bool = False) -> str:
    """The condition on a row of the source, its time aside; of `indexed`, what its index is built for."""
    user = column_sql(one.user_id_column, alias)
    parts = [f"({one.condition})"] if one.condition else []
    if one.kind_column:
        parts.append(f"{column_sql(one.kind_column, alias)} IN ({', '.join(map(literal, one.qualifying_kinds))})")
    parts.append(f"{user} IS NOT NULL")
    if s.excluded_users and not indexed:
        parts.append(f"{user}::{s.user_id_type} NOT IN ({', '.join(map(literal, s.excluded_users))})")
    return " AND ".join(parts)


def _current(s: Settings, one: Activities) -> str:
    """The condition on a row that makes an owner now: nobody dates himself in front of all others."""
    return f"{qualifies(s, one)} AND ({column_sql(one.at_column, 'v')} <= pg_catalog.clock_timestamp()) IS NOT FALSE"


def _qualifying(s: Settings) -> str:
    """The leads with a row that makes an owner, as something to select from."""
    asked = [
        f"SELECT {_lead(one, 'v')} AS lead_id FROM {table(one.table)} AS v WHERE {_current(s, one)}"
        for one in s.activities
    ]
    if s.owner_column:
        asked.append(
            f"SELECT v.{ident(s.lead_id_column)} AS lead_id FROM {table(s.leads_table)} AS v WHERE {_names_one(s)}"
        )
    return f"({' UNION ALL '.join(asked)})"


def _derived_owner(s: Settings) -> str:
    """The row that makes the owner of ``wanted.lead_id``, if any: user_id, at, id, source."""
    asked = [
        f"SELECT {column_sql(one.user_id_column, 'v')}::{s.user_id_type} AS user_id, "
        f"{column_sql(one.at_column, 'v')} AS at, {_id(s, one, 'v')} AS id, "
        f"{literal(one.name) if one.name else 'NULL'}::text AS source "
        f"FROM {table(one.table)} AS v WHERE {_lead(one, 'v')} = wanted.lead_id AND {_current(s, one)} "
        f"ORDER BY {column_sql(one.at_column, 'v')} DESC NULLS LAST, {column_sql(one.id_column, 'v')} DESC LIMIT 1"
        for one in s.activities
    ]
    if not s.owner_column:
        return _newest(asked)
    named = f"SELECT {_named(s, 'w')}::{s.user_id_type} AS user_id"
    if not asked:
        column = f"{named}, NULL::timestamptz AS at, NULL::text AS id, NULL::text AS source"
        return f"({column} FROM {table(s.leads_table)} AS w WHERE {_of_wanted(s)} AND {_names_one(s, 'w')})"
    # the lead is read once, and activities only where the column leaves it to them
    column = f"{named}, NULL AS at, NULL AS id, NULL::text AS source"
    if s.owners_from[0] == "column":
        branches = (
            f"SELECT * FROM {_newest(asked)} AS n WHERE ({_names_one(s, 'w')}) IS NOT TRUE "
            f"UNION ALL {column} WHERE {_names_one(s, 'w')}"
        )
    else:
        branches = (
            f"SELECT * FROM ({_newest(asked)} UNION ALL ({column} WHERE {_names_one(s, 'w')})) AS n "
            "ORDER BY n.id IS NULL LIMIT 1"
        )
    return (
        f"(SELECT d.user_id, d.at, d.id, d.source FROM {table(s.leads_table)} AS w, LATERAL ({branches}) AS d "
        f"WHERE {_of_wanted(s)})"
    )


def _newest(asked: list[str]) -> str:
    """The newest of what each source has newest."""
    if len(asked) == 1:
        return f"({asked[0]})"
    together = " UNION ALL ".join(f"({one})" for one in asked)
    return f'(SELECT * FROM ({together}) AS e ORDER BY e.at DESC NULLS LAST, e.source COLLATE "C" NULLS FIRST LIMIT 1)'


def _of_wanted(s: Settings) -> str:
    return f"w.{ident(s.lead_id_column)} = wanted.lead_id"


def _derived_owners(s: Settings) -> str:
    """The same for each of ``derived_owners.leads``; a column alone is read for all at once, by their index."""
    if s.activities:
        columns = "wanted.lead_id, newest.user_id, newest.at, newest.id, newest.source"
        wanted = "unnest(derived_owners.leads) AS wanted (lead_id)"
        return f"SELECT {columns} FROM {wanted}, LATERAL {_derived_owner(s)} AS newest"
    lead = f"v.{ident(s.lead_id_column)}"
    return (
        f"SELECT {lead}::{s.lead_id_type}, {_named(s, 'v')}::{s.user_id_type}, "
        "NULL::timestamptz, NULL::text, NULL::text "
        f"FROM {table(s.leads_table)} AS v WHERE {lead} = ANY (derived_owners.leads) AND {_names_one(s)}"
    )


def _named(s: Settings, row: str) -> str:
    """The owner that the lead's own column names; NULL where there is no such column."""
    return f"{row}.{ident(s.owner_column)}" if s.owner_column else "NULL::text"


def _column_in_step(s: Settings) -> dict[str, str]:
    """The column, and the user that it names in a row, for what keeps it in step: never called where there is none."""
    return {"owner_column_here": ident(s.owner_column or s.lead_id_column)} | {
        f"owner_in_{row}": f"(CASE WHEN {_names_one(s, alias)} THEN {_named(s, alias)}::{s.user_id_type} END)"
        for row, alias in {"new": "NEW", "l": "l"}.items()
    }


def _names_one(s: Settings, alias: str = "v") -> str:
    """Whether the column names an owner: nobody else by an empty text, and no user who never owns."""
    column = _named(s, alias)
    excluded = f" AND {column}::{s.user_id_type} NOT IN ({', '.join(map(literal, s.excluded_users))})"
    # only a text can be empty
    someone = f"{column}::text <> ''" if s.user_id_type == "text" else f"{column} IS NOT NULL"
    return someone + (excluded if s.excluded_users else "")


def _read_activity(s: Settings, one: Activities) -> str:
    """For the trigger: what the derivation reads of the row before and after, nothing where it does not qualify."""
    fields = ("lead_id", "user_id", "activity_at", "activity_id")

    def taken(row: str, into: str) -> str:
        if one.base_table:
            return shown(row, into)
        values = [
            _lead(one, "v"),
            column_sql(one.user_id_column, "v"),
            column_sql(one.at_column, "v"),
            _id(s, one, "v"),
        ]
        return (
            f"SELECT {', '.join(values)} "
            f"INTO {', '.join(f'{into}.{field}' for field in fields)} "
            f"FROM (SELECT {row}.*) AS v WHERE {qualifies(s, one)};"
        )

    def shown(row: str, into: str) -> str:
        # a view shows what the row is now: it counts where it makes the owner, and may have before
        if row == "OLD":
            return f"was.lead_id := {_lead(one, 'OLD')}; was.activity_id := {_id(s, one, 'OLD')};"
        return (
            f"SELECT {', '.join(f'd.{field}' for field in fields)} "
            f"INTO {', '.join(f'{into}.{field}' for field in fields)} "
            f"FROM {ident(s.schema)}.derived_owners(ARRAY[{_lead(one, 'NEW')}]) AS d "
            f"WHERE d.activity_source IS NOT DISTINCT FROM TG_ARGV[0] AND d.activity_id = {_id(s, one, 'NEW')};"
        )

    return (
        f"IF TG_ARGV[0] IS NOT DISTINCT FROM {literal(one.name) if one.name else 'NULL'} THEN\n"
        f"            IF TG_OP <> 'INSERT' THEN\n              {taken('OLD', 'was')}\n            END IF;\n"
        f"            IF TG_OP <> 'DELETE' THEN\n              {taken('NEW', 'fresh')}\n            END IF;\n"
        "          END IF;"
    )


def _source(s: Settings, one: Activities) -> dict[str, str]:
    schema = one.stands_on.split(".", 1)[0]
    index = f"ix_{s.schema}_activities{suffix(one)}"
    keys = (
        _lead(one, ""),
        f"{column_sql(one.at_column, '')} DESC NULLS LAST",
        f"{ident(one.id_column)} DESC",
    )
    shape = f"({', '.join(keys)}) INCLUDE ({ident(one.user_id_column)}) WHERE {qualifies(s, one, '', indexed=True)}"
    if one.base_table:
        shape = f"({keys[0]}, {keys[2]})"
    return {
        "source_table": table(one.stands_on),
        "source_read": table(one.table),
        # every row that belongs to a lead, whether it qualifies or not
        "source_rows": f"SELECT FROM {table(one.table)} AS v WHERE {f'({one.condition})' if one.condition else 'true'}",
        "source_columns": ", ".join(ident(column) for column in one.columns.values()),
        "source_words": f"ARRAY[{', '.join(map(literal, one.words))}]::text[]",
        "source_lead": _lead(one, "v"),
        "source_name": literal(table(one.stands_on)),
        "source_read_name": literal(table(one.table)),
        "source_argument": literal(one.name) if one.name else "",
        "source_transition": ident(s.role(f"transition{suffix(one)}")),
        "source_index": ident(index),
        "source_index_path": ident(schema, index),
        "source_index_path_name": literal(ident(schema, index)),
        "source_shape": shape,
        "source_shape_name": literal(f"leadprotect: {shape}"),
        "source_index_columns": ", ".join("NULL" if name is None else literal(name) for name in indexed(one)),
    }


def _triggers(s: Settings, name: str, *pairs: tuple[str, str]) -> list[str]:
    """Of each function of a trigger on the host, and what its trigger is called: a row of VALUES."""
    host = literal(table(name))
    return [f"({literal(function)}, {host}::regclass, {literal(s.role(called))})" for function, called in pairs]


def _index_shape(s: Settings, one: Activities) -> str:
    """What tells the index of a source from a stranger's: one more row of VALUES."""
    known = _source(s, one)
    path, host, columns = (known[f"source_{key}"] for key in ("index_path_name", "name", "index_columns"))
    whole = "true" if one.base_table else "false"
    return f",\n                       ({path}, {host}, {whole}, ARRAY[{columns}])"


def _tables(s: Settings) -> list[str]:
    return list(dict.fromkeys(one.stands_on for one in s.activities))


def indexed(one: Activities) -> tuple[str | None, ...]:
    """The columns of the source's index, in their order; None: an expression."""
    columns = (one.lead_id_column, one.at_column, one.id_column, one.user_id_column)
    named = (one.lead_id_column, one.id_column) if one.base_table else columns
    return tuple(None if is_expression(column) else column for column in named)


def _id(s: Settings, one: Activities, alias: str) -> str:
    return column_sql(one.id_column, alias) + ("::text" if len(s.activities) > 1 else "")


def _compare(one: Activities) -> str:
    kept = f"{table(one.table)}.{ident(one.id_column)}%TYPE"
    return (
        f"IF of_source IS NOT DISTINCT FROM {literal(one.name) if one.name else 'NULL'} THEN\n"
        f"            DECLARE this {kept} := one; that {kept} := other; BEGIN RETURN this < that; END;\n"
        "          END IF;"
    )


def _lead(one: Activities, alias: str) -> str:
    """The lead of a row. Where the condition leaves a row out, what stands for its lead may be no id at all."""
    if one.condition and is_expression(one.lead_id_column):
        return f"(CASE WHEN {one.condition} THEN {one.lead_id_column} END)"
    return column_sql(one.lead_id_column, alias)


def column_sql(text: str, alias: str = "v") -> str:
    """A column's setting as SQL over a row of its source."""
    if is_expression(text):
        return f"({text})"
    return f"{alias}.{ident(text)}" if alias else ident(text)
