"""The series that ``promtool test rules`` plays: what a service and a database look like from outside."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

from leadprotect.errors import InvalidRequest

if TYPE_CHECKING:
    from leadprotect.gates.measures import Measures

FIRING = 'count by (alertname, gate, gate_action, severity, service) (ALERTS{alertstate="firing"})'

_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"')
_ROUTE = "/leads/{id}"


def stories(measures: Measures, *, soon: float, stale_after: float) -> dict[str, str]:
    """Placeholder of the tests' template -> a block of input series, a series, a number, or a moment in seconds.

    `soon` and `stale_after` are in seconds, as the rules have them.
    """
    told = _Stories(measures)
    return told.services() | told.databases() | told.counters() | told.moments(soon, stale_after)


def labels(option: str, matchers: str) -> dict[str, str]:
    """Labels that `matchers` let through; raises `InvalidRequest` for a pattern that names no value."""
    found = {}
    for name, how, text in _MATCHER.findall(matchers):
        if how == "=":
            found[name] = text
        if how == "=~":
            found[name] = _taken(text)
            if not found[name]:
                raise InvalidRequest(
                    f"--{option}: no value that {name}=~{text!r} takes is to be seen in it; write one into the pattern"
                )
    return found


def _taken(pattern: str) -> str:
    """A value that the pattern takes, as far as one shows in it."""
    tried = (*pattern.split("|"), re.sub(r"\.[*+]", "x", pattern))
    try:
        return next((value for value in tried if re.fullmatch(pattern, value)), "")
    except re.error:
        return ""


class _Stories:
    """All series have one value each `every`; at the step `change` something happens."""

    def __init__(self, measures: Measures) -> None:
        self.measures = measures
        self.every = measures.every
        self.change = math.ceil(measures.window / self.every) + 4
        lasting = max(measures.latency_for, measures.errors_for) + 3 * measures.window
        self.steps = self.change + math.ceil(lasting / self.every)
        self.traffic = max(10.0, 100 * measures.traffic_floor)
        self.mine = labels("selector", measures.selector)

    def services(self) -> dict[str, str]:
        good, low = self._count(self.traffic), self._count(self.measures.traffic_floor / 2)
        restarted = f"{self._count(self.traffic, self.change)} {good}"
        stopped = f"{self._count(self.traffic, self.change)} _x{self.steps}"
        return {
            "good_service": self._service(good),
            "slow_service": self._service(good, fast=self._still(0)),
            "once_slow_service": self._service(good, fast=self._with_a_pause()),
            "lonely_service": self._service(low, fast=self._still(0)),
            "failing_service": self._service(*self._shared(2.5 * self.measures.errors)),
            "erring_service": self._service(*self._shared(self.measures.errors / 2)),
            "idle_service": self._service(self._still(100)),
            "restarted_service": self._service(restarted),
            "mute_service": self._service(good, status=False),
            "stopped_service": self._service(stopped),
            "mostly_down_service": self._service(good, up=(1, 0, 0)),
        }

    def databases(self) -> dict[str, str]:
        up = _series("pg_up", labels("postgres", self.measures.postgres))
        return {
            "good_database": self._database(),
            "deadlocked_database": self._database(deadlocks=f"7+0x{self.change} {self._still(8)}"),
            "reset_database": self._database(deadlocks=f"7+0x{self.change} {self._still(0)}"),
            "unreachable_database": _block((up, self._still(0))),
            "lagging_database": self._database(lag=2 * self.measures.replica_lag),
            "waiting_database": self._database(waits=2 * self.measures.lock_waits),
        }

    def counters(self) -> dict[str, str]:
        deny = _series("lead_access_assert_deny_total", self.mine | {"reason": "not_owner"})
        allow = _series("lead_access_assert_allow_total", self.mine)
        one, many = self._count(1), self._count(50)
        present = self.measures.denials
        return {
            "deny": deny,
            "allow": allow,
            "good_counters": _block((deny, one), (allow, many)) if present else "",
            "denying_counters": _block((deny, many), (allow, one)) if present else "",
        }

    def moments(self, soon: float, stale_after: float) -> dict[str, str]:
        change = self.change * self.every
        settled = self.measures.window + 4 * self.every
        moments = {
            "late": (self.steps - 1) * self.every,
            "soon_due": change + soon + 4 * self.measures.window,
            "before_change": change,
            "change_seen": change + 3 * self.every,
            "latency_due": self.measures.latency_for + settled,
            "errors_due": self.measures.errors_for + settled,
            "denials_due": self.measures.latency_for + settled,
            "stale_seen": change + stale_after + 3 * self.every,
            "week_due": 3 * 3600 + self.measures.latency_for + 5 * self.measures.window + soon + 120,
        }
        as_text = {name: f"{round(seconds * 1000)}ms" for name, seconds in moments.items()}
        return as_text | {
            "firing": FIRING,
            "traffic": f"{self.traffic:.15g}",
            "objective": f"{self.measures.slo_p95:.15g}",
        }

    def _service(
        self,
        requests: str,
        errors: str = "",
        *,
        fast: str | None = None,
        status: bool = True,
        up: tuple[int, ...] = (1, 1, 1),
    ) -> str:
        """Requests that are answered, by status; of their latencies only those of `fast` are within the objective."""
        mine, measures = self.mine | {self.measures.label: _ROUTE}, self.measures
        counted = [(_series(measures.requests, mine | ({measures.status: "200"} if status else {})), requests)]
        if errors:
            counted.append((_series(measures.requests, mine | {measures.status: "500"}), errors))
        in_time, of_all = (f"{measures.slo_p95 * part / measures.unit:.15g}" for part in (1 / 3, 4))
        bounds = [in_time, *(f"{measures.slo_p95 * part / measures.unit:.15g}" for part in (1, 2))]
        timed = mine if measures.metric == measures.routes else self.mine
        buckets = [(bound, fast or requests) for bound in bounds] + [(of_all, requests), ("+Inf", requests)]
        counted += [(_series(f"{measures.metric}_bucket", timed | {"le": bound}), values) for bound, values in buckets]
        metric, _, matchers = measures.alive.partition("{")
        target = labels("alive", matchers)
        alive = [(_series(metric, target | {"instance": f"{n}:80"}), self._still(is_up)) for n, is_up in enumerate(up)]
        return _block(*counted, *alive)

    def _database(self, *, deadlocks: str | None = None, lag: float | None = None, waits: float = 0) -> str:
        there = labels("postgres", self.measures.postgres)
        waiting = there | {"datname": "crm", "state": "active", "wait_event_type": "Lock"}
        series = [
            (_series("pg_up", there), self._still(1)),
            (_series("pg_stat_database_deadlocks", there | {"datname": "crm"}), deadlocks or self._still(7)),
            (_series("pg_stat_activity_count", waiting), self._still(waits)),
            (_series("pg_stat_activity_count", waiting | {"wait_event_type": "Client"}), self._still(500)),
        ]
        if lag is not None:
            replica = there | {"application_name": "replica"}
            series.append((_series("pg_stat_replication_pg_wal_lsn_diff", replica), self._still(lag)))
        return _block(*series)

    def _count(self, rate: float, steps: int | None = None) -> str:
        return f"0+{rate * self.every:.15g}x{steps or self.steps}"

    def _still(self, value: float) -> str:
        return f"{value:.15g}+0x{self.steps}"

    def _with_a_pause(self) -> str:
        """A counter that stands still for half of the time that makes an alert."""
        so_far = f"{self.traffic * self.every * self.change:.15g}"
        still = math.ceil(self.measures.latency_for / 2 / self.every)
        goes_on = f"{so_far}+{self.traffic * self.every:.15g}x{self.steps}"
        return f"{self._count(self.traffic, self.change)} {so_far}+0x{still} {goes_on}"

    def _shared(self, share: float) -> tuple[str, str]:
        failing = min(share, 1) * self.traffic
        return self._count(self.traffic - failing), self._count(failing)


def _series(metric: str, values: dict[str, str]) -> str:
    inside = ",".join(f'{name}="{value}"' for name, value in sorted(values.items()))
    return f"{metric}{{{inside}}}"


def _block(*series: tuple[str, str]) -> str:
    quoted = [(name.replace("'", "''"), values) for name, values in series]
    return "\n".join(f"      - {{series: '{name}', values: '{values}'}}" for name, values in quoted)
