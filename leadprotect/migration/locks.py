"""Locks of a migration: one upgrade at a time, and who stands in the way of a lock."""

from __future__ import annotations

import logging
import random
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from leadprotect.database.blockers import Blocker, sqlstate
from leadprotect.errors import LockUnavailable, SettingsError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

    from leadprotect.settings import Settings

log = logging.getLogger("leadprotect")

LOCK_TIMEOUT_MS = 100
"""How long one step waits for a lock: live traffic stalls behind it, and for what the step takes afterwards.

250 ms in all is what traffic may feel. With a timeout of 250 ms a rehearsal measured 279 ms, with 100 ms 145 ms.
"""

DEFAULT_BUDGET_S = 60.0
RETRYABLE = ("55P03", "40P01")  # lock_not_available, deadlock_detected

_POLL_S = 0.2
_REMIND_S = 10.0
_LONGEST_PAUSE_S = 1.0


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
            who = "; ".join(map(str, seen())) or "a session that is gone already"
            if not budget.rest:
                raise LockUnavailable(
                    f"no lock within the budget of {budget.total:g} s; blocked by {who}. "
                    "Nothing is half done: end that session or wait, and run the same command again "
                    "(-x lock_budget=5min waits longer)"
                ) from None
            log.warning("no lock in time, blocked by %s; trying again", who)
            # live traffic must drain between two attempts, and two deploys must not march in step
            wait = min(budget.rest, random.uniform(pause, 2 * pause))  # noqa: S311 - jitter, no secret
            time.sleep(wait)
            budget.spent += wait
            pause = min(pause * 1.5, _LONGEST_PAUSE_S)
