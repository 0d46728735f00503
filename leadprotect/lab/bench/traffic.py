"""Live traffic for a benchmark: single-row writes at a fixed rate, each timed from when it was due.

Run as a process of its own, so that it shares no interpreter with what is measured:
``python -m leadprotect.lab.bench.traffic URL LEADS RATE``; ends at SIGTERM and prints one JSON list.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psycopg

if TYPE_CHECKING:
    from collections.abc import Iterator

SESSIONS = 8
LOCK_TIMEOUT_MS = 250

LEAD = "md5('lead ' || %s)::uuid"
ACTIVITY = f"""
    INSERT INTO public.activities (lead_id, user_id, kind, created_at)
    VALUES ({LEAD}, md5('user ' || %s)::uuid, 'QUALIFIED_CALL', now())
    """
EDIT = f"UPDATE public.leads SET city = 'moved by ' || %s WHERE id = {LEAD}"  # parameters in turn
USERS = 200
_ACTIVITIES = 0.75


@dataclass
class Served:
    """What the traffic met: when a write was due (seconds since the epoch), how many ms it took, did it fail."""

    writes: list[tuple[float, float, bool]] = field(default_factory=list)

    @property
    def failed(self) -> int:
        """Writes that raised an error."""
        return sum(not ok for _, _, ok in self.writes)

    def quantile(self, part: float) -> float:
        """Milliseconds that so many of all writes stayed below."""
        times = sorted(ms for _, ms, _ in self.writes)
        return times[min(int(len(times) * part), len(times) - 1)] if times else 0.0


@contextmanager
def running(url: str, leads: int, rate: float) -> Iterator[Served]:
    """Traffic in a process of its own while the block lasts; filled in at its end."""
    command = [sys.executable, "-m", "leadprotect.lab.bench.traffic", url, str(leads), str(rate)]
    served = Served()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - our own module
        if process.stdout is None or process.stdout.readline() != "serving\n":
            raise RuntimeError("the live traffic did not start")
        try:
            yield served
        finally:
            process.send_signal(signal.SIGTERM)
            served.writes = [tuple(write) for write in json.loads(process.stdout.read())]


def main(url: str, leads: int, rate: float) -> None:
    """Serve until SIGTERM, then print what happened."""
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    writes: list[tuple[float, float, bool]] = []
    due = _schedule(rate)
    turn = threading.Lock()
    threads = [threading.Thread(target=_serve, args=(url, leads, due, turn, ended, writes)) for _ in range(SESSIONS)]
    for thread in threads:
        thread.start()
    sys.stdout.write("serving\n")
    sys.stdout.flush()
    for thread in threads:
        thread.join()
    json.dump(writes, sys.stdout)


def _schedule(rate: float) -> Iterator[float]:
    began = time.time() + 0.5
    number = 0
    while True:
        yield began + number / rate
        number += 1


def _serve(
    url: str,
    leads: int,
    due: Iterator[float],
    turn: threading.Lock,
    ended: threading.Event,
    writes: list[tuple[float, float, bool]],
) -> None:
    chance = random.Random()  # noqa: S311 - which lead, no secret
    with psycopg.connect(url, autocommit=True, application_name="live traffic") as conn:
        conn.execute(f"SET lock_timeout = {LOCK_TIMEOUT_MS}")
        while not ended.is_set():
            with turn:
                at = next(due)
            if ended.wait(max(at - time.time(), 0)):
                return
            lead = chance.randint(1, leads)
            query, values = (ACTIVITY, (lead, chance.randrange(USERS)))
            if chance.random() > _ACTIVITIES:
                query, values = EDIT, (chance.randrange(USERS), lead)
            try:
                conn.execute(query, values)
            except psycopg.Error:
                ok = False
            else:
                ok = True
            writes.append((at, (time.time() - at) * 1000, ok))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]))
