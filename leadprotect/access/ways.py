"""The connections on which denials are recorded: few for each login, closed when idle, opened with what is good now."""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.database.drivers import driver_connection, engine_of
from leadprotect.database.opening import pin
from leadprotect.errors import AuditUnavailable
from leadprotect.settings import Settings, current, url

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Iterator

    from sqlalchemy import Engine

    from leadprotect.database.drivers import AnyConnection

APPLICATION = "leadprotect audit"
SIZE = 2
"""Connections of our own per process and login: a denial never waits for one of the caller's pool."""

WAYS = 16
"""So many logins, servers and databases at once; who was not used for longest makes room."""

IDLE_S = 60.0
_PAUSE_S = 0.1
_TICKS = 4
# a connection is opened with them, and no other is told apart by them
_UNTOLD = ("application_name", "fallback_application_name", "sslpassword", "oauth_client_secret")


@dataclass(frozen=True)
class Caller:
    """What a connection like the caller's is opened with; `engine` is SQLAlchemy's, where he has one that can wait."""

    parameters: dict[str, Any] = field(repr=False)
    password: str | None = field(repr=False)
    driver: Any
    engine: Engine | None
    settings: Settings

    @property
    def key(self) -> tuple[int, Hashable]:
        """Login, server, database and options, without a secret; a fork must not share its parent's sockets."""
        told = frozenset((name, value) for name, value in self.parameters.items() if name not in _UNTOLD)
        return os.getpid(), told

    def open(self, deadline: float) -> psycopg.Connection[Any]:
        """Another connection, in autocommit; a server that is away is tried again until `deadline` (monotonic).

        Credentials that were refused are not: raises `AuditUnavailable` with the server's reason.
        """
        while True:
            failures: list[Exception] = []
            for way in self._ways():
                try:
                    return way()
                except Exception as error:  # noqa: BLE001 - the host's own engine and callable may raise anything
                    failures.append(error)
            if any(map(_refused, failures)) or time.monotonic() > deadline:
                reason = next(filter(_refused, failures), failures[0])
                raise AuditUnavailable(
                    "the denial could not be recorded, so no answer is given: a connection of its own was not to be "
                    f"had ({' '.join(str(reason).split())}). It needs credentials that are good now: those of the "
                    "caller's engine, of libpq's password file, or of a function in the setting database_url"
                ) from None
            time.sleep(_PAUSE_S)

    def _ways(self) -> Iterator[Callable[[], psycopg.Connection[Any]]]:
        """As the caller connected; if that is refused, as his engine would now, and as libpq and the settings say."""
        yield partial(self._connected, self.password)
        if self.engine is not None:
            yield self._by_engine
        if self.password:
            yield partial(self._connected, None)
        if self.settings.database_url:
            yield self._by_settings

    def _connected(self, password: str | None) -> psycopg.Connection[Any]:
        given = self.parameters | {"application_name": APPLICATION, "password": password}
        return psycopg.connect(**given, autocommit=True, prepare_threshold=None)

    def _by_engine(self) -> psycopg.Connection[Any]:
        """By the creator and the events of the engine's pool, in a pool that is nobody else's."""
        assert self.engine is not None  # noqa: S101 - for the type checker
        checked_out = self.engine.pool.recreate().connect()
        conn: psycopg.Connection[Any] = checked_out.driver_connection  # type: ignore[assignment]
        checked_out.detach()
        if conn is self.driver:
            raise AuditUnavailable("the engine has but the connection of the caller: give its pool one more")
        if self.settings.audit_url:  # it tells where, the engine with what
            password = conn.info.password
            conn.close()
            return self._connected(password)
        conn.rollback()
        conn.autocommit = True
        conn.prepare_threshold = None
        return conn

    def _by_settings(self) -> psycopg.Connection[Any]:
        given = psycopg.conninfo.conninfo_to_dict(url(self.settings))
        if given.get("user") != self.parameters.get("user"):
            raise AuditUnavailable("database_url is of another login: correct it")
        return self._connected(str(given.get("password") or "") or None)


def caller(conn: AnyConnection) -> Caller:
    """Read off the caller's connection what another one is opened with."""
    s = current()
    driver = driver_connection(conn)
    parameters: dict[str, Any] = {**driver.info.get_parameters(), "user": driver.info.user}
    way = psycopg.conninfo.conninfo_to_dict(s.audit_url)
    if "host" in way or "hostaddr" in way:
        parameters = {name: value for name, value in parameters.items() if name not in ("host", "hostaddr", "port")}
    return Caller(parameters | way, driver.info.password or None, driver, engine_of(conn), s)


def _refused(error: Exception) -> bool:
    """Whether a password was sent or missing; libpq tells no SQLSTATE of a connection that was not made."""
    pgconn = getattr(getattr(error, "orig", error), "pgconn", None)
    return bool(pgconn and (pgconn.used_password or pgconn.needs_password))


class Way:
    """At most `SIZE` connections for one key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._free: list[tuple[psycopg.Connection[Any], bool, float]] = []
        self._slots = threading.BoundedSemaphore(SIZE)
        self._closed = False

    @contextmanager
    def connection(self, caller: Caller, deadline: float) -> Iterator[tuple[psycopg.Connection[Any], bool]]:
        """A pinned connection, and whether the pin lasts: a pooler's session has it for a transaction only.

        Raises `AuditUnavailable` when none is free or can be opened by `deadline` (monotonic).
        """
        if not self._slots.acquire(timeout=max(deadline - time.monotonic(), 0)):
            raise AuditUnavailable(
                "the denial could not be recorded, so no answer is given: too many at once; try again in a moment"
            )
        try:
            conn, lasts = self._usable() or self._opened(caller, deadline)
            try:
                yield conn, lasts
            except BaseException:
                conn.close()
                raise
            self._park(conn, lasts)
        finally:
            self._slots.release()

    def close(self, *, idle: float = 0.0) -> int:
        """Close what has not been used for `idle` seconds, with 0 for good; returns how many lie here still."""
        with self._lock:
            self._closed = self._closed or not idle
            before = time.monotonic() - idle
            old = [conn for conn, _, since in self._free if since <= before]
            self._free = [free for free in self._free if free[0] not in old]
            left = len(self._free)
        for conn in old:
            conn.close()
        return left

    def _usable(self) -> tuple[psycopg.Connection[Any], bool] | None:
        while True:
            with self._lock:
                if not self._free:
                    return None
                conn, lasts, _ = self._free.pop()
            try:
                conn.execute("")
            except psycopg.Error:
                conn.close()
            else:
                return conn, lasts

    def _opened(self, caller: Caller, deadline: float) -> tuple[psycopg.Connection[Any], bool]:
        conn = caller.open(deadline)
        try:
            return conn, pin(conn, lock_timeout=0, more={"application_name": APPLICATION})
        except BaseException:
            conn.close()
            raise

    def _park(self, conn: psycopg.Connection[Any], lasts: bool) -> None:  # noqa: FBT001 - it goes with the connection
        with self._lock:
            if not self._closed:
                self._free.append((conn, lasts, time.monotonic()))
                return
        conn.close()


_ways: OrderedDict[tuple[int, Hashable], Way] = OrderedDict()
_changed = threading.Condition()
_sweeper: threading.Thread | None = None


def way(key: tuple[int, Hashable]) -> Way:
    """The connections for `key`; those of the key that was not used for longest are closed when there are too many."""
    global _sweeper  # noqa: PLW0603 - one thread for all, while there is anything to close
    with _changed:
        found = _ways.setdefault(key, Way())
        _ways.move_to_end(key)
        surplus = [_ways.popitem(last=False) for _ in range(len(_ways) - WAYS)]
        if _sweeper is None or not _sweeper.is_alive():  # it does not outlive a fork
            _sweeper = threading.Thread(target=_sweep, name="leadprotect-audit-idle", daemon=True)
            _sweeper.start()
    _close(surplus)
    return found


def close() -> None:
    """Close every connection of this process; the next denial opens one anew."""
    with _changed:
        every = list(_ways.items())
        _ways.clear()
        _changed.notify()
    _close(every)


atexit.register(close)


def _close(ways: Iterable[tuple[tuple[int, Hashable], Way]]) -> None:
    for (pid, _), one in ways:
        if pid == os.getpid():  # a child that closed them would end the sessions of its parent
            one.close()


def _sweep() -> None:
    """Close what is idle, and end when nothing is left."""
    global _sweeper  # noqa: PLW0603
    while True:
        with _changed:
            _changed.wait(IDLE_S / _TICKS)
            mine = [(key, one) for key, one in _ways.items() if key[0] == os.getpid()]
            gone = [(key, one) for key, one in mine if not one.close(idle=IDLE_S)]
            for key, _ in gone:
                del _ways[key]
            if not mine or len(gone) == len(mine):
                _sweeper = None
                _close(gone)
                return
        _close(gone)
