"""Locks of a migration: one upgrade at a time, and who stands in the way of a lock."""

from __future__ import annotations

import logging
import random
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.database.blockers import Blocker, sqlstate
from leadprotect.database.catalog import one
from leadprotect.errors import LockUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from leadprotect.settings import Settings

log = logging.getLogger("leadprotect")

LOCK_TIMEOUT_MS = 100
"""How long one step waits for a lock: live traffic stalls behind it, and for what the step takes afterwards.

250 ms in all is what traffic may feel. With a timeout of 250 ms a rehearsal measured 279 ms, with 100 ms 145 ms.
"""

DEFAULT_BUDGET_S = 60.0
DEFAULT_WAIT_S = 600.0
"""How long an upgrade waits for another one, and for whoever else holds its lock."""

APPLICATION = "leadprotect migration"
RETRYABLE = ("55P03", "40P01")  # lock_not_available, deadlock_detected

_POLL_S = 0.2
_REMIND_S = 10.0
_LONGEST_PAUSE_S = 1.0

_GRANTED = """
    l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND (l.classid::bigint << 32) | l.objid::bigint = %s
    """
_HELD = f"SELECT EXISTS (SELECT FROM pg_locks AS l WHERE l.pid = pg_backend_pid() AND {_GRANTED})"


@dataclass
class Budget:
    """Seconds that a migration may lose to locks, all its steps together."""

    total: float = DEFAULT_BUDGET_S
    spent: float = 0.0
    began: float = field(default_factory=time.monotonic)

    @property
    def rest(self) -> float:
        """Seconds that are left, never below 0."""
        return max(self.total - self.spent, 0.0)

    def step_begins(self) -> None:
        """What the migration does from here on is lost if it does not get its lock."""
        self.began = time.monotonic()

    def step_failed(self) -> None:
        """Charge the time since the step began."""
        self.spent += time.monotonic() - self.began


@dataclass(frozen=True)
class Holder:
    """A session that holds the lock of migrations; `since` when it connected, None where that is hidden from us."""

    pid: int
    login: str | None
    application: str | None
    since: datetime | None

    def __str__(self) -> str:
        """One readable line."""
        since = f"{self.since:%Y-%m-%d %H:%M:%S} UTC" if self.since else "a time hidden from this role"
        name = self.application or "without application_name"
        return f"pid {self.pid} ({name}, login {self.login or 'unknown'}, connected since {since})"


def lock_name(settings: Settings) -> str:
    """What the session lock of this installation is the hash of."""
    return f"leadprotect {settings.version_table_schema}.{settings.version_table} {settings.schema}"


@contextmanager
def one_at_a_time(
    conn: psycopg.Connection[Any], settings: Settings, *, wait: float = DEFAULT_WAIT_S
) -> Iterator[Callable[[], None]]:
    """Hold the session lock of this installation; yields a function that raises where it is held no more.

    Waits `wait` seconds for another deploy by polling: a blocking advisory lock would deadlock, since
    CREATE INDEX CONCURRENTLY waits for every transaction that is older, and a waiting lock is one.
    `conn` must be in autocommit and nothing else's. Raises `LockUnavailable`, naming the holder: any
    login can take an advisory lock.
    """
    key = one(conn, "SELECT hashtextextended(%s, 0)", lock_name(settings))
    began, reminded = time.monotonic(), 0.0
    while not one(conn, "SELECT pg_try_advisory_lock(%s)", key):
        now = time.monotonic()
        if now - began >= wait:
            raise LockUnavailable(_not_ours(settings, holders(conn, key), wait))
        if now - reminded > _REMIND_S:
            reminded = now
            log.warning("%s", _waiting(settings, holders(conn, key)))
        time.sleep(min(_POLL_S, wait))
    try:
        yield lambda: _check_held(conn, key)
    finally:
        with suppress(psycopg.OperationalError):  # a session that is gone holds nothing
            conn.execute("SELECT pg_advisory_unlock(%s)", (key,))


def holders(conn: psycopg.Connection[Any], key: int) -> list[Holder]:
    """Who holds the advisory lock `key`; most often one, and none when it was given back meanwhile."""
    found = conn.execute(
        f"""
        SELECT l.pid, a.usename::text, a.application_name, a.backend_start AT TIME ZONE 'Etc/UTC'
        FROM pg_locks AS l LEFT JOIN pg_stat_activity AS a ON a.pid = l.pid
        WHERE {_GRANTED} ORDER BY l.pid
        """,
        (key,),
    ).fetchall()
    return [Holder(*row) for row in found]


def _waiting(settings: Settings, found: list[Holder]) -> str:
    who = "; ".join(map(str, found)) or "a session that is gone already"
    if all(holder.application == APPLICATION for holder in found):
        return f"another migration of schema {settings.schema} is running; waiting for it: {who}"
    return f"the lock of migrations of schema {settings.schema} is held by no migration of ours: {who}; waiting for it"


def _not_ours(settings: Settings, found: list[Holder], wait: float) -> str:
    end = " ".join(f"SELECT pg_terminate_backend({holder.pid});" for holder in found)
    return (
        f"{_waiting(settings, found)}. Nothing was touched, but {wait:g} s are over: let it end, or end it"
        f"{f' ({end})' if end else ''}, and run the same command again (-x lock_wait=30min waits longer)"
    )


def _check_held(conn: psycopg.Connection[Any], key: int) -> None:
    try:
        held = not conn.closed and one(conn, _HELD, key)  # once or twice for each revision
    except psycopg.OperationalError:
        held = False
    if not held:
        raise LockUnavailable(
            "the session that held the lock of this migration has ended (an administrator, a restart, a network "
            "that drops idle connections), so another migration may run: this step was not applied. "
            "Nothing is half done: run the same command again"
        )


def retry(attempt: Callable[[], None], *, budget: Budget, seen: Callable[[], list[Blocker]]) -> None:
    """Run `attempt` until it gets its locks, with jittered pauses, inside the budget.

    Raises `LockUnavailable`, naming the blocking sessions, when the budget is used up.
    """
    pause = 0.25
    while True:
        budget.step_begins()
        try:
            return attempt()
        except Exception as error:
            if sqlstate(error) not in RETRYABLE:
                raise
            budget.step_failed()
            found = seen()
            if not budget.rest:
                raise unavailable(budget, found) from None
            log.warning("no lock in time, blocked by %s; trying again", _who(found))
            # live traffic must drain between two attempts, and two deploys must not march in step
            wait = min(budget.rest, random.uniform(pause, 2 * pause))  # noqa: S311 - jitter, no secret
            time.sleep(wait)
            budget.spent += wait
            pause = min(pause * 1.5, _LONGEST_PAUSE_S)


def unavailable(budget: Budget, found: list[Blocker]) -> LockUnavailable:
    """The error with which a migration ends whose budget is used up."""
    return LockUnavailable(
        f"no lock within the budget of {budget.total:g} s; blocked by {_who(found)}. "
        "Nothing is half done: end that session or wait, and run the same command again "
        "(-x lock_budget=5min waits longer)"
    )


def _who(found: list[Blocker]) -> str:
    return "; ".join(map(str, found)) or "a session that is gone already"
