"""Where a running backfill stands, and how a terminal, a log and a program are told."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadprotect.settings import render

if TYPE_CHECKING:
    from collections.abc import Callable

    import psycopg

    from leadprotect.backfilling.sessions import Session
    from leadprotect.backfilling.signals import Pace
    from leadprotect.backfilling.worker import Run

_WINDOW_S = 10.0


@dataclass(frozen=True)
class Progress:
    """Where a running backfill stands; leads, leads per second, seconds.

    `total` is the planner's estimate; `factor` tells how fast the throttle lets it go (1 at full
    speed, 0 not at all), `reason` why, and what the workers wait for.
    """

    territories: tuple[str, ...]
    scanned: int
    assigned: int
    deferred: int
    total: int
    seconds: float
    rate: float
    slice_rows: int
    factor: float
    reason: str | None
    done: bool = False

    @property
    def eta(self) -> float | None:
        """Seconds that are left at the present rate; None when it stands still."""
        return (self.total - self.scanned) / self.rate if self.rate > 0 else None


class Meter:
    """Rate over the last ten seconds, in leads per second."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def rate(self, seconds: float, scanned: int) -> float:
        """The rate after `seconds`, when `scanned` leads are done."""
        self._seen.append((seconds, scanned))
        while len(self._seen) > 2 and seconds - self._seen[1][0] >= _WINDOW_S:  # noqa: PLR2004 - a first and a last
            self._seen.popleft()
        since, before = self._seen[0]
        return (scanned - before) / (seconds - since) if seconds > since else 0.0


_LOOK_S = 1.0


class Watch:
    """Reads the counters of all workers, of other machines too, and tells who watches."""

    def __init__(self, run: Run, side: Session, on_progress: Callable[[Progress], None]) -> None:
        self._run, self._side, self._tell = run, side, on_progress
        self._began = time.monotonic()
        self._looked = 0.0
        self._meter = Meter()
        query = render(
            "SELECT sum({schema}.backfill_estimate(code))::bigint FROM unnest(%s::text[]) AS code", run.settings
        )
        row = side.do(lambda conn: conn.execute(query, (list(run.territories),)).fetchone())
        self._total: int = row[0] if row else 0
        # a run that goes on is not as fast as if it had done all
        self._before = side.do(lambda conn: counts(run, conn, list(run.territories)))[0]

    def __call__(self, *, done: bool = False) -> None:
        """Tell, but not more than once a second; `done` is told at once."""
        now = time.monotonic()
        if not done and now - self._looked < _LOOK_S:
            return
        self._looked, run = now, self._run
        scanned, assigned, deferred = self._side.do(lambda conn: counts(run, conn, list(run.territories)))
        verdict = run.throttle.now()
        seconds = now - self._began
        self._tell(
            Progress(
                run.territories,
                scanned,
                assigned,
                deferred,
                total=scanned if done else max(self._total, scanned),
                seconds=seconds,
                rate=(scanned - self._before) / seconds if done else self._meter.rate(seconds, scanned),
                slice_rows=run.slice_rows,
                factor=1.0 if done else verdict.factor,
                reason=None if done else _reason(verdict, run.waiting),
                done=done,
            )
        )


def _reason(verdict: Pace, waiting: str | None) -> str | None:
    """Why it is slow: the throttle's reason, and what the workers wait for unless they are held anyway."""
    return "; ".join(filter(None, (verdict.reason, waiting if verdict.factor else None))) or None


def counts(run: Run, side: psycopg.Connection[Any], codes: list[str]) -> tuple[int, int, int]:
    """Leads scanned, owners assigned, leads put aside: of this walk, whoever did it."""
    query = render(
        """
        SELECT sum(scanned)::bigint, sum(assigned)::bigint, sum(deferred)::bigint
        FROM {schema}.backfill_status() WHERE territory = ANY (%s)
        """,
        run.settings,
    )
    found = side.execute(query, (codes,)).fetchone()
    return found or (0, 0, 0)
