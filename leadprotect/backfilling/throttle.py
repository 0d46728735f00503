"""Slows a backfill down, or holds it, for what the database or its operators need; says why."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import psycopg

from leadprotect.backfilling.jobs import SILENT_S
from leadprotect.backfilling.signals import GO, SIGNALS, Asked, Limits, Pace
from leadprotect.database.opening import open_connection
from leadprotect.settings import Settings, render

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadprotect.database.opening import Address

APPLICATION = "leadprotect backfill throttle"
"""Name of its session: one in every run."""

INTERVAL_S = 1.0
LONGEST_HOLD_S = 300.0
"""While it holds, the signals are asked again after 1 s, 2 s, 4 s ... at most after 5 minutes."""

_GUARD_EVERY_S = 5.0
_STALE_S = 10.0
_TICK_S = 0.1
_TIMEOUT_MS = 2000


class Throttle(threading.Thread):
    """Asks the signals once a second on a connection of its own; workers ask it before each slice.

    A signal that can't be read holds the backfill: no answer is not a good answer. `gate` returns why
    to hold, or None.
    """

    def __init__(
        self,
        address: Address,
        settings: Settings,
        territories: tuple[str, ...],
        *,
        limits: Limits | None = None,
        gate: Callable[[], str | None] | None = None,
    ) -> None:
        super().__init__(name="leadprotect-backfill-throttle", daemon=True)
        self.stop_asked: str | None = None
        self._verdict = Pace(0.0, "the signals were not asked yet")
        self._unreadable: Pace | None = None
        self._guard_verdict = GO
        self._guard_at = -_GUARD_EVERY_S
        self._paused: dict[str, str] = {}
        self._gone = False
        self._address, self._settings, self._territories = address, settings, territories
        self._limits, self._gate = limits or Limits(), gate
        self._asked: Asked | None = None
        self._asked_at = time.monotonic()
        self._first = threading.Event()
        self._ended = threading.Event()

    # --- for the workers

    def proceed(self, territory: str, stopping: threading.Event) -> bool:
        """Wait while every backfill must hold; False when the run is to stop, or `territory` is paused."""
        while not stopping.is_set():
            if self.stop_asked is not None:
                stopping.set()
            elif self.paused(territory):
                return False
            elif self._heard().factor > 0:
                return True
            else:
                stopping.wait(_TICK_S)
        return False

    def paused(self, territory: str) -> str | None:
        """Why `territory` is paused; None if it is not."""
        return None if self._gone else self._paused.get(territory)

    def pace(self, seconds: float, stopping: threading.Event) -> None:
        """Rest after a slice of `seconds` as the present factor asks."""
        factor = self._verdict.factor
        if 0 < factor < 1:
            stopping.wait(seconds * (1 / factor - 1))

    def now(self) -> Pace:
        """The verdict for the whole run: a pause holds it only where all territories are paused."""
        paused = [why for why in map(self.paused, self._territories) if why]
        if paused and len(paused) == len(self._territories):
            return Pace(0.0, paused[0])
        heard = self._heard()
        return Pace(heard.factor, "; ".join(filter(None, (heard.reason, *paused))) or None)

    def _heard(self) -> Pace:
        """What the signals said; an old answer counts as none."""
        if self._gone:
            return GO
        if time.monotonic() - self._asked_at > _STALE_S:
            return Pace(0.0, "the signals give no answer")
        return self._unreadable or self._verdict

    # --- the thread

    def start(self) -> None:
        """Start to ask, and wait for the first answers."""
        super().start()
        self._first.wait(_STALE_S)

    def run(self) -> None:
        """Ask until `end`: the requests every second, the signals less often while they hold."""
        hold = next_look = 0.0
        while True:
            requests = self._read("the request in the database", self._requests)
            if time.monotonic() - self._guard_at >= _GUARD_EVERY_S:
                self._guard_at = time.monotonic()
                self._guard_verdict = self._read("the heartbeat of a guard", self._guards)
            hard = min(requests, self._guard_verdict, key=lambda verdict: verdict.factor)
            self._unreadable = hard if hard.factor == 0 else None
            if time.monotonic() >= next_look:
                self._verdict = self.ask()
                hold = next_hold(hold) if self._verdict.factor == 0 else 0.0
                next_look = time.monotonic() + hold
            self._asked_at = time.monotonic()
            self._first.set()
            if self._ended.wait(INTERVAL_S):
                break
        self.close()

    def end(self) -> None:
        """Stop asking, and wait for the thread."""
        self._ended.set()
        if self.is_alive():
            self.join()

    def close(self) -> None:
        """Close the throttle's connection."""
        if self._asked is not None:
            self._asked.conn.close()

    def ask(self) -> Pace:
        """Ask the gate and every signal once: the slowest decides."""
        verdicts = [self._read("the gate", self._gate_verdict)]
        verdicts += [self._read(name, self._bound(signal)) for name, signal in SIGNALS.items()]
        return min(verdicts, key=lambda verdict: verdict.factor)

    def _bound(self, signal: Callable[[Asked], Pace]) -> Callable[[], Pace]:
        return lambda: signal(self._asking())

    def _read(self, name: str, signal: Callable[[], Pace]) -> Pace:
        try:
            return signal()
        except Exception as error:  # noqa: BLE001 - whatever went wrong, no answer is a pause
            text = (str(error).splitlines() or [type(error).__name__])[0]
            return Pace(0.0, f"{name} can't be read: {text}")

    def _asking(self) -> Asked:
        if self._asked is None or self._asked.conn.closed:
            conn = open_connection(self._address, application=APPLICATION)
            conn.execute(
                f"SET statement_timeout = {_TIMEOUT_MS}; SET lock_timeout = {_TIMEOUT_MS};"
                "SET default_transaction_read_only = on"
            )
            self._asked = Asked(conn, self._limits, self._settings)
        return self._asked

    def _requests(self) -> Pace:
        try:
            (found,) = self._asking().row(
                render(
                    "SELECT json_agg(json_build_array(territory, request, request_reason)) "
                    "FROM {schema}.backfill_jobs WHERE territory = ANY (%s) AND request <> 'run'",
                    self._settings,
                ),
                (list(self._territories),),
            )
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            # rolled back: a worker's next call meets the same, and ends the run with its error
            self._gone = True
            return GO
        asked = [(code, request, why or "no reason given") for code, request, why in found or []]
        self._paused = {code: f"{code} is paused: {why}" for code, request, why in asked if request == "pause"}
        stops = [f"{code}: {why}" for code, request, why in asked if request == "stop"]
        # who was asked to stop does, whatever a run that begins later makes of the request
        self.stop_asked = self.stop_asked or (stops[0] if stops else None)
        return GO

    def _guards(self) -> Pace:
        """Whether one that did not end is silent; before the revision that makes their table there is none."""
        query = """
            SELECT guard, extract(epoch FROM clock_timestamp() - heartbeat_at)::float8 FROM {schema}.guard_runs
            WHERE ended_at IS NULL AND heartbeat_at < clock_timestamp() - make_interval(secs => %s)
            ORDER BY heartbeat_at LIMIT 1
            """
        try:
            found = self._asking().row(render(query, self._settings), (SILENT_S,))
        except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName):
            return GO
        if found is None:
            return GO
        guard, seconds = found
        return Pace(
            0.0,
            f"the guard {guard} was not heard of for {seconds:.0f} s: start leadprotect guard again, "
            "or go on without one: leadprotect backfill resume",
        )

    def _gate_verdict(self) -> Pace:
        reason = self._gate() if self._gate else None
        return Pace(0.0, f"the gate says pause: {reason}") if reason else GO


def next_hold(hold: float) -> float:
    """Seconds until the signals are asked again, after a hold of `hold` seconds that did not help."""
    return min(max(hold * 2, INTERVAL_S), LONGEST_HOLD_S)
