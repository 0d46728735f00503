"""Which settings a connection has: those of its engine or of itself where any are bound, else those of the process."""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import WeakKeyDictionary

import psycopg

from leadprotect.errors import InvalidRequest
from leadprotect.settings import acting_with, configured, parse

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from leadprotect.settings import Settings

    Target = Engine | AsyncEngine | psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

F = TypeVar("F", bound="Callable[..., Any]")

_of: WeakKeyDictionary[Any, Settings] = WeakKeyDictionary()
"""Connection of psycopg, or dialect of an engine (which its options and its next pool share) -> settings."""


def configure(target: Target | None = None, /, **given: str) -> Settings:
    """Give settings by name, as section ``[leadprotect]`` has them: of the process, or of `target` alone.

    `target` is an engine of SQLAlchemy or a connection of psycopg (a pool's ``configure`` is called
    with each new one). What is not given has its default: neither a file nor the environment is read, and what was
    given before is replaced. The functions of a connection that services call use what is bound to
    it; what an auditor or an operator calls uses those of the process.

    Raises `SettingsError`, naming the key, `InvalidRequest` for a target of another kind.
    """
    settings = parse(given)
    if target is None:
        configured(settings)
    else:
        bind_settings(target, settings)
    return settings


def bind_settings(target: object, settings: Settings) -> None:
    """Let the connections of `target` have `settings`; raises `InvalidRequest` for a target of another kind."""
    if isinstance(target, (psycopg.Connection, psycopg.AsyncConnection)):
        _of[target] = settings
    elif hasattr(target, "dispose") and hasattr(target, "dialect"):
        _of[target.dialect] = settings
    else:
        raise InvalidRequest(
            f"target: {type(target).__name__} is no engine of SQLAlchemy and no connection of psycopg; those of a pool "
            "of psycopg are given to each connection, by the pool's configure"
        )


def per_database(function: F) -> F:
    """Let a function of a connection use the settings that are bound to it."""

    @wraps(function)
    def called(*given: Any, **more: Any) -> Any:
        if not _of:
            return function(*given, **more)
        with its_settings(given[0] if given else more.get("conn")):
            return function(*given, **more)

    return cast("F", called)


def its_settings(conn: Any) -> AbstractContextManager[None]:
    """Use the settings that are bound to `conn` inside the block."""
    key = _key(conn) if _of else None
    return acting_with(None if key is None else _of.get(key))


def _key(conn: Any) -> Any:
    if isinstance(conn, (psycopg.Connection, psycopg.AsyncConnection)):
        return conn
    get_bind = getattr(conn, "get_bind", None)  # of a session
    return getattr(get_bind() if callable(get_bind) else conn, "dialect", None)
