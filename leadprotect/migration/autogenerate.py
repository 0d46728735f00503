"""Keeps Alembic's autogenerate of a host away from what is ours: it would drop what no model of the host names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic import context

from leadprotect.settings import Settings, load
from leadprotect.settings.names import HOST_INDEXES, KEPT

if TYPE_CHECKING:
    from collections.abc import Mapping

_DEFAULT_SCHEMA = "public"  # what a model without a schema means, as long as nobody changed the path


def include_object(object_: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:  # noqa: FBT001 - Alembic's
    """Whether autogenerate looks at an object: not at ours. For ``context.configure(include_object=...)``.

    Settings are those of the running Alembic command. Raises `SettingsError`, naming the key, for a bad one.
    """
    del reflected, compare_to
    s = _settings()
    holder = object_ if type_ == "table" else getattr(object_, "table", None)
    schema = getattr(holder, "schema", None) or _DEFAULT_SCHEMA
    return _included(s, name, type_, schema=schema, table=getattr(holder, "name", None))


def include_name(name: str | None, type_: str, parent_names: Mapping[str, str | None]) -> bool:
    """The same by name, before anything is read of an object. For ``context.configure(include_name=...)``."""
    s = _settings()
    if type_ == "schema":
        return name not in (s.schema, s.quarantine)
    schema = parent_names.get("schema_name") or _DEFAULT_SCHEMA
    table = name if type_ == "table" else parent_names.get("table_name")
    return _included(s, name, type_, schema=schema, table=table)


def _included(s: Settings, name: str | None, type_: str, *, schema: str, table: str | None) -> bool:
    if schema in (s.schema, s.quarantine) or (schema, table) == (s.version_table_schema, s.version_table):
        return False
    ours = {f"ix_{s.schema}_{suffix}" for suffix in HOST_INDEXES.values()}
    return not (type_ == "index" and name in ours)


def _settings() -> Settings:
    kept = context.config.attributes
    if KEPT not in kept:
        kept[KEPT] = load(context.config)
    found: Settings = kept[KEPT]
    return found
