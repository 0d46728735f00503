"""The main thread's session of a backfill: opened again when it is lost, and the step is done again."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Self, TypeVar

import psycopg

from leadprotect.database.connection import no_connection
from leadprotect.database.opening import open_connection
from leadprotect.errors import BackfillError, ConnectionUnusable

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from leadprotect.database.opening import Address

T = TypeVar("T")

RECONNECT_S = 60.0
"""So long a lost connection is tried again: a restart or a failover takes less."""

# 25P03: idle_in_transaction_session_timeout, which ends the session
_LOST = ("08", "57P", "25P03")
_PAUSE_S = 1.0


class Session:
    """A session without limits, whose steps survive the loss of a connection."""

    def __init__(self, address: Address) -> None:
        """Connect; raises `ConnectionUnusable` where that fails."""
        self._address = address
        try:
            self.conn = self._opened()
        except psycopg.OperationalError as error:  # names host, port and user, never the password
            raise no_connection(error) from None

    def __enter__(self) -> Self:
        """Nothing to prepare."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection."""
        self.conn.close()

    def do(self, step: Callable[[psycopg.Connection[Any]], T]) -> T:
        """Do `step`, and again where a connection is lost on the way: each of its statements bears that.

        Raises `BackfillError` when there is no connection for 60 seconds.
        """
        since = last = time.monotonic()
        while True:
            try:
                if self.conn.closed:
                    self.conn = self._opened()
                return step(self.conn)
            except (psycopg.Error, ConnectionUnusable) as error:
                if not connection_lost(error):
                    raise
                now = time.monotonic()
                # a step may be lost again after minutes of work: that is another loss
                since, last = (now if now - last > RECONNECT_S else since), now
                if now - since > RECONNECT_S:
                    raise BackfillError(f"no connection to the database for {RECONNECT_S:.0f} s: {error}") from None
                time.sleep(_PAUSE_S)

    def _opened(self) -> psycopg.Connection[Any]:
        return open_connection(self._address, application="leadprotect backfill", lock_timeout=0)


def connection_lost(error: BaseException) -> bool:
    """Whether `error` tells of a lost connection, not of a statement."""
    cause = error.__cause__ if isinstance(error, ConnectionUnusable) else error
    if not isinstance(cause, psycopg.Error):
        return False
    if cause.sqlstate is None:
        return isinstance(cause, psycopg.OperationalError)
    return cause.sqlstate.startswith(_LOST)
