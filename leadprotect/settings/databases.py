"""Databases by territory: which one holds which."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from leadprotect.errors import SettingsError
from leadprotect.settings.values import is_callable, read

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ON = "LEADPROTECT_ON"
"""The environment variable that names a territory, whose database is meant; the command line sets it from ``--on``."""

SECTION = "leadprotect.databases"


@dataclass(frozen=True)
class TerritoryDatabase:
    """One database, by what connects to it, and the territories that it holds, in the order of the settings."""

    url: str = field(repr=False)  # it may hold a password
    territories: tuple[str, ...]

    @property
    def name(self) -> str:
        """How it is called: by its territories."""
        return "+".join(self.territories)

    @property
    def address(self) -> str:
        """Server and database without login and password; empty where a function of the host tells the URL."""
        if is_callable(self.url):
            return ""
        from psycopg.conninfo import conninfo_to_dict  # noqa: PLC0415 - a page of help needs no driver

        given = conninfo_to_dict(self.url)
        server = ":".join(str(given[key]) for key in ("host", "port") if given.get(key))
        return "/".join(str(part) for part in (server, given.get("dbname")) if part)


def databases_of(
    suffixes: Sequence[tuple[str, str]], territories: Sequence[str], given: Mapping[str, str]
) -> tuple[TerritoryDatabase, ...]:
    """The databases of section ``[leadprotect.databases]``, which hold all of `territories`; none without it.

    Its keys are codes, or the suffixes of their roles, in any case: a file of ini has no other. Territories with
    one URL share a database. Raises `SettingsError` for a name that is no territory, for a URL that is none, for a
    territory without a database, and for one that is named twice.
    """
    if not given:
        return ()
    ends = dict(suffixes)
    known = {name.lower(): code for code in territories for name in (ends.get(code, code), code)}
    urls: dict[str, str] = {}
    named: dict[str, str] = {}
    for name, text in given.items():
        code = known.get(name.lower())
        if code is None:
            raise SettingsError(
                f"[{SECTION}]: {name!r} is none of territories: {', '.join(territories)}; correct it, or add it there"
            )
        if code in named:
            raise SettingsError(
                f"[{SECTION}] names the database of {code} twice, as {named[code]} and as {name}; leave one of them"
            )
        named[code] = name
        try:
            urls[code] = str(read("database_url", text.strip()))
        except SettingsError as error:
            raise SettingsError(f"[{SECTION}] {code}: {error}") from None
    if missing := [code for code in territories if not urls.get(code)]:
        raise SettingsError(f"[{SECTION}] names no database of {', '.join(missing)}: {missing[0]} = postgresql://...")
    shared: dict[str, list[str]] = {}
    for code in territories:
        shared.setdefault(urls[code], []).append(code)
    return tuple(TerritoryDatabase(url, tuple(codes)) for url, codes in shared.items())
