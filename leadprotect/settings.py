"""The settings: one loader for env.py, the revisions, the command line and the library.

Values come from section ``[leadprotect]`` of an ini file (``alembic.ini`` or the host's),
overridden by environment ``LEADPROTECT_<KEY>``; the URL also from ``DATABASE_URL``.
"""

from __future__ import annotations

import configparser
import os
import re
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import psycopg.conninfo

from leadprotect.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from alembic.config import Config

SECTION = "leadprotect"
ENVIRONMENT_PREFIX = "LEADPROTECT_"

_CHOICES = {
    "lead_id_type": ("uuid", "bigint", "text"),
    "user_id_type": ("uuid", "text"),
    "host_rls": ("enforce", "force", "off"),
}
_OFFICES = ("app", "auditor", "manager", "operator", "owner")
_WINDOW = re.compile(r"(\d+)\s*(s|seconds?|m|min|minutes?|h|hours?|d|days?|w|weeks?)?", re.IGNORECASE)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a host can set; every field is a key of section ``[leadprotect]``.

    Names are unquoted, as the catalog has them (``crm.Leads`` is the table ``Leads`` in ``crm``).
    `observation_window` is in seconds.
    """

    database_url: str = ""
    schema: str = "leadprotect"
    leads_table: str = "public.leads"
    lead_id_column: str = "id"
    lead_id_type: str = "uuid"
    territory_column: str = "territory"
    user_id_type: str = "uuid"
    activities_table: str = "public.activities"
    activity_id_column: str = "id"
    activity_lead_id_column: str = "lead_id"
    activity_user_id_column: str = "user_id"
    activity_kind_column: str = "kind"
    activity_at_column: str = "created_at"
    qualifying_kinds: tuple[str, ...] = (
        "QUALIFIED_CALL",
        "CUSTOMER_REACTION",
        "SCHEDULED_FOLLOWUP",
        "SAMPLE_FEEDBACK",
        "ROI_PRESENTATION",
    )
    territories: tuple[str, ...] = ("DE", "CH")
    user_guc: str = "app.user_id"
    territory_guc: str = "app.territory"
    correlation_guc: str = "app.correlation_id"
    host_rls: str = "enforce"
    version_table: str = "leadprotect_alembic_version"
    version_table_schema: str = "public"
    observation_window: int = 7 * 86400
    exempt_roles: tuple[str, ...] = ()

    def role(self, name: str) -> str:
        """Name of a cluster role, unquoted: an office (``app``) or a territory code (``DE``)."""
        return f"{self.schema}_{name.lower()}"

    @property
    def quarantine(self) -> str:
        """Schema that holds our tables after a downgrade, unquoted."""
        return f"{self.schema}_quarantine"


KEYS = tuple(field.name for field in fields(Settings))


def load(config: Config | None = None, *, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings from Alembic's config (or ``alembic.ini`` here) and the environment.

    Raises `SettingsError`, naming the key, for an unknown key or a bad value. No database is asked.
    """
    given = _from_config(config) if config is not None else _from_file(Path("alembic.ini"))
    for name, value in environ.items():
        if name.startswith(ENVIRONMENT_PREFIX):
            given[name.removeprefix(ENVIRONMENT_PREFIX).lower()] = value
    if environ.get("DATABASE_URL") and ENVIRONMENT_PREFIX + "DATABASE_URL" not in environ:
        given["database_url"] = environ["DATABASE_URL"]
    return parse(given)


@lru_cache(maxsize=1)
def current() -> Settings:
    """The settings of this process, loaded once: what the library's functions use."""
    return load()


def parse(given: Mapping[str, str]) -> Settings:
    """Turn key-value text into `Settings`; raises `SettingsError` naming the key."""
    unknown = sorted(set(given) - set(KEYS))
    if unknown:
        message = f"unknown key {unknown[0]!r} in [{SECTION}]; known keys: {', '.join(KEYS)}"
        raise SettingsError(message)
    return replace(Settings(), **{key: _value(key, text.strip()) for key, text in given.items()})  # type: ignore[arg-type]


def ident(*names: str) -> str:
    """Quote a name for SQL; several are joined by dots. The one helper for identifiers."""
    return ".".join('"' + name.replace('"', '""') + '"' for name in names)


def table(name: str) -> str:
    """Quote a table setting such as ``public.leads``."""
    return ident(*name.split(".", 1))


def literal(text: str) -> str:
    """Quote a value as a standard SQL string constant, for DDL that takes no parameters."""
    return "'" + text.replace("'", "''") + "'"


def sql(statement: str) -> str:
    """Render a revision's raw block: ``{schema}`` and its kin become quoted names.

    Only for revisions: the settings are those of the running Alembic command. ``:word`` is escaped,
    because ``op.execute`` would take it as a bind parameter.
    """
    from alembic import context  # noqa: PLC0415 - the library must not need Alembic on the hot path

    rendered = render(statement, load(context.config))
    return re.sub(r"(?<![:\w\\]):(?=\w)", r"\\:", rendered)


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
    offices = {office: ident(s.role(office)) for office in _OFFICES}
    return {
        "schema": ident(s.schema),
        "schema_name": literal(ident(s.schema)),
        "quarantine": ident(s.quarantine),
        "quarantine_name": literal(ident(s.quarantine)),
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
        "offices": ", ".join(literal(s.role(office)) for office in _OFFICES),
        "owner_name": literal(s.role("owner")),
        "app_name": literal(s.role("app")),
        "manager_name": literal(s.role("manager")),
        "role_prefix": literal(s.schema + "_"),
        "user_guc": literal(s.user_guc),
        "territory_guc": literal(s.territory_guc),
        "correlation_guc": literal(s.correlation_guc),
        "host_rls": literal(s.host_rls),
        "exempt_roles": ", ".join(literal(role) for role in s.exempt_roles),
        "observation_window": f"interval '{s.observation_window} seconds'",
        "note_interval": f"interval '{min(60, s.observation_window / 100)} seconds'",
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
        "refuse_move": ident(f"{s.schema}_refuse_move"),
        "refuse_truncate": ident(f"{s.schema}_refuse_truncate"),
    }


def _from_config(config: Config) -> dict[str, str]:
    try:
        section = config.get_section(SECTION) or {}
    except configparser.Error as error:  # its text may repeat the value, a password included
        message = f"[{SECTION}]: {type(error).__name__}; a percent sign in an ini file is written %%"
        raise SettingsError(message) from None
    defaults = config.file_config.defaults()
    return {key: value for key, value in section.items() if key not in defaults}


def _from_file(path: Path) -> dict[str, str]:
    parser = configparser.ConfigParser({"here": str(path.parent.absolute())}, interpolation=None)
    try:
        parser.read(path, encoding="utf-8")
    except configparser.Error as error:
        message = f"{path} can't be read: {error.message.splitlines()[0]}"
        raise SettingsError(message) from None
    if not parser.has_section(SECTION):
        return {}
    return {key: value for key, value in parser.items(SECTION) if key not in parser.defaults()}


def _value(key: str, text: str) -> object:
    if key == "database_url":
        return _url(text)
    if key == "observation_window":
        return _window(text)
    if key == "territories":
        return _territories(_list(key, text))
    if key == "qualifying_kinds":
        return _list(key, text)
    if key == "exempt_roles":
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if key in _CHOICES:
        return _choice(key, text)
    if key.endswith("_guc"):
        return _guc(key, text)
    return _name(key, text, dotted=key in {"leads_table", "activities_table"})


def _url(text: str) -> str:
    url = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", text)
    try:
        psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.Error:  # libpq's own message repeats the URL, password included
        message = "database_url is not a URL that libpq can read; expected postgresql://user@host:5432/name"
        raise SettingsError(message) from None
    return url


def _window(text: str) -> int:
    match = _WINDOW.fullmatch(text)
    if match is None:
        message = f"observation_window: {text!r} is not a duration; write 7 days, 12 hours, 30 min or 0"
        raise SettingsError(message)
    return int(match[1]) * _SECONDS[(match[2] or "s")[0].lower()]


def _list(key: str, text: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in text.split(",") if part.strip())
    if not parts:
        message = f"{key} is empty; write the values separated by commas"
        raise SettingsError(message)
    if len(set(parts)) < len(parts):
        message = f"{key} names a value twice: {text}"
        raise SettingsError(message)
    return parts


def _territories(codes: tuple[str, ...]) -> tuple[str, ...]:
    for code in codes:
        check_territory_code(code)
    if len({code.lower() for code in codes}) < len(codes):
        message = f"territories: two codes differ only in case, they would share a role: {', '.join(codes)}"
        raise SettingsError(message)
    return codes


def check_territory_code(code: str) -> None:
    """Raise `SettingsError` unless `code` can name a territory and its role."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]{0,15}", code):
        message = f"territories: {code!r} is not a code of 1 to 16 letters, digits and underscores"
        raise SettingsError(message)
    if code.lower() in _OFFICES:
        message = f"territories: {code!r} would collide with the role of that name ({', '.join(_OFFICES)})"
        raise SettingsError(message)


def _choice(key: str, text: str) -> str:
    if text not in _CHOICES[key]:
        message = f"{key}: {text!r} is not one of {', '.join(_CHOICES[key])}"
        raise SettingsError(message)
    return text


def _guc(key: str, text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)+", text):
        message = f"{key}: {text!r} is not a customised option name such as app.user_id"
        raise SettingsError(message)
    return text


def _name(key: str, text: str, *, dotted: bool) -> str:
    # 16 bytes stay free for role suffixes; PostgreSQL cuts names at 63 bytes without an error
    longest = 46 if key == "schema" else 63
    parts = text.split(".", 1) if dotted else [text]
    if (dotted and len(parts) < 2) or not all(parts):
        expected = "schema.table" if dotted else "a name"
        message = f"{key}: {text!r} is not {expected}"
        raise SettingsError(message)
    if any(len(part.encode()) > longest or "\0" in part for part in parts):
        message = f"{key}: {text!r} is longer than {longest} bytes"
        raise SettingsError(message)
    if key == "schema" and (text.startswith("pg_") or text == "information_schema"):
        message = f"schema: {text!r} is reserved by PostgreSQL"
        raise SettingsError(message)
    return text
