"""Steps that are no upgrade: one transaction each, with the lock, the timeout and the retries of a migration."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from leadprotect.database import blockers
from leadprotect.database.opening import open_connection
from leadprotect.migration import locks
from leadprotect.settings import Settings, duration, url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

    Work = Callable[[psycopg.Connection[Any]], None]


@contextmanager
def in_steps(
    settings: Settings, *, lock_budget: str | None = None
) -> Iterator[tuple[psycopg.Connection[Any], Callable[[Work], None]]]:
    """A connection to look around with, and a function that carries out one step in a transaction of its own.

    `lock_budget` is what all steps together may lose to locks, as ``60s``. Raises `LockUnavailable`, naming
    who is in the way.
    """
    budget = locks.Budget(duration("lock_budget", lock_budget) if lock_budget else locks.DEFAULT_BUDGET_S)
    with ExitStack() as stack:
        guard, conn, side = (stack.enter_context(_session(settings)) for _ in range(3))
        held = stack.enter_context(locks.one_at_a_time(guard, settings))
        seen = stack.enter_context(blockers.watch(side, conn.info.backend_pid))

        def step(work: Work) -> None:
            def attempt() -> None:
                with conn.transaction():
                    conn.execute(f"SET LOCAL lock_timeout = '{locks.LOCK_TIMEOUT_MS}ms'")
                    held()
                    work(conn)

            locks.retry(attempt, budget=budget, seen=seen)

        yield guard, step


def _session(settings: Settings) -> psycopg.Connection[Any]:
    return open_connection(lambda: url(settings), application=locks.APPLICATION)
