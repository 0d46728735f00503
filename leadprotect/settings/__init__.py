"""For the host: what it can set, where that is read from, and how a name of it becomes SQL."""

from leadprotect.settings.activities import Activities
from leadprotect.settings.address import url
from leadprotect.settings.load import ENVIRONMENT_PREFIX, KEYS, Settings, acting_with, configured, current, load, parse
from leadprotect.settings.names import activity_sources, context_of, lead_tables, names, render, sql, type_name
from leadprotect.settings.quoting import ident, literal, table
from leadprotect.settings.roles import making_roles
from leadprotect.settings.sources import SourceTable
from leadprotect.settings.values import LeadTable, duration

__all__ = [
    "ENVIRONMENT_PREFIX",
    "KEYS",
    "Activities",
    "LeadTable",
    "Settings",
    "SourceTable",
    "acting_with",
    "activity_sources",
    "configured",
    "context_of",
    "current",
    "duration",
    "ident",
    "lead_tables",
    "literal",
    "load",
    "making_roles",
    "names",
    "parse",
    "render",
    "sql",
    "table",
    "type_name",
    "url",
]
