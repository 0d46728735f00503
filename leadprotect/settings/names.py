"""Names and values of the settings as SQL: quoted by one helper, and pasted where a statement says ``{name}``."""

from __future__ import annotations

import json
import re
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING

from leadprotect.settings.codes import BACKUP, OFFICES, code_literal
from leadprotect.settings.expressions import columns, of_row, split
from leadprotect.settings.load import KEYS, load
from leadprotect.settings.quoting import ident, literal, table
from leadprotect.settings.sources import derivation, filled, suffix
from leadprotect.settings.values import of_setting

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import DDL

    from leadprotect.settings.load import Settings
    from leadprotect.settings.sources import SourceTable
    from leadprotect.settings.values import LeadTable

# Everything that we put on the host's tables, by what a revision calls it; each carries our schema's
# name in front. Placeholders, preflight, inventory and the way down come from these three.
HOST_TRIGGERS = {
    "transition": "transition",
    "transition_territory": "territory",
    "note_writes": "note_writes",
    "forget": "forget",
    "forget_id": "forget_id",
    "forget_all": "forget_all",
    "audit_edit": "audit_edit",
    "audit_edits": "audit_edits",
    "audit_truncate": "audit_truncate",
    "refuse_move": "refuse_move",
    "refuse_taken": "refuse_taken",
    "own_new": "own_new",
    "own_named": "own_named",
    "audit_stepped": "audit_stepped",
    "follow_new": "follow_new",
    "follow_column": "follow_column",
    "hide_column": "hide_column",
}
HOST_POLICIES = ("border", "rows", "update", "named_update", "delete", "members_update", "members_delete", "step")
# the same on a table that holds data of leads
CHILD_TRIGGERS = {
    "child_edit": "child_edit",
    "child_edits": "child_edits",
    "child_deletes": "child_deletes",
    "child_insert": "child_insert",
    "child_inserts": "child_inserts",
    "child_move": "child_move",
    "child_truncate": "child_truncate",
}
NOT_APPENDED = ("child_insert", "child_inserts")
"""Policies and triggers that a table has not to which everybody of the territory adds rows."""
CHILD_POLICIES = ("child_border", "child_rows", "child_insert", "child_update", "child_delete")
# what a shadow puts on leads and on a table of theirs, until it is stopped or contract comes: in the order of names
# they fire before what makes another owner in the transition
SHADOW_TRIGGERS = ("observe_edits", "observe_inserts", "observe_moves", "observe_deletes", "observe_truncate")
SHADOW_CHILD_TRIGGERS = ("observe_rows", "observe_truncate")
HOST_INDEXES = {"leads_index": "leads", "activities_index": "activities"}

AT_CONTRACT = ("exempt_roles", "host_rls", "denied_edit", "owner_on_insert", "lead_tables")
"""Settings that contract writes into what it makes, and `leadprotect apply` changes there afterwards."""

ROLE_COMMENT = "leadprotect: made by its migration, without a login"
"""What tells a role of ours from one that somebody made before us."""

KEPT = "leadprotect.settings"
"""Where a running Alembic command keeps its settings, among the attributes of its config."""

NIL_LEADS = {"uuid": "00000000-0000-0000-0000-000000000000", "bigint": "0", "integer": "0", "text": ""}


# how pg_type calls what SQL calls by its own words
_INTERNAL = {"bigint": "int8", "integer": "int4"}


def trigger_names(s: Settings) -> dict[str, str]:
    """Name of a trigger of ours on the host, unquoted -> what `HOST_TRIGGERS` calls it."""
    own = {s.role(called): name for name, called in HOST_TRIGGERS.items()}
    return own | {s.role(f"transition{suffix(one)}"): "transition" for one in s.activities}


def host_indexes(s: Settings) -> dict[str, str]:
    """Name of an index of ours on the host, unquoted -> the table that it is on, ``schema.name``."""
    return {f"ix_{s.schema}_leads": s.leads_table} | {
        f"ix_{s.schema}_activities{suffix(one)}": one.stands_on for one in s.activities
    }


def type_name(kind: str) -> str:
    """A type of the settings as SQL: named whole, because a caller's path may hold another of its name first."""
    return f"pg_catalog.{_INTERNAL.get(kind, kind)}"


def sql(statement: str, child: LeadTable | None = None) -> DDL:
    """Render a revision's raw block: ``{schema}`` and its kin become quoted names, ``{child}`` those of `child`.

    Only for revisions: the settings are those of the running Alembic command. Plain text would have
    every ``:word`` taken as a bind parameter; a `DDL` goes to the server as it stands.
    """
    from sqlalchemy import DDL  # noqa: PLC0415 - the library must not need Alembic on the hot path

    return DDL(render(statement, _running(), child).replace("%", "%%"))  # type: ignore[no-untyped-call]


def lead_tables() -> tuple[LeadTable, ...]:
    """The tables that hold data of leads; only for revisions, as `sql` is."""
    return _running().lead_tables


def _running() -> Settings:
    from alembic import context  # noqa: PLC0415

    known: Settings | None = context.config.attributes.get(KEPT)
    return known or load(context.config)


def activity_sources() -> list[SourceTable]:
    """The tables that make owners, for a revision: by the settings of the running Alembic command."""
    return filled(_running())


@lru_cache(maxsize=512)
def render(statement: str, settings: Settings, child: LeadTable | None = None) -> str:
    """Replace ``{name}`` in `statement` by what `names` holds, and `child_names` where there is a `child`.

    An unknown name is a `KeyError`. Remembered, since a check of one lead would else spend more on its text than
    on asking.
    """
    known = {**names(settings), **child_names(child)} if child else names(settings)
    return re.sub(r"\{([a-z_][a-z0-9_]*)\}", lambda match: known[match[1]], statement)


# A policy `p` for everybody, of table `c`, narrowed to the roles that may do something with it: the statement to paste.
_NARROWING = """'ALTER POLICY ' || quote_ident(p.polname) || ' ON '
              || (SELECT concat_ws('.', quote_ident(n.nspname), quote_ident(c.relname))
                  FROM pg_namespace AS n WHERE n.oid = c.relnamespace)
              || ' TO ' || coalesce((
              SELECT string_agg(DISTINCT quote_ident(r.rolname), ', ')
              FROM aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) AS acl
              JOIN pg_roles AS r ON r.oid = acl.grantee
              WHERE r.rolname <> ALL (ARRAY[OFFICES]::name[])), '...') || ';'"""


@lru_cache(maxsize=4)
def names(settings: Settings) -> Mapping[str, str]:
    """Every placeholder of a revision, as SQL text that is safe to paste.

    Remembered, since a migration renders hundreds of blocks with the same settings.
    """
    s = settings
    host_schema, leads_name = s.leads_table.split(".", 1)
    activities_schema = s.activities_table.split(".", 1)[0]
    named = [key for key in KEYS if key.endswith("_column")]
    offices = {office: ident(s.role(office)) for office in OFFICES}
    known = {
        "schema": ident(s.schema),
        "schema_name": literal(ident(s.schema)),
        "quarantine": ident(s.quarantine),
        "quarantine_name": literal(ident(s.quarantine)),
        "versions": ident(s.version_table_schema, s.version_table),
        "versions_schema": literal(s.version_table_schema),
        "leads": table(s.leads_table),
        "leads_name": literal(table(s.leads_table)),
        "leads_schema": literal(host_schema),
        "leads_label": literal(f"{host_schema}.{leads_name}"),
        "activities": table(s.activities_table),
        "activities_name": literal(table(s.activities_table)),
        **derivation(s),
        **{column.removesuffix("_column"): ident(getattr(s, column)) for column in named},
        **{column + "_name": literal(getattr(s, column)) for column in named},
        **territory_of(s),
        **context_of(s),
        "lead_id_type": s.lead_id_type,
        "lead_type": type_name(s.lead_id_type),
        "user_id_type": s.user_id_type,
        "kinds": ", ".join(literal(kind) for kind in s.qualifying_kinds),
        "territories": ", ".join(map(code_literal, s.territories)),
        "territory_suffixes": ", ".join(literal(dict(s.territory_suffixes).get(c, c).lower()) for c in s.territories),
        **offices,
        "offices": ", ".join(literal(s.role(office)) for office in OFFICES),
        "owner_name": literal(s.role("owner")),
        "reader_name": literal(s.role("reader")),
        "app_name": literal(s.role("app")),
        "auditor_name": literal(s.role("auditor")),
        "manager_name": literal(s.role("manager")),
        "operator_name": literal(s.role("operator")),
        "backup_name": literal(s.role(BACKUP)),
        "role_comment": literal(ROLE_COMMENT),
        "role_prefix": literal(s.schema + "_"),
        "user_guc": literal(s.user_guc),
        "territory_guc": literal(s.territory_guc),
        "correlation_guc": literal(s.correlation_guc),
        "host_rls": literal(s.host_rls),
        "denied_edit": literal(s.denied_edit),
        "owner_on_insert": literal(s.owner_on_insert),
        "exempt_roles": ", ".join(literal(role) for role in s.exempt_roles),
        "at_contract": literal(json.dumps({key: getattr(s, key) for key in AT_CONTRACT})),
        "inside": inside(s),
        # the same condition as a policy of the host for our reader has it in the catalog
        "inside_reader": literal(f"(CURRENT_USER = {literal(s.role('reader'))}::name)"),
        "inside_quoted": inside(s).replace("'", "''"),
        "narrowing_of_p": _NARROWING.replace("OFFICES", ", ".join(literal(s.role(office)) for office in OFFICES)),
        # who writes the host's column as our function, and is nobody who took its role
        "by_hand": f"(CURRENT_USER <> {literal(s.role('reader'))}::name "
        f"OR pg_catalog.current_setting('role') = {literal(s.role('reader'))})",
        "passing": passing(s),
        "unbound": ", ".join(literal(role) for role in (s.role("owner"), s.role("reader"), *s.exempt_roles)),
        # what stands for the whole territory where a column of leads may not be NULL
        "nil_lead": literal(NIL_LEADS[s.lead_id_type]),
        "observation_window": f"interval '{s.observation_window} seconds'",
        # without a window nobody reads the notes, and they must not grow with every write either
        "note_interval": f"interval '{min(60, s.observation_window / 100) or 60} seconds'",
        **{index: ident(f"ix_{s.schema}_{suffix}") for index, suffix in HOST_INDEXES.items()},
        "leads_index_name": literal(f"ix_{s.schema}_leads"),
        "leads_index_path": ident(host_schema, f"ix_{s.schema}_leads"),
        "activities_index_path": ident(activities_schema, f"ix_{s.schema}_activities"),
        **{trigger: ident(s.role(suffix)) for trigger, suffix in HOST_TRIGGERS.items()},
        "follow_column_name": literal(s.role("follow_column")),
        **{f"{policy}_policy": ident(s.role(policy)) for policy in HOST_POLICIES},
        **{trigger: ident(s.role(suffix)) for trigger, suffix in CHILD_TRIGGERS.items()},
        **{f"{policy}_policy": ident(s.role(policy)) for policy in CHILD_POLICIES},
        **{trigger: ident(s.role(trigger)) for trigger in (*SHADOW_TRIGGERS, *SHADOW_CHILD_TRIGGERS)},
        "child_policies": ", ".join(literal(s.role(policy)) for policy in CHILD_POLICIES),
        "lead_tables": _child_list(s.lead_tables),
        "host_policies": ", ".join(literal(s.role(policy)) for policy in (*HOST_POLICIES, *CHILD_POLICIES)),
    }
    return MappingProxyType(known)


def context_of(settings: Settings, given: str | None = None) -> dict[str, str]:
    """How what is declared is read and written: as a setting, or as a field of one that holds JSON.

    `given` stands for each value that is written, instead of the names of our function's arguments.
    """
    found: dict[str, str] = {}
    arguments = {"user": "user_id", "territory": "territory", "correlation": "correlation_id"}
    for kind, argument in arguments.items():
        name, field = of_setting(getattr(settings, f"{kind}_guc"))
        now, value = f"pg_catalog.current_setting({literal(name)}, true)", given or argument
        read, written = now, f"coalesce({value}, '')"
        if field is not None:
            ours = ident(settings.schema)
            read = f"{ours}.claimed({now}, {literal(field)})"
            written = f"{ours}.claiming({now}, {literal(field)}, {value})"
        found[f"declared_{kind}"] = read
        found[f"declaring_{kind}"] = f"pg_catalog.set_config({literal(name)}, {written}, true)"
    return found


def unmade(settings: Settings) -> set[str]:
    """Of these policies and triggers, what is not made with the settings."""
    raising = {"update", "named_update", "delete", "hide_column"} if settings.denied_edit == "raise" else set()
    step = {"own_named", "audit_stepped", "follow_new", "follow_column", "hide_column", "named_update", "step"}
    other = {"audit_edits", "update"} if settings.owner_column else step
    return raising | other | ({"own_new"} if settings.owner_on_insert == "none" else set())


def territory_of(settings: Settings) -> dict[str, str]:
    """The territory of a lead as SQL, for each alias of its row, and whether that puts it outside protection.

    A column stays as it is, so that its statistics and its index serve; of an expression '' is NULL at once.
    """
    s = settings
    parts = split("territory_expression", s.territory_expression) if s.territory_expression else []
    read = territory_columns(s)
    found = {
        "territory_columns": ", ".join(map(ident, read)),
        "territory_column_names": ", ".join(map(literal, read)),
        "territory_key_name": "NULL::text" if parts else literal(s.territory_column),
    }
    for row, alias in {"l": "l.", "old": "OLD.", "new": "NEW.", "here": ""}.items():
        of = f"nullif(({of_row(parts, alias)})::text, '')" if parts else alias + ident(s.territory_column)
        found |= {f"territory_of_{row}": of, f"outside_{row}": f"({of} IS NULL OR {of} = '')"}
    found["territory_key"] = f"({found['territory_of_here']})" if parts else found["territory_of_here"]
    return found | {"territory_of_l_quoted": found["territory_of_l"].replace("'", "''")}


def territory_columns(settings: Settings) -> list[str]:
    """The columns of a lead that say which territory it is in, unquoted."""
    s = settings
    return (
        columns(split("territory_expression", s.territory_expression))
        if s.territory_expression
        else [s.territory_column]
    )


def child_names(child: LeadTable) -> dict[str, str]:
    """The placeholders of a table that holds data of leads."""
    return {
        "child": table(child.table),
        "child_name": literal(table(child.table)),
        "child_schema": literal(child.table.split(".", 1)[0]),
        "child_relation": literal(child.table.split(".", 1)[1]),
        "child_lead": ident(child.column),
        "child_lead_name": literal(child.column),
        "child_append": str(child.append).lower(),
    }


def _child_list(children: tuple[LeadTable, ...]) -> str:
    """The setting as an array of schema, table and column, for the conditions of the gate."""
    rows = (f"ARRAY[{', '.join(literal(part) for part in (*c.table.split('.', 1), c.column))}]" for c in children)
    return f"ARRAY[{', '.join(rows)}]::text[]" if children else "'{}'::text[]"


def inside(settings: Settings) -> str:
    """The condition that holds inside our functions only: whoever is a member of their owners is not them.

    The planner answers it, and what stands beside it in a policy costs our functions nothing.
    """
    return f"{ident(settings.schema)}.inside()"


def passing(settings: Settings) -> str:
    """The condition that no policy binds who asks: our functions, or a role that is exempt.

    Of one form with exempt roles and without any, so that doctor can tell what else is changed in it. The planner
    answers it, too: where it is false, nothing is left of it.
    """
    roles = (settings.role("owner"), settings.role("reader"), *settings.exempt_roles)
    return f"{ident(settings.schema)}.asked_by(ARRAY[{', '.join(map(literal, roles))}]::name[])"
