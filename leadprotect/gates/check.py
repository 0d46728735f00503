"""Asks Prometheus and the database once, and judges what they answered."""

from __future__ import annotations

import math
import queue
import threading
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from leadprotect.gates.probes import probe
from leadprotect.gates.prometheus import Prometheus, Unanswered, needed
from leadprotect.gates.rules import BUCKETS, GATES, THRESHOLDS
from leadprotect.gates.verdict import Answer, Evaluation, Verdict, finite

if TYPE_CHECKING:
    from collections.abc import Callable

    from leadprotect.gates.prometheus import Rule, Series
    from leadprotect.gates.rules import Gate
    from leadprotect.settings import Settings

T = TypeVar("T")

LIMIT_S = 15.0
"""How long one evaluation may take, whatever a server does: one that sends a byte now and then never times out."""

SKEW_S = 60.0
"""How far the clock of Prometheus may be off: further, and an answer is old, or one of two clocks is wrong."""


@dataclass(frozen=True, kw_only=True)
class Gates:
    """What is asked, and how much of what the database says is too much.

    `lock_waits` are waiting requests of others, `replica_lag` and `long_transaction` seconds, `replica_distance` bytes.
    """

    settings: Settings
    lock_waits: int = 20
    replica_lag: float = 10.0
    replica_distance: float = 1024**3
    long_transaction: float = 900.0

    @property
    def limits(self) -> dict[str, float]:
        """The limits by the names of the probes."""
        return {
            "database lock waits": self.lock_waits,
            "database replica lag": self.replica_lag,
            "database replica distance": self.replica_distance,
            "database long transaction": self.long_transaction,
        }


def evaluate(gates: Gates, database: str | Callable[[], str] | None, *, before: Evaluation | None = None) -> Evaluation:
    """Ask once; `database` is the URL for the probes, or a function that returns it, None to leave them out.

    `before` is the evaluation to compare with: deadlocks count by their increase. Whatever goes wrong with a
    server is an answer UNKNOWN with its reason. Raises `SettingsError` without the extra `gates`.
    """
    needed()
    at = datetime.now(UTC)
    asked = [_begun(lambda: (_prometheus(gates, at), None), "prometheus", "/api/v1/rules?type=alert")]
    if database is not None:
        counted = before.deadlocks if before else None
        asked.append(_begun(lambda: probe(database, gates.limits, deadlocks=counted), "database", "SELECT"))
    found = [answered() for answered in asked]
    deadlocks = found[-1][1]
    if deadlocks is None and before:  # a look that failed is no new beginning
        deadlocks = before.deadlocks
    return Evaluation(at, tuple(answer for answers, _ in found for answer in answers), deadlocks)


def _begun(
    ask: Callable[[], tuple[list[Answer], int | None]], name: str, query: str
) -> Callable[[], tuple[list[Answer], int | None]]:
    """Ask on a thread of its own, which nobody waits for longer than `LIMIT_S`."""
    done: queue.Queue[tuple[list[Answer], int | None]] = queue.Queue()

    def run() -> None:
        try:
            done.put(ask())
        except Exception as error:  # noqa: BLE001 - what nobody thought of is not known, and never a pass
            why = f"could not be understood: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            done.put(([_unknown(name, query, why)], None))

    threading.Thread(target=run, name=f"leadprotect-gate-{name}", daemon=True).start()

    def answered() -> tuple[list[Answer], int | None]:
        try:
            return done.get(timeout=LIMIT_S)
        except queue.Empty:
            return [_unknown(name, query, f"gave no whole answer within {LIMIT_S:g} s")], None

    return answered


def _prometheus(gates: Gates, at: datetime) -> list[Answer]:
    rules = "/api/v1/rules?type=alert"
    if not gates.settings.prometheus_url:
        return [_unknown("prometheus", rules, "prometheus_url is not set")]
    try:
        with Prometheus(gates.settings) as asked:
            return _judged(asked, gates.settings, at)
    except Unanswered as error:
        return [_unknown("prometheus", rules, f"Prometheus {error}")]


def _judged(asked: Prometheus, settings: Settings, at: datetime) -> list[Answer]:
    loaded = asked.alerts()
    (clock,) = asked.instant("time()")
    ours = [rule for rule in loaded if rule.labels.get("service") == settings.prometheus_service]
    answers = [_clock(clock.value, at), _loaded(ours, loaded, settings.prometheus_service)]
    thresholds: dict[str, float] = {}
    if ours:
        query = f'{THRESHOLDS}{{service="{settings.prometheus_service}"}}'
        try:
            thresholds = {sample.labels.get("gate", ""): sample.value for sample in asked.instant(query)}
        except Unanswered as error:
            answers.append(_unknown("thresholds", query, f"Prometheus {error}"))
    judge = _Judge(asked, settings, clock.value, thresholds)
    answers += [answer for gate in GATES if (answer := judge.gate(gate, [r for r in ours if r.name == gate.alert]))]
    if asked.warnings:
        said = "; ".join(dict.fromkeys(asked.warnings))
        answers.append(_unknown("warnings", "warnings of all answers", f"Prometheus warns: {said[:300]}"))
    return answers


def _clock(theirs: float, at: datetime) -> Answer:
    skew = theirs - at.timestamp()
    if abs(skew) <= SKEW_S:
        return Answer("clock", "time()", skew, SKEW_S, Verdict.PROCEED, f"{skew:+.1f} s from ours")
    why = f"Prometheus's time is {skew:+.0f} s from ours: a clock is wrong, or something between keeps old answers"
    return Answer("clock", "time()", skew, SKEW_S, Verdict.UNKNOWN, why)


def _loaded(ours: list[Rule], loaded: list[Rule], service: str) -> Answer:
    name, query = "rules", f'/api/v1/rules?type=alert with service="{service}"'
    known = {gate.alert for gate in GATES}
    if ours:
        return Answer(name, query, len(ours), None, Verdict.PROCEED, f"{len(ours)} alerts are loaded")
    others = sorted({rule.labels.get("service", "?") for rule in loaded if rule.name in known})
    if others:
        why = f"no rules of service {service} are loaded, only of {', '.join(others)}: see prometheus_service"
    else:
        why = "no rules of leadprotect are loaded: leadprotect gate render -o DIR, then rule_files of Prometheus"
    return _unknown(name, query, why)


@dataclass
class _Judge:
    """What all gates are judged with."""

    asked: Prometheus
    settings: Settings
    now: float
    thresholds: dict[str, float]

    def gate(self, gate: Gate, rules: list[Rule]) -> Answer | None:
        """The answer of one gate; None for an optional one that nobody rendered."""
        threshold = self.thresholds.get(gate.name)
        query = self._query(gate.series) if gate.series else (rules[0].query if rules else gate.alert)
        if not rules and gate.optional and threshold is None:
            return None
        if why := self._unfit(gate, rules, threshold):
            return Answer(gate.name, query, None, threshold, Verdict.UNKNOWN, why)
        (rule,) = rules
        value, missing = self._value(gate, query, threshold) if gate.series else (None, "")
        verdict, why = _by_state(rule, gate, _compared(gate, value, threshold))
        if missing and verdict is not Verdict.ROLLBACK:
            verdict, why = Verdict.UNKNOWN, missing
        return Answer(gate.name, query, value, threshold, verdict, why)

    def _query(self, series: str) -> str:
        return f'{series}{{service="{self.settings.prometheus_service}"}}'

    def _unfit(self, gate: Gate, rules: list[Rule], threshold: float | None) -> str:
        """Why the loaded rule can't be believed; empty where it can."""
        if not rules:
            return f"{gate.alert} is not loaded"
        if len(rules) > 1:
            return f"{gate.alert} is loaded {len(rules)} times ({', '.join(sorted({rule.file for rule in rules}))})"
        (rule,) = rules
        if rule.labels.get("gate_action") != gate.action:
            return f"{gate.alert} has no label gate_action: {gate.action}: render the rules again"
        if rule.evaluated is None:
            return f"{gate.alert} was not evaluated yet"
        if rule.health != "ok":
            return f"{gate.alert} could not be evaluated: {rule.error or rule.health}"
        age = self.now - rule.evaluated.timestamp()
        if not age <= 3 * rule.interval + 5:  # an interval that is no number is none to trust
            return f"{gate.alert} was evaluated {age:.0f} s ago, which should be every {rule.interval:g} s"
        if gate.series and not finite(threshold):
            return f"its threshold is not there ({THRESHOLDS}): the rules are loaded in part"
        slo = self.settings.slo_p95
        if gate.name == "latency" and not math.isclose(threshold or 0, 2 * slo, rel_tol=1e-6):
            said = f"the rules are for an objective of {(threshold or 0) / 2:g} s, slo_p95 is {slo:g} s"
            return f"{said}: render them again"
        return ""

    def _value(self, gate: Gate, query: str, threshold: float | None) -> tuple[float | None, str]:
        """The value of a gate's series, and why it can't be judged by; empty where it can."""
        try:
            found = self.asked.instant(query)
        except Unanswered as error:
            return None, f"Prometheus {error}"
        if not found:
            return None, "" if gate.quiet else "there is no such series: nothing is scraped, or it has another name"
        if len(found) > 1:
            return None, f"{len(found)} series answer where one was expected"
        value = found[0].value
        if not finite(value):
            return None, f"its value is {value}: there is nothing to judge by"
        if gate.sentinel and threshold is not None and (value < threshold if gate.below else value > threshold):
            return value, f"{_compared(gate, value, threshold)}: there is nothing to judge by"
        return value, self._reach(threshold) if gate.name == "latency" and threshold is not None else ""

    def _reach(self, threshold: float) -> str:
        """A quantile never exceeds the last bound of its histogram: below the threshold, it would be good for ever."""
        try:
            found = self.asked.instant(self._query(BUCKETS))
        except Unanswered as error:
            return f"Prometheus {error}"
        last = max((bound for sample in found if finite(bound := _bound(sample))), default=0.0)
        if last > threshold:
            return ""
        return f"its last bucket ends at {last:g} s, so no latency above {threshold:g} s would be seen"


def _by_state(rule: Rule, gate: Gate, compared: str) -> tuple[Verdict, str]:
    if rule.state == "firing":
        verdict = Verdict.ROLLBACK if gate.action == "rollback" else Verdict.PAUSE
        return verdict, f"{gate.alert} is firing" + (f": {compared}" if compared else "")
    if rule.state == "pending":
        return Verdict.PAUSE, f"{gate.alert} is pending" + (f": {compared}" if compared else "")
    if rule.state == "inactive":
        return Verdict.PROCEED, compared or "quiet"
    return Verdict.UNKNOWN, f"{gate.alert} is {rule.state}, which is no state known here"


def _compared(gate: Gate, value: float | None, threshold: float | None) -> str:
    if value is None or threshold is None:
        return "no series, so nothing is wrong" if gate.quiet else ""
    return f"{value:.4g}, {'at least' if gate.below else 'at most'} {threshold:.4g}"


def _bound(sample: Series) -> float:
    try:
        return float(sample.labels.get("le", "nan")) * sample.value
    except ValueError:
        return math.nan


def _unknown(name: str, query: str, why: str) -> Answer:
    return Answer(name, query, None, None, Verdict.UNKNOWN, why)
