"""Names and values of the settings as SQL: quoted by one helper, and pasted where a statement says ``{name}``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from leadprotect.settings.load import KEYS, load
from leadprotect.settings.values import OFFICES

if TYPE_CHECKING:
    from sqlalchemy import DDL

    from leadprotect.settings.load import Settings


def ident(*names: str) -> str:
    """Quote a name for SQL; several are joined by dots. The one helper for identifiers."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def table(name: str) -> str:
    """Quote a table setting such as ``public.leads``."""
    return ident(*name.split(".", 1))


def literal(text: str) -> str:
    """Quote a value as a standard SQL string constant, for DDL that takes no parameters."""
    return "'" + text.replace("'", "''") + "'"


def sql(statement: str) -> DDL:
    """Render a revision's raw block: ``{schema}`` and its kin become quoted names.

    Only for revisions: the settings are those of the running Alembic command. Plain text would have
    every ``:word`` taken as a bind parameter; a `DDL` goes to the server as it stands.
    """
    from alembic import context  # noqa: PLC0415 - the library must not need Alembic on the hot path
    from sqlalchemy import DDL  # noqa: PLC0415

    return DDL(render(statement, load(context.config)).replace("%", "%%"))  # type: ignore[no-untyped-call]


def render(statement: str, settings: Settings) -> str:
    """Replace ``{name}`` in `statement` by what `names` holds; an unknown name is a `KeyError`."""
    known = names(settings)
    return re.sub(r"\{([a-z_]+)\}", lambda match: known[match[1]], statement)


def names(settings: Settings) -> dict[str, str]:
    """Every placeholder of a revision, as SQL text that is safe to paste."""
    s = settings
    host_schema, leads_name = s.leads_table.split(".", 1)
    activities_schema = s.activities_table.split(".", 1)[0]
    columns = [key for key in KEYS if key.endswith("_column")]
    offices = {office: ident(s.role(office)) for office in OFFICES}
    return {
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
        "activities_schema": literal(activities_schema),
        **{column.removesuffix("_column"): ident(getattr(s, column)) for column in columns},
        **{column + "_name": literal(getattr(s, column)) for column in columns},
        "lead_id_type": s.lead_id_type,
        "user_id_type": s.user_id_type,
        "kinds": ", ".join(literal(kind) for kind in s.qualifying_kinds),
        "territories": ", ".join(literal(code) for code in s.territories),
        **offices,
        "offices": ", ".join(literal(s.role(office)) for office in OFFICES),
        "owner_name": literal(s.role("owner")),
        "app_name": literal(s.role("app")),
        "auditor_name": literal(s.role("auditor")),
        "manager_name": literal(s.role("manager")),
        "operator_name": literal(s.role("operator")),
        "role_prefix": literal(s.schema + "_"),
        "user_guc": literal(s.user_guc),
        "territory_guc": literal(s.territory_guc),
        "correlation_guc": literal(s.correlation_guc),
        "host_rls": literal(s.host_rls),
        "exempt_roles": ", ".join(literal(role) for role in s.exempt_roles),
        "observation_window": f"interval '{s.observation_window} seconds'",
        # without a window nobody reads the notes, and they must not grow with every write either
        "note_interval": f"interval '{min(60, s.observation_window / 100) or 60} seconds'",
        # an index lives in the schema of its table; ours carry our schema's name
        "leads_index": ident(f"ix_{s.schema}_leads"),
        "leads_index_path": ident(host_schema, f"ix_{s.schema}_leads"),
        "activities_index": ident(f"ix_{s.schema}_activities"),
        "activities_index_path": ident(activities_schema, f"ix_{s.schema}_activities"),
        # triggers and policies on the host's tables carry our schema's name, too
        "transition": ident(f"{s.schema}_transition"),
        "transition_territory": ident(f"{s.schema}_territory"),
        "forget": ident(f"{s.schema}_forget"),
        "note_writes": ident(f"{s.schema}_note_writes"),
        "audit_edit": ident(f"{s.schema}_audit_edit"),
        "audit_maintenance": ident(f"{s.schema}_audit_maintenance"),
        "audit_truncate": ident(f"{s.schema}_audit_truncate"),
        "refuse_move": ident(f"{s.schema}_refuse_move"),
        "refuse_truncate": ident(f"{s.schema}_refuse_truncate"),
    }
