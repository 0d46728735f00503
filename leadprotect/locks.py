"""Locks of a migration: one upgrade at a time, and who stands in the way of a lock."""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.errors import LockUnavailable, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from leadprotect.settings import Settings

log = logging.getLogger("leadprotect")

LOCK_TIMEOUT_MS = 250
"""How long one step waits for a lock: as long as live traffic may stall behind it."""

DEFAULT_BUDGET_S = 60.0
RETRYABLE = ("55P03", "40P01")  # lock_not_available, deadlock_detected

_SAMPLE_S = 0.05
_POLL_S = 0.2
_REMIND_S = 10.0


@dataclass(frozen=True)
class Blocker:
    """A session that holds what we wait for; `age` in seconds since its transaction began."""

    pid: int
    age: float
    application: str
    state: str
    query: str

    def __str__(self) -> str:
        """One readable line; the query comes without its values."""
        name = self.application or "without application_name"
        return f"pid {self.pid} ({name}, {self.state}, transaction {self.age:.0f} s old): {self.query}"


def parse_budget(text: str) -> float:
    """Seconds of ``-x lock_budget=60s`` (or ``2min``); raises `SettingsError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min)?", text)
    if match is None:
        message = f"-x lock_budget={text}: not a duration; write 60s or 2min"
        raise SettingsError(message)
    return float(match[1]) * (60 if match[2] == "min" else 1)


@contextmanager
def one_at_a_time(conn: psycopg.Connection[Any], settings: Settings) -> Iterator[None]:
    """Hold the session lock of this installation; waits for another deploy by polling.

    A blocking advisory lock would deadlock: CREATE INDEX CONCURRENTLY waits for every transaction
    that is older, and a waiting lock is one. `conn` must be in autocommit and nothing else's.
    """
    name = f"leadprotect {settings.version_table_schema}.{settings.version_table} {settings.schema}"
    reminded = 0.0
    while not conn.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", (name,)).fetchone()[0]:  # type: ignore[index]
        if time.monotonic() - reminded > _REMIND_S:
            reminded = time.monotonic()
            log.warning("another migration of schema %s is running; waiting for it", settings.schema)
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        if not conn.closed:
            conn.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", (name,))


@contextmanager
def watch(conn: psycopg.Connection[Any], pid: int) -> Iterator[Callable[[], list[Blocker]]]:
    """Sample who blocks session `pid` while it works; yields a function that tells the last seen."""
    seen: list[Blocker] = []
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLE_S):
            try:
                found = blockers(conn, pid)
            except psycopg.Error:
                return  # the watch only explains; the migration itself will meet the same fate
            if found:
                seen[:] = found

    thread = threading.Thread(target=sample, name="leadprotect-watch", daemon=True)
    thread.start()
    try:
        yield lambda: list(seen)
    finally:
        ended.set()
        thread.join()


def blockers(conn: psycopg.Connection[Any], pid: int) -> list[Blocker]:
    """Sessions that block session `pid` right now, the oldest transaction first."""
    found = conn.execute(
        """
        SELECT a.pid, coalesce(extract(epoch FROM clock_timestamp() - a.xact_start), 0)::float8,
               coalesce(a.application_name, ''), coalesce(a.state, 'background'), coalesce(a.query, '')
        FROM unnest(pg_catalog.pg_blocking_pids(%s)) AS blocking (pid)
        JOIN pg_catalog.pg_stat_activity AS a ON a.pid = blocking.pid
        ORDER BY a.xact_start
        """,
        (pid,),
    ).fetchall()
    return [Blocker(*row[:4], query=redact(row[4])) for row in found]


def redact(query: str) -> str:
    """A query without its values: they may be personal data."""
    flat = " ".join(query.split())
    return re.sub(r"'(?:[^']|'')*'|\b\d+(?:\.\d+)?\b|\$(\w*)\$.*?\$\1\$", "?", flat)[:120]


def retry(attempt: Callable[[], None], *, budget: float, seen: Callable[[], list[Blocker]]) -> None:
    """Run `attempt` until it gets its locks, with jittered pauses, inside `budget` seconds.

    Raises `LockUnavailable`, naming the blocking sessions, when the budget is used up.
    """
    deadline = time.monotonic() + budget
    pause = 0.25
    while True:
        try:
            return attempt()
        except Exception as error:
            if _sqlstate(error) not in RETRYABLE:
                raise
            who = "; ".join(map(str, seen())) or "a session that is gone already"
            rest = deadline - time.monotonic()
            if rest <= 0:
                message = (
                    f"no lock within the budget of {budget:g} s; blocked by {who}. "
                    "Nothing is half done: end that session or wait, and run the same command again "
                    "(-x lock_budget=5min waits longer)"
                )
                raise LockUnavailable(message) from None
            log.warning("no lock within %s ms, blocked by %s; trying again", LOCK_TIMEOUT_MS, who)
            # live traffic must drain between two attempts, and two deploys must not march in step
            time.sleep(min(rest, random.uniform(pause, 2 * pause)))  # noqa: S311 - jitter, no secret
            pause = min(pause * 1.5, 5.0)


def _sqlstate(error: Exception) -> str | None:
    origin = getattr(error, "orig", error)
    return getattr(origin, "sqlstate", None)
