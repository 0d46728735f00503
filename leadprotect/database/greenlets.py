"""Greenlets in which synchronous functions wait for an asynchronous connection.

One that has finished takes the next piece of work: to begin a new one costs four times as much as to go on in it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from greenlet import getcurrent, greenlet  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from collections.abc import Callable

MOST_IDLE = 100
"""So many a thread keeps, each with a stack of some kilobytes."""


class _Worker(greenlet):  # type: ignore[misc]
    """Does one piece of work after another; between two it is idle."""

    leadprotect = True
    outcome: tuple[Any, BaseException | None] | None = None

    def run(self, work: Callable[[], Any]) -> None:
        """Until nobody holds it any more."""
        while True:
            try:
                self.outcome = (work(), None)
            except BaseException as error:  # noqa: BLE001 - told to whoever awaits
                self.outcome = (None, error)
            work = self.parent.switch()


class _Idle(threading.local):
    """Those of a thread: a greenlet never leaves its own."""

    def __init__(self) -> None:
        self.workers: list[_Worker] = []


_idle = _Idle()


async def spawn(work: Callable[[], Any]) -> Any:
    """Do `work` in a greenlet that is left at each `waiting.wait`, so that this coroutine can await for it."""
    worker = _idle.workers.pop() if _idle.workers else _Worker()
    worker.parent = here = getcurrent()
    worker.gr_context = here.gr_context  # it is the same task: what is set inside is set outside
    awaited = worker.switch(work)
    while worker.outcome is None:
        try:
            answer = await awaited
        except BaseException as error:  # noqa: BLE001 - also that the task is cancelled is told where it waited
            awaited = worker.throw(error)
        else:
            awaited = worker.switch(answer)
    done, failed = worker.outcome
    worker.outcome = worker.gr_context = None
    if len(_idle.workers) < MOST_IDLE:
        _idle.workers.append(worker)
    if failed is not None:
        raise failed
    return done
