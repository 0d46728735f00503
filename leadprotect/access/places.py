"""Where a territory lives: asked of the settings, and of the server in the statement that declares who acts."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from leadprotect.errors import NotHere
from leadprotect.settings import render
from leadprotect.settings.databases import SECTION

if TYPE_CHECKING:
    from leadprotect.settings import Settings
    from leadprotect.settings.databases import TerritoryDatabase

NO_TERRITORY = ""
"""What an auditor declares who acts in none; it lives everywhere."""


@lru_cache(maxsize=256)
def living(s: Settings) -> str:
    """A condition on one value, whether the server has this territory; a constant there, so no table is read.

    Empty where the settings name no databases, so that nothing can be elsewhere.
    """
    if not s.databases:
        return ""
    return (
        "%s::pg_catalog.text OPERATOR(pg_catalog.=) "
        f"ANY (pg_catalog.array_append({render('{schema}.all_territories()', s)}, '{NO_TERRITORY}'))"
    )


def whereabouts(s: Settings, territory: str | None) -> tuple[str, ...]:
    """The value for `living`; raises `NotHere` where the settings already say that it lives in another database."""
    if not s.databases:
        return ()
    if s.elsewhere and _database_of(territory, s.elsewhere):
        raise not_here(s, territory)
    return (territory or NO_TERRITORY,)


def not_here(s: Settings, territory: str | None) -> NotHere:
    """The error of a territory that is not in the database at hand."""
    code = territory or NO_TERRITORY
    if (one := _database_of(code, s.elsewhere)) is not None:
        return NotHere(code, f"{_in(one)}: {_remedy(code)}", one.name)
    if (one := _database_of(code, s.databases)) is None:
        return NotHere(code, f"and [{SECTION}] names no database for it: {', '.join(_codes(s))} have one")
    if len(s.databases) > 1:  # nothing says which of them this connection leads to
        return NotHere(code, f"{_in(one)}: {_remedy(code)}", one.name)
    return NotHere(
        code,
        f"which [{SECTION}] names for it, but which has no such territory: correct the section, or upgrade that "
        f"database, or add it there: leadprotect --on {code} territory add {code}",
        one.name,
    )


def _in(one: TerritoryDatabase) -> str:
    return f"it is in that of {one.name}" + (f" ({one.address})" if one.address else "")


def _remedy(code: str) -> str:
    return f"use a connection of leadprotect.route({code!r}), or --on {code} on the command line"


def _database_of(code: str | None, databases: tuple[TerritoryDatabase, ...]) -> TerritoryDatabase | None:
    return next((one for one in databases if code in one.territories), None)


def _codes(s: Settings) -> list[str]:
    return [code for one in (*s.databases, *s.elsewhere) for code in one.territories]
