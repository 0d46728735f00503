"""CPU time of the server's own processes: what a statement costs, whatever else the machine does meanwhile.

A percentile of ten clients on two cores swung from 2.8 to 11.5 times its base within one run. The backend's clock
counts no client, no waiting and no other process.
"""

from __future__ import annotations

import os
import random
import statistics
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadprotect.errors import LeadProtectError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

_WARM = 8
"""Calls before the first block: a prepared statement has its plan for good after the fifth."""


@dataclass(frozen=True)
class Case:
    """A statement on a connection of its own; `call` is given the number of the call, a block makes `calls` of them."""

    conn: psycopg.Connection[Any]
    call: Callable[[int], object]
    calls: int = 50


@dataclass(frozen=True)
class Cost:
    """Microseconds of a call in one block: of the backend, of this process, and as the clock on the wall has them."""

    backend: float
    client: float
    wall: float

    @property
    def both(self) -> float:
        """What a core spends on the call, here and in the server."""
        return self.backend + self.client


@dataclass(frozen=True)
class Ratio:
    """Median and quartiles of the ratios within each round."""

    median: float
    low: float
    high: float


def backend_seconds(pid: int) -> float:
    """CPU seconds of a process by its own clock.

    Source: https://man7.org/linux/man-pages/man3/clock_getcpuclockid.3.html.
    """
    return time.clock_gettime((~pid << 3) | 2)


def measured(cases: dict[str, Case], *, rounds: int) -> dict[str, list[Cost]]:
    """What a call of each case costs, block by block; every round has a block of each, in an order of its own."""
    found: dict[str, list[Cost]] = {name: [] for name in cases}
    order = random.Random(0)  # noqa: S311 - no secret: the same order in the next run
    with one_core(*(case.conn for case in cases.values())):
        for case in cases.values():
            for number in range(min(_WARM, case.calls)):
                case.call(number)
        for number in range(rounds):
            for name in order.sample([*cases], len(cases)):
                found[name].append(_block(cases[name], number))
    return found


def _block(case: Case, number: int) -> Cost:
    pid, first = case.conn.info.backend_pid, number * case.calls
    walls: list[float] = []
    backend, client = backend_seconds(pid), time.thread_time()
    for at in range(first, first + case.calls):
        begin = time.perf_counter()
        case.call(at)
        walls.append(time.perf_counter() - begin)
    client, backend = time.thread_time() - client, backend_seconds(pid) - backend
    return Cost(backend * 1e6 / case.calls, client * 1e6 / case.calls, statistics.median(walls) * 1e6)


@contextmanager
def one_core(*conns: psycopg.Connection[Any]) -> Iterator[None]:
    """Client and backends on one core: waking the other one costs more than a small statement. Linux alone can."""
    if not hasattr(os, "sched_setaffinity"):
        raise LeadProtectError("this system tells no process on which core to run: measure on Linux")
    cores = os.sched_getaffinity(0)
    last = {max(cores)}
    os.sched_setaffinity(0, last)
    for conn in conns:
        os.sched_setaffinity(conn.info.backend_pid, last)
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)
        for conn in conns:
            if not conn.closed:
                os.sched_setaffinity(conn.info.backend_pid, cores)


def ratio(of: list[float], base: list[float]) -> Ratio:
    """How many times `base` it costs."""
    ratios = [one / other for one, other in zip(of, base, strict=True)]
    if len(ratios) == 1:
        return Ratio(ratios[0], ratios[0], ratios[0])
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Ratio(middle, low, high)
