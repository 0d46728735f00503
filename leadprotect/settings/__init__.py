"""For the host: what it can set, where that is read from, and how a name of it becomes SQL."""

from leadprotect.settings.load import ENVIRONMENT_PREFIX, KEYS, Settings, current, load, parse
from leadprotect.settings.names import ident, literal, names, render, sql, table
from leadprotect.settings.values import check_territory_code

__all__ = [
    "ENVIRONMENT_PREFIX",
    "KEYS",
    "Settings",
    "check_territory_code",
    "current",
    "ident",
    "literal",
    "load",
    "names",
    "parse",
    "render",
    "sql",
    "table",
]
