"""The settings: one loader for env.py, the revisions, the command line and the library.

Values come from ``[tool.leadprotect]`` of pyproject.toml, section ``[leadprotect]`` of an ini file (``alembic.ini`` or
the host's) and environment ``LEADPROTECT_<KEY>``, the later one winning; the URL also from ``DATABASE_URL``, and
from ``sqlalchemy.url`` of the ini file where nothing else names one.
"""

from __future__ import annotations

import configparser
import logging
import os
import re
import shlex
import tomllib
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from leadprotect.errors import SettingsError
from leadprotect.settings.activities import ACTIVITY_KEYS, KINDS, Activities, is_expression
from leadprotect.settings.codes import OFFICES, territories_of
from leadprotect.settings.databases import ON, TerritoryDatabase, databases_of
from leadprotect.settings.databases import SECTION as DATABASES
from leadprotect.settings.files import CONFIG, ini_file
from leadprotect.settings.values import LeadTable, check_users, of_setting, read, source_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractContextManager

    from alembic.config import Config

_log = logging.getLogger("leadprotect")

SECTION = "leadprotect"
SOURCES = f"{SECTION}.activities."
"""How the section of a further table of activities begins; its name follows."""

ENVIRONMENT_PREFIX = "LEADPROTECT_"

# https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables
_SERVICE_LINK = re.compile(
    r"_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$"
)
# `alembic init` writes driver://user:pass@localhost/dbname there, and a host may have another server
_MARK = "\ufeff"
_POSTGRES = re.compile(r"postgres(ql)?(\+\w+)?://")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a host can set; every field is a key of section ``[leadprotect]``.

    Names are unquoted, as the catalog has them (``crm.Leads`` is the table ``Leads`` in ``crm``).
    `version_table_schema` is `schema` where none is given. `observation_window` is in seconds. `audit_url`
    says where denials are recorded, when not on the way of the caller's own connection: past a pooler, or
    through another of its pools. `slo_p95` is in seconds. `databases` are those of the territories, or the one that is
    meant; `elsewhere` are the others then.
    """

    database_url: str = field(default="", repr=False)  # it may hold a password
    schema: str = "leadprotect"
    leads_table: str = "public.leads"
    lead_id_column: str = "id"
    lead_id_type: str = "uuid"
    territory_column: str = "territory"
    territory_expression: str = ""
    user_id_type: str = "uuid"
    owners_from: tuple[str, ...] = ("activities",)
    owner_column: str = ""
    activities_table: str = "public.activities"
    activity_base_table: str = ""
    activity_id_column: str = "id"
    activity_lead_id_column: str = "lead_id"
    activity_user_id_column: str = "user_id"
    activity_kind_column: str = "kind"
    activity_at_column: str = "created_at"
    activity_condition: str = ""
    qualifying_kinds: tuple[str, ...] = KINDS
    excluded_users: tuple[str, ...] = ()
    further_activities: tuple[Activities, ...] = field(default=(), metadata={"sections": True})
    lead_tables: tuple[LeadTable, ...] = ()
    territories: tuple[str, ...] = ("DE", "CH")
    territory_suffixes: tuple[tuple[str, str], ...] = field(default=(), metadata={"sections": True})
    databases: tuple[TerritoryDatabase, ...] = field(default=(), metadata={"sections": True}, repr=False)
    elsewhere: tuple[TerritoryDatabase, ...] = field(default=(), metadata={"sections": True}, repr=False)
    user_guc: str = "app.user_id"
    territory_guc: str = "app.territory"
    correlation_guc: str = "app.correlation_id"
    host_rls: str = "enforce"
    denied_edit: str = "hide"
    owner_on_insert: str = "none"
    version_table: str = "alembic_version"
    version_table_schema: str = ""
    observation_window: int = 7 * 86400
    exempt_roles: tuple[str, ...] = ()
    audit_url: str = ""
    prometheus_url: str = ""
    prometheus_token_file: str = ""
    prometheus_user: str = ""
    prometheus_password_file: str = ""
    prometheus_ca_file: str = ""
    prometheus_cert_file: str = ""
    prometheus_service: str = "leadprotect"
    slo_p95: float = 0.15

    def __post_init__(self) -> None:
        """Fill in what follows from another key."""
        if not self.version_table_schema:
            object.__setattr__(self, "version_table_schema", self.schema)

    def __hash__(self) -> int:
        """Of what tells the settings of one process apart: texts are remembered by them, and asked for often."""
        return hash((self.database_url, self.schema))

    def role(self, name: str) -> str:
        """Name of a cluster role, unquoted: an office (``app``); triggers and policies on the host are named alike."""
        return f"{self.schema}_{name.lower()}"

    def territory_role(self, code: str) -> str:
        """Name of a territory's role, unquoted, as the settings say; the database knows of those added later."""
        return self.role(dict(self.territory_suffixes).get(code, code))

    @property
    def roles(self) -> tuple[str, ...]:
        """Names of all cluster roles, unquoted: the offices and the first territories."""
        return (*map(self.role, OFFICES), *map(self.territory_role, self.territories))

    @property
    def activities(self) -> tuple[Activities, ...]:
        """The tables of activities that make owners: the one of the section itself, then the others."""
        columns = {key.removeprefix("activity_"): getattr(self, key) for key in KEYS if key.startswith("activity_")}
        own = Activities(table=self.activities_table, qualifying_kinds=self.qualifying_kinds, **columns)
        return (own, *self.further_activities) if "activities" in self.owners_from else ()

    @property
    def host_tables(self) -> dict[str, str]:
        """Each table of the host that we put something on -> the key that names it; the leads come first."""
        named = {self.leads_table: "leads_table"}
        for one in self.activities:
            named.setdefault(one.stands_on, one.key("base_table" if one.base_table else "table"))
        return named

    @property
    def quarantine(self) -> str:
        """Schema that holds our tables after a downgrade, unquoted."""
        return f"{self.schema}_quarantine"


KEYS = tuple(entry.name for entry in fields(Settings) if "sections" not in entry.metadata)


def load(config: Config | None = None, *, environ: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings from Alembic's config (or from `ini_file`) and the environment.

    Raises `SettingsError`, naming the key, for an unknown key or a bad value. No database is asked.
    """
    if config is None:
        given, sections, databases = _from_files(environ)
    else:
        toml = getattr(config, "toml_file_name", None)
        given, sections, databases = _read_both(Path(toml) if toml else None, config.file_config)
    for name, value in environ.items():
        if name.startswith(ENVIRONMENT_PREFIX) and name not in {CONFIG, ON}:
            key = name.removeprefix(ENVIRONMENT_PREFIX).lower()
            if key in KEYS:
                given[key] = value
            elif not _SERVICE_LINK.search(name):
                raise SettingsError(f"unknown key {key!r} in the environment ({name}); known keys: {', '.join(KEYS)}")
    if links := tuple(name for name in environ if name.startswith(ENVIRONMENT_PREFIX) and _SERVICE_LINK.search(name)):
        _warn_once(links)
    if url := environ.get(ENVIRONMENT_PREFIX + "DATABASE_URL") or environ.get("DATABASE_URL"):
        given["database_url"] = url
    return narrowed(parse(given, sections, databases), environ)


def narrowed(settings: Settings, environ: Mapping[str, str]) -> Settings:
    """The settings of the one database that the environment names by a territory; all of them without it.

    Raises `SettingsError` for a territory that no database holds.
    """
    code = environ.get(ON)
    if not code:
        return settings
    for one in settings.databases:
        if code in one.territories:
            return of_database(settings, one)
    held = ", ".join(code for one in settings.databases for code in one.territories)
    raise SettingsError(f"--on or {ON}: {code!r} is in no database of [{DATABASES}]; those are of {held or 'nobody'}")


def of_database(settings: Settings, one: TerritoryDatabase) -> Settings:
    """The settings of one of their databases; what the others hold is `elsewhere` then."""
    others = tuple(other for other in (*settings.databases, *settings.elsewhere) if other != one)
    return replace(settings, database_url=one.url, territories=one.territories, databases=(one,), elsewhere=others)


@lru_cache(maxsize=1)
def _warn_once(links: tuple[str, ...]) -> None:
    message = "variables like the service links of Kubernetes are no settings, and are ignored: %s"
    _log.warning(message, ", ".join(links), extra={"variables": links})


def given_address(environ: Mapping[str, str] = os.environ) -> str:
    """The URL of the environment or of the ini file, whatever else that holds; empty where there is none."""
    named = environ.get(ENVIRONMENT_PREFIX + "DATABASE_URL") or environ.get("DATABASE_URL")
    given, _, _ = _from_files(environ)
    return named or given.get("database_url", "")


class _Current:
    """The settings that the library's functions use: those of the connection, or those of this process, loaded once."""

    def __init__(self) -> None:
        self.process: Settings | None = None

    def __call__(self) -> Settings:
        return self.whole() if (bound := _bound.get()) is None else bound

    def whole(self) -> Settings:
        """Those of the process, whatever the connection at hand has."""
        if self.process is None:
            self.process = load()
        return self.process

    def cache_clear(self) -> None:
        """Forget what was loaded or given for the process."""
        self.process = None


current = _Current()
_bound: ContextVar[Settings | None] = ContextVar("leadprotect_settings", default=None)


def configured(settings: Settings) -> None:
    """Let `settings` be those of this process."""
    current.process = settings


def acting_with(settings: Settings | None) -> AbstractContextManager[None]:
    """Let `settings` be the current ones inside the block; None changes nothing."""
    return _NOTHING if settings is None else _acting_with(settings)


_NOTHING = nullcontext()


@contextmanager
def _acting_with(settings: Settings) -> Iterator[None]:
    token = _bound.set(settings)
    try:
        yield
    finally:
        _bound.reset(token)


def parse(
    given: Mapping[str, str],
    activities: Mapping[str, Mapping[str, str]] | None = None,
    databases: Mapping[str, str] | None = None,
) -> Settings:
    """Turn key-value text into `Settings`; raises `SettingsError` naming the key.

    `activities` holds the sections of further tables of activities, by their names, `databases` the URLs by territory.
    """
    unknown = sorted(set(given) - set(KEYS))
    if unknown:
        raise SettingsError(f"unknown key {unknown[0]!r} in [{SECTION}]; known keys: {', '.join(KEYS)}")
    untyped: Mapping[str, object] = given
    for key, value in untyped.items():
        if not isinstance(value, str):  # none is shown, for it may hold a password
            kind = "None" if value is None else type(value).__name__
            raise SettingsError(f"{key}: {kind} was given; give a text, as [{SECTION}] has it, or leave the key out")
    texts = {key: text.strip() for key, text in given.items()}
    if texts.get("version_table_schema") == "":
        del texts["version_table_schema"]
    if texts.get("territory_expression") and "territory_column" in texts:
        raise SettingsError("territory_expression and territory_column: a lead has one territory: name one of them")
    values = {key: read(key, text) for key, text in texts.items()}
    if values.get("territory_expression"):
        values["territory_column"] = ""
    if "territories" in texts:
        values["territory_suffixes"] = territories_of(texts["territories"])
    settings = Settings(**values)  # type: ignore[arg-type]
    further = tuple(_further(name, section) for name, section in (activities or {}).items())
    held = databases_of(settings.territory_suffixes, settings.territories, databases or {})
    settings = replace(settings, further_activities=further, databases=held)
    _check_together(settings)
    return settings


def _check_tables(s: Settings) -> None:
    tables = [("leads_table", s.leads_table), *((one.key("table"), one.table) for one in s.activities)]
    tables += [(one.key("base_table"), one.base_table) for one in s.activities if one.base_table]
    tables += [("lead_tables", one.table) for one in s.lead_tables]
    if ("lead_tables", s.leads_table) in tables:
        raise SettingsError(f"lead_tables names {s.leads_table}, which holds the leads themselves; leave it out")
    for key, name in tables:
        if name.split(".", 1)[0] in {s.schema, s.quarantine}:
            raise SettingsError(f"schema: {s.schema!r} holds {key} ({name}); leadprotect needs a schema of its own")


def _check_together(s: Settings) -> None:
    _check_tables(s)
    if s.version_table_schema == s.quarantine:
        raise SettingsError(
            f"version_table_schema: {s.version_table_schema!r} comes and goes with a migration; choose another schema"
        )
    if ("column" in s.owners_from) != bool(s.owner_column):
        raise SettingsError(
            f"owner_column: owners_from is {', '.join(s.owners_from)}, and owner_column is "
            f"{s.owner_column or 'empty'}; "
            "name the column and write `column` into owners_from, or neither"
        )
    named = ("lead_id_column", "territory_column", *(["owner_column"] if s.owner_column else []))
    leads = {key: str(getattr(s, key)) for key in named}
    activities = [{one.key(field): column for field, column in one.columns.items()} for one in s.activities]
    for columns in (leads, *activities):
        for first, second in combinations(columns, 2):
            if columns[first] == columns[second]:
                raise SettingsError(f"{first} and {second} name the same column: {columns[first]}")
    for source in s.activities:
        if source.base_table and is_expression(source.lead_id_column):
            raise SettingsError(
                f"{source.key('lead_id_column')}: a view gives it a name, and its base table has a column of that "
                f"name; write that instead of {source.lead_id_column!r}"
            )
    check_users(s.user_id_type, s.excluded_users)
    gucs = {"user_guc": s.user_guc, "territory_guc": s.territory_guc, "correlation_guc": s.correlation_guc}
    for (key, one), (_, other) in combinations(gucs.items(), 2):
        (name, field), (again, another) = of_setting(one), of_setting(other)
        # two fields of one JSON are two
        if name.lower() == again.lower() and (None in {field, another} or field == another):
            raise SettingsError(f"{key}: {one!r} is named twice; user, territory and correlation need one each")


def _further(name: str, given: Mapping[str, str]) -> Activities:
    section = f"[{SOURCES}{name}]"
    unknown = sorted(set(given) - {*ACTIVITY_KEYS})
    if unknown:
        raise SettingsError(f"unknown key {unknown[0]!r} in {section}; known keys: {', '.join(ACTIVITY_KEYS)}")
    if "table" not in given:
        raise SettingsError(f"{section} names no table: table = schema.name")
    try:
        found = {key: read(_LIKE.get(key, f"activity_{key}"), text.strip()) for key, text in given.items()}
    except SettingsError as error:
        raise SettingsError(f"{section}: {error}") from None
    return Activities(name=source_name(name), **found)  # type: ignore[arg-type]


# a key of such a section is read as the one of [leadprotect] that means the same
_LIKE = {"table": "activities_table", "qualifying_kinds": "qualifying_kinds"}


def _sources(parser: configparser.ConfigParser) -> list[str]:
    return [name for name in parser.sections() if name.startswith(SOURCES)]


def _refuse_unknown(parser: configparser.ConfigParser) -> None:
    known = (SECTION, DATABASES, *_sources(parser))
    for name in parser.sections():
        if name.split(".")[0] == SECTION and name not in known:
            raise SettingsError(f"unknown section [{name}]; known are [{SECTION}], [{DATABASES}], [{SOURCES}NAME]")


def _section(parser: configparser.ConfigParser, section: str) -> dict[str, str]:
    known = {SECTION: KEYS, DATABASES: ()}.get(section, ACTIVITY_KEYS)
    try:
        found = parser.items(section) if parser.has_section(section) else []
        url = parser.get("alembic", "sqlalchemy.url", fallback="") if section == SECTION else ""
    except configparser.Error as error:  # its text may repeat the value, a password included
        raise SettingsError(
            f"[{section}]: {type(error).__name__}; a percent sign in an ini file is written %%"
        ) from None
    ours = {key: value for key, value in found if key in known or key not in parser.defaults()}
    return {"database_url": url} | ours if _POSTGRES.match(url) else ours


Given = tuple[dict[str, str], dict[str, dict[str, str]], dict[str, str]]
"""The settings as text, those of further activities by their names, and the databases by territory."""


def _from_files(environ: Mapping[str, str]) -> Given:
    file = ini_file(environ)
    return _read_both(file.parent / "pyproject.toml", _parsed(file))


def _read_both(toml: Path | None, parser: configparser.ConfigParser) -> Given:
    """What pyproject.toml and the ini file give, the ini file first."""
    _refuse_unknown(parser)
    given, sections, databases = _from_toml(toml) if toml else ({}, {}, {})
    further = {name.removeprefix(SOURCES): _section(parser, name) for name in _sources(parser)}
    return given | _section(parser, SECTION), sections | further, databases | _section(parser, DATABASES)


def _from_toml(path: Path) -> Given:
    """``[tool.leadprotect]`` of pyproject.toml, where Alembic reads ``[tool.alembic]``: a list is one with commas."""
    try:
        found = tomllib.loads(text_of(path)) if path.is_file() else {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SettingsError(f"{path} can't be read: {error}") from None
    ours = dict(found.get("tool", {}).get(SECTION, {}))
    further, databases = ours.pop("activities", {}), ours.pop("databases", {})
    return _texts(ours), {name: _texts(given) for name, given in further.items()}, _texts(databases)


def _texts(given: Mapping[str, object]) -> dict[str, str]:
    return {key: ", ".join(map(str, value)) if isinstance(value, list) else str(value) for key, value in given.items()}


def text_of(path: Path) -> str:
    """The text of a file of settings; raises `SettingsError` for what ends Alembic, which reads it too, in a trace."""
    text = path.read_text(encoding="utf-8")
    if text.startswith(_MARK):
        # the file must be one that Alembic reads, too
        remedy = f"sed -i '1s/^\\xEF\\xBB\\xBF//' {shlex.quote(str(path))}"
        raise SettingsError(f"{path} begins with a byte order mark, which Alembic does not read; run {remedy}")
    return text


def check_readable(path: Path) -> None:
    """Raise `SettingsError` for an ini file that Alembic would end at with a stack trace."""
    _parsed(path)


def _parsed(path: Path) -> configparser.ConfigParser:
    # the same interpolation as Alembic's own: one file means the same to both
    parser = configparser.ConfigParser({"here": path.parent.absolute().as_posix()})
    try:
        parser.read_string(text_of(path) if path.is_file() else "", str(path))
    except (configparser.DuplicateOptionError, configparser.DuplicateSectionError) as error:
        what = f"{error.option!r} in [{error.section}]" if hasattr(error, "option") else f"[{error.section}]"
        raise SettingsError(f"{path}, line {error.lineno}: {what} stands there twice; leave one of them") from None
    except (configparser.Error, UnicodeDecodeError, OSError) as error:  # only its first line is free of values
        raise SettingsError(f"{path} can't be read: {str(error).splitlines()[0]}") from None
    return parser
