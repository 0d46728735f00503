"""A comparison of two statements on one server, by the CPU of the backend; what is asked, and as whom.

Every ratio is one of CPU time of the backend within one run; see `clock`.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import psycopg

from leadprotect.lab.bench.clock import measured, ratio
from leadprotect.lab.data import generated_lead, generated_user

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from leadprotect.lab.bench.clock import Case
    from leadprotect.lab.servers import Server

DATABASE = "bench_access"
LOGIN = "bench_seller_de"
USER, SHARING = generated_user(0), generated_user(1)
"""Owners of every hundredth lead; the second one shares a lead of somebody else."""


@dataclass(frozen=True)
class Line:
    """One comparison: `measured` times `base`, between its quartiles `low` and `high`.

    `figure` is the ratio to reach, None where none is set; `microseconds` of CPU, or those of the p95 of pgbench;
    `p50` is what a client waits for, in microseconds, where that was measured.
    """

    server: str
    what: str
    base: str
    measured: float
    figure: float | None
    microseconds: float
    low: float = 0.0
    high: float = 0.0
    p50: float = 0.0

    @property
    def reached(self) -> bool:
        """Whether the figure is reached, with as many digits as it is shown."""
        return self.figure is None or round(self.measured, 2) <= self.figure


@dataclass(frozen=True)
class Bench:
    """Where it is measured, how many leads there are, and how many blocks each statement has."""

    server: Server
    name: str
    leads: int
    blocks: int

    @contextmanager
    def connections(self, user: str = USER, login: str = LOGIN) -> Iterator[Callable[[], psycopg.Connection[Any]]]:
        """Makes connections that prepare every statement, with `user` in context; each is one backend's whole life."""
        with ExitStack() as stack:

            def connect() -> psycopg.Connection[Any]:
                conn = psycopg.connect(self.server.url(DATABASE, login), autocommit=True, prepare_threshold=0)
                stack.enter_context(conn)
                for setting in ("max_parallel_workers_per_gather = 0", "synchronous_commit = off", "jit = off"):
                    conn.execute(f"SET {setting}")
                conn.execute(
                    "SELECT set_config('app.user_id', %s, false), set_config('app.territory', 'DE', false)", (user,)
                )
                return conn

            yield connect

    def cost(self, cases: dict[str, Case], *, blocks: int = 0) -> dict[str, list[float]]:
        """Microseconds of the backend a call, for each round."""
        found = measured(cases, rounds=blocks or self.blocks)
        return {name: [cost.backend for cost in costs] for name, costs in found.items()}

    def line(self, what: str, base: str, of: list[float], than: list[float], figure: float | None) -> Line:
        """A comparison of two."""
        found = ratio(of, than)
        return Line(self.name, what, base, found.median, figure, statistics.median(of), found.low, found.high)

    @property
    def own(self) -> list[str]:
        """Leads of `USER` in DE."""
        return [generated_lead(n) for n in range(0, self.leads, 100)]

    def figure(self, newer: float, older: float) -> float:
        """Of PostgreSQL 18, and of those that plan a function in SQL for each call."""
        return newer if self.server.major >= 18 else older  # noqa: PLR2004


def asking(conn: psycopg.Connection[Any], statement: str, values: list[Any] | None = None) -> Callable[[int], object]:
    """A call that asks about another one of `values` each time."""
    if values is None:
        return lambda _: conn.execute(statement).fetchall()
    # next to each other in a list would be next to each other in the table
    return lambda n: conn.execute(statement, (values[n * 7919 % len(values)],)).fetchall()


def asking_to(conn: psycopg.Connection[Any], statement: str, values: list[Any]) -> Callable[[int], object]:
    """A call that does something about another one of `values` each time, whatever it answers."""
    return lambda n: conn.execute(statement, (values[n * 7919 % len(values)],))


def undone(conn: psycopg.Connection[Any], statement: str, values: list[Any]) -> Callable[[int], object]:
    """`asking_to` in a transaction that is rolled back."""

    def call(number: int) -> None:
        conn.execute("BEGIN")
        conn.execute(statement, (values[number * 7919 % len(values)],))
        conn.execute("ROLLBACK")

    return call
