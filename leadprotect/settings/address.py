"""Where the database is: the URL of the settings, or what the host's own function answers, asked anew each time."""

from __future__ import annotations

from functools import reduce
from importlib import import_module
from typing import TYPE_CHECKING

from leadprotect.errors import SettingsError
from leadprotect.settings.values import is_callable, read

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadprotect.settings.load import Settings


def url(settings: Settings) -> str:
    """The URL to connect with now; a callable's answer may hold a password that is good for minutes.

    Raises `SettingsError` without one, and where the callable can't be had, raises, or returns no URL;
    what it raised or returned is never repeated, since it may hold the password.
    """
    given = settings.database_url
    if not given and settings.databases:
        codes = ", ".join(one.territories[0] for one in settings.databases)
        raise SettingsError(
            f"which database is not said: --on or LEADPROTECT_ON with one of {codes}, or --fleet for all"
        )
    if not given:
        raise SettingsError("database_url is missing: set DATABASE_URL or the key in [leadprotect]")
    return _answered(given) if is_callable(given) else given


def _answered(path: str) -> str:
    function = _imported(path)
    try:
        answer = function()
    except Exception as error:  # noqa: BLE001 - the host's own code; its text may hold the password
        raise SettingsError(f"database_url: {path} raised {type(error).__name__} instead of returning a URL") from None
    if not isinstance(answer, str) or is_callable(answer):
        raise SettingsError(f"database_url: {path} returned {type(answer).__name__}, not the text of a URL")
    try:
        return str(read("database_url", answer))
    except SettingsError as error:
        raise SettingsError(f"database_url: what {path} returned can't be read: {error}") from None


def _imported(path: str) -> Callable[[], object]:
    module, _, name = path.partition(":")
    try:
        found = reduce(getattr, name.split("."), import_module(module))
    except Exception as error:  # noqa: BLE001 - whatever the host's module does when it is imported
        raise SettingsError(
            f"database_url: {path} can't be imported ({type(error).__name__}); write module:function, "
            "with the module's folder on PYTHONPATH"
        ) from None
    if not callable(found):
        raise SettingsError(f"database_url: {path} is no function")
    return found
