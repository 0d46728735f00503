"""Who acts, for every transaction of an engine or of its sessions: asked of the service when each begins."""

from __future__ import annotations

import sys
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from uuid import UUID  # noqa: TC003 - `typing.get_type_hints(Context)` asks for it
from weakref import WeakKeyDictionary

from psycopg.pq import TransactionStatus

from leadprotect.access.arguments import check_caller, check_text
from leadprotect.access.context import AUTOCOMMIT, acting_on, set_context, trace_id
from leadprotect.database.bound import its_settings
from leadprotect.database.drivers import driver_connection, require_driver
from leadprotect.database.transactions import at_begin, usable_or_refused
from leadprotect.errors import ContextMissing, InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine
    from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
    from sqlalchemy.orm import Session, SessionTransaction, sessionmaker

    Bindable = Engine | AsyncEngine | sessionmaker[Any] | async_sessionmaker[Any]
    Provider = Callable[[], "Context | tuple[Any, ...] | None"] | ContextVar[Any]

_NOBODY = (
    "a transaction began without a context: the provider given to leadprotect.bind answered None. Set it before the "
    'first statement of a request, or let such transactions see no lead: bind(..., missing="empty")'
)
_bound: WeakKeyDictionary[Any, Callable[[], None]] = WeakKeyDictionary()


class Context(NamedTuple):
    """Who acts, in which territory, and for which request; a plain tuple of two or three does as well."""

    user_id: UUID | str
    territory: str
    correlation_id: UUID | str | None = None


def bind(target: Bindable, provider: Provider, *, missing: Literal["raise", "empty"] = "raise") -> Callable[[], None]:
    """Give every transaction of an engine, or of the sessions of a sessionmaker, the context that `provider` tells.

    `provider` is a contextvar, or a function without arguments that is called when a transaction
    begins; both give a `Context` or None. `missing` says what a transaction without one does: ``raise`` raises
    `ContextMissing` from the statement that began it, ``empty`` lets it begin with no context, so that it sees no lead
    of a territory. Inside a block of `acting_as` the block's context holds. Asynchronous engines and
    sessionmakers are taken as well. Returns a function that unbinds.

    Raises `InvalidRequest` for a target of another kind (psycopg tells nobody when a transaction begins:
    use `acting_as`), and for one that is bound already. What a transaction's begin raises: `ContextMissing`, also in
    autocommit, `InvalidRequest` for a user of a wrong type, `ProtectionUnavailable`; its connection is closed then.
    Source: https://docs.sqlalchemy.org/en/21/core/events.html (ConnectionEvents.begin).
    """
    if missing not in ("raise", "empty"):
        raise InvalidRequest(f"missing: {missing!r} is not one of raise, empty")
    if not callable(provider) and not isinstance(provider, ContextVar):
        raise InvalidRequest(f"provider: {provider!r} is neither a function nor a contextvar; give one of them")
    key = getattr(target, "sync_engine", target)
    if key in _bound:
        raise InvalidRequest("target: it is bound already; call what bind returned before it is bound anew")
    free = _listen(key, _Binding(provider, missing))

    def unbind() -> None:
        if _bound.pop(key, None):
            free()

    _bound[key] = unbind
    return unbind


def _listen(target: Any, binding: _Binding) -> Callable[[], None]:
    """Let it be told; returns what ends that."""
    from sqlalchemy import Engine  # noqa: PLC0415 - who has one has loaded it
    from sqlalchemy.orm import sessionmaker  # noqa: PLC0415

    if isinstance(target, Engine):
        require_driver(target.dialect.driver)
        at_begin(target, binding.declare)
        return partial(at_begin, target, None)
    # who has one has loaded it, and nobody else need have the extra that it takes
    awaited = getattr(sys.modules.get("sqlalchemy.ext.asyncio"), "async_sessionmaker", None)
    if awaited and isinstance(target, awaited):
        # its sessions are of a class that others use, too
        base = target.kw.get("sync_session_class") or target.class_.sync_session_class
        own = base if isinstance(base, sessionmaker) else type(base.__name__, (base,), {})
        target.configure(sync_session_class=own)
        return _listen_to_sessions(own, binding)
    if isinstance(target, sessionmaker):
        return _listen_to_sessions(target, binding)
    raise InvalidRequest(
        f"target: {type(target).__name__} is no engine and no sessionmaker of SQLAlchemy; of a connection or a pool of "
        "psycopg, use acting_as"
    )


def _listen_to_sessions(maker: Any, binding: _Binding) -> Callable[[], None]:
    from sqlalchemy import event  # noqa: PLC0415

    listened = (maker, "after_begin", binding.after_begin)
    event.listen(*listened, insert=True)  # before what a block of acting_as does
    return partial(event.remove, *listened)


class _Binding:
    def __init__(self, provider: Provider, missing: str) -> None:
        self._provider = provider
        self._missing = missing

    def after_begin(self, _: Session, transaction: SessionTransaction, core: Connection) -> None:
        if not transaction.nested:
            with usable_or_refused(core):
                self.declare(core)

    def declare(self, core: Connection) -> None:
        given = self._provider.get(None) if isinstance(self._provider, ContextVar) else self._provider()
        if given is None:
            if self._missing == "empty" or acting_on(core):
                return
            raise ContextMissing(_NOBODY)
        try:
            user_id, territory, correlation_id = Context(*given)
        except TypeError:
            raise InvalidRequest(
                f"provider: {type(given).__name__} is no (user_id, territory); return such a pair"
            ) from None
        check_caller(user_id, territory)
        correlation = str(correlation_id) if correlation_id else trace_id()
        check_text("correlation_id", correlation)
        with its_settings(core):
            set_context(core, str(user_id), territory, correlation)
        if driver_connection(core).info.transaction_status == TransactionStatus.IDLE:
            raise ContextMissing(AUTOCOMMIT)
