"""Tells when a transaction of SQLAlchemy's begins, ends, or goes back to a savepoint; psycopg tells nobody."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine
    from sqlalchemy.orm import Session, SessionTransaction

_BEGINS = ("begin", "begin_twophase")
_ENDS = ("commit", "rollback", "commit_twophase", "rollback_twophase")


class Follower(Protocol):
    """What wants to know; `core` is the connection of the transaction, and takes statements except in `ended`."""

    def begun(self, scope: Connection | Session, core: Connection) -> None:
        """A transaction has begun in `scope`: `core` itself, or a session that took it. May be told twice."""

    def ended(self, core: Connection) -> None:
        """The transaction is about to end; afterwards the driver's connection may be somebody else's."""

    def undone(self, core: Connection) -> None:
        """The transaction went back to a savepoint, and what was set since is gone."""

    def executed(self, core: Connection, statement: str) -> None:
        """A statement was executed; told before `undone`."""


def follow(core: Connection, follower: Follower) -> None:
    """Tell `follower` of every transaction of sessions and of connections of this engine from the next one on."""
    from sqlalchemy import event  # noqa: PLC0415 - who passes one of its connections has loaded it
    from sqlalchemy.orm import Session  # noqa: PLC0415

    _listener(core.engine).follower = follower
    if not event.contains(Session, "after_begin", _session_begins):
        event.listen(Session, "after_begin", _session_begins)


def at_begin(engine: Engine, first: Callable[[Connection], None] | None) -> None:
    """Call `first` at the begin of every transaction of this engine, before anybody else is told; None calls nobody."""
    _listener(engine).first = first


def _listener(engine: Engine) -> _Listener:
    # to listen costs as much as a statement, so it is done once
    if (found := _listeners.get(engine)) is not None:
        return found
    from sqlalchemy import event  # noqa: PLC0415 - who has an engine has loaded it

    listener = _listeners[engine] = _Listener()
    for name in _BEGINS:
        event.listen(engine, name, listener.begin)
    for name in _ENDS:
        event.listen(engine, name, listener.end)
    event.listen(engine, "after_cursor_execute", listener.after_execute)
    return listener


class _Listener:
    def __init__(self) -> None:
        self.first: Callable[[Connection], None] | None = None
        self.follower: Follower | None = None

    def begin(self, core: Connection, *_: Any) -> None:
        with usable_or_closed(core):
            if self.first:
                self.first(core)
            if self.follower:
                self.follower.begun(core, core)

    def end(self, core: Connection, *_: Any) -> None:
        _refused.pop(core, None)
        if self.follower and not core.closed and not core.invalidated:
            self.follower.ended(core)

    def after_execute(self, core: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if self.follower:
            self.follower.executed(core, statement)
            # the caller's own, too: of that no event of SQLAlchemy's tells
            if statement[:11].upper() == "ROLLBACK TO":
                self.follower.undone(core)


def _session_begins(session: Session, transaction: SessionTransaction, core: Connection) -> None:
    listener = _listeners.get(core.engine)
    if listener and listener.follower and not transaction.nested:
        with usable_or_refused(core):
            listener.follower.begun(session, core)


@contextmanager
def usable_or_closed(core: Connection) -> Iterator[None]:
    """Close the connection where the block raises: SQLAlchemy would go on as if nothing had been to do at the begin."""
    try:
        yield
    except BaseException:
        core.close()
        raise


@contextmanager
def usable_or_refused(core: Connection) -> Iterator[None]:
    """The same for a session, which holds on to its connection: where the block raises, each statement does, too.

    A rollback ends that.
    """
    try:
        yield
    except BaseException as error:
        _refuse(core, error)
        raise


def _refuse(core: Connection, error: BaseException) -> None:
    from sqlalchemy import event  # noqa: PLC0415

    _listener(core.engine)
    if not event.contains(core.engine, "before_cursor_execute", _stop):
        event.listen(core.engine, "before_cursor_execute", _stop)
    _refused[core] = error


def _stop(core: Connection, *_: Any) -> None:
    if error := _refused.get(core):
        raise error


_listeners: WeakKeyDictionary[Engine, _Listener] = WeakKeyDictionary()
_refused: WeakKeyDictionary[Connection, BaseException] = WeakKeyDictionary()
"""Connection of a session -> why the begin of its transaction failed."""
