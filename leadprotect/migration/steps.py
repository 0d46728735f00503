"""Steps that are no upgrade: one transaction each, with the lock, the timeout and the retries of a migration."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadprotect.database import blockers
from leadprotect.database.connection import connect
from leadprotect.migration import locks
from leadprotect.settings import Settings, duration

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

    Work = Callable[[psycopg.Connection[Any]], None]


@dataclass(frozen=True)
class Steps:
    """Carries out steps on one session; `guard` is a connection to look around with, which no step uses."""

    guard: psycopg.Connection[Any]
    session: psycopg.Connection[Any]
    budget: locks.Budget
    held: Callable[[], None]
    seen: Callable[[], list[blockers.Blocker]]

    def step(self, work: Work) -> None:
        """Do `work` in a transaction of its own, again until it gets its locks."""

        def attempt() -> None:
            with self.session.transaction():
                self.session.execute(f"SET LOCAL lock_timeout = '{locks.LOCK_TIMEOUT_MS}ms'")
                self.held()
                work(self.session)

        locks.retry(attempt, budget=self.budget, seen=self.seen)

    def alone(self, statement: str) -> None:
        """Run a statement outside of any transaction: a build of an index, which may wait as long as the budget."""
        self.held()
        self.session.execute(f"SET leadprotect.lock_budget = '{int(self.budget.rest * 1000)}ms'")
        self.session.execute(statement.encode())


@contextmanager
def in_steps(settings: Settings, *, lock_budget: str | None = None) -> Iterator[Steps]:
    """Hold the lock of migrations, and carry out steps.

    `lock_budget` is what all steps together may lose to locks, as ``60s``. Raises `LockUnavailable`, naming
    who is in the way.
    """
    budget = locks.Budget(duration("lock_budget", lock_budget) if lock_budget else locks.DEFAULT_BUDGET_S)
    with ExitStack() as stack:
        guard, conn, side = (stack.enter_context(_session(settings)) for _ in range(3))
        held = stack.enter_context(locks.one_at_a_time(guard, settings))
        seen = stack.enter_context(blockers.watch(side, conn.info.backend_pid))

        yield Steps(guard, conn, budget, held, seen)


def _session(settings: Settings) -> psycopg.Connection[Any]:
    return connect(settings, application=locks.APPLICATION)
