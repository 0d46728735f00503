"""The rules that Prometheus judges by, from one template: which gates there are, and what a host calls its metrics."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from leadprotect.gates.measures import SHAPES, Measures, check_measures, span
from leadprotect.gates.stories import stories
from leadprotect.settings import Settings, render

FOLDER = Path(__file__).parent

THRESHOLDS = "leadprotect:gate_threshold"
"""One series for each gate that has a value or may be left out, with label `gate`: what it is compared with."""

BUCKETS = "leadprotect:http_bucket:seconds"
"""One series for each bucket of the latency: its bound is label `le` times the value, in seconds."""

WAITS_SINCE = (0, 17)
"""The first postgres_exporter that says what a session waits for."""


# requests of monitoring itself, by the names that they have in those libraries
_ASKED_BY_MACHINES = "/metrics|/actuator.*|/q/.*|/health.*|/livez?|/readyz?"


@dataclass(frozen=True)
class Gate:
    """One gate: the alert that judges, and the series that shows what it judges by.

    `action` is what the alert asks for when it fires: rollback, or pause. A `sentinel` says whether there
    is anything to judge by: where it is bad, nothing is known. `below`: it is bad below its threshold, not
    above. `optional`: a file of rules may leave it out. `quiet`: where there is no series, nothing is wrong.
    """

    name: str
    alert: str
    series: str = ""
    action: str = "pause"
    sentinel: bool = False
    below: bool = False
    optional: bool = False
    quiet: bool = False


GATES = (
    Gate("latency", "LeadprotectLatencyHigh", "leadprotect:http_latency:p95_seconds", action="rollback"),
    Gate("errors", "LeadprotectErrorsHigh", "leadprotect:http_errors:ratio", action="rollback"),
    Gate("deadlocks", "LeadprotectDeadlocks", "leadprotect:postgres_deadlocks:increase"),
    Gate("lock_waits", "LeadprotectLockWaits", "leadprotect:postgres_lock_waits:count", optional=True, quiet=True),
    Gate("replica_lag", "LeadprotectReplicaLag", "leadprotect:postgres_replica_lag:bytes", quiet=True),
    Gate("denials", "LeadprotectDenialsUnusual", "leadprotect:denials:ratio", optional=True, quiet=True),
    Gate("traffic", "LeadprotectNoTraffic", "leadprotect:http_requests:rate", sentinel=True, below=True),
    Gate("targets", "LeadprotectTargetsDown", "leadprotect:http_targets:up_ratio", sentinel=True, below=True),
    Gate("exporter", "LeadprotectExporterDown", "leadprotect:postgres:up", sentinel=True, below=True),
    Gate("freshness", "LeadprotectMetricsStale", "leadprotect:http_age:seconds", sentinel=True),
    Gate("data", "LeadprotectDataAbsent"),
    Gate("counters", "LeadprotectCountersAbsent", optional=True),
)
"""Every gate; the last two have no series: they speak where series of others are not."""


def rendered(measures: Measures, *, name: str | None = None) -> dict[str, str]:
    """Name of a file -> its text: the rules, and the stories that ``promtool test rules`` plays against them.

    They are called after `name`, else after the service. Raises `InvalidRequest` for measures that would make
    rules of another meaning, or none.
    """
    check_measures(measures)
    values = _values(measures) | stories(measures, soon=_soon(measures), stale_after=_stale_after(measures))
    present = {
        "lock_waits": tuple(int(part) for part in measures.exporter.split("."))[:2] >= WAITS_SINCE,
        "denials": measures.denials,
    }
    name = name or measures.service
    values |= {"file": f"{name}.yaml"}
    files = {f"{name}.yaml": "rules.yaml.in", f"{name}_test.yaml": "tests.yaml.in"}
    if measures.denials:
        files[f"{name}_week_test.yaml"] = "week.yaml.in"
    return {file: _filled(template, values, present) for file, template in files.items()}


def exporter_queries(settings: Settings) -> str:
    """What postgres_exporter can ask for besides, with the names of this host: phase and backfill."""
    return render((FOLDER / "templates" / "queries.yaml.in").read_text(encoding="utf-8"), settings)


def dashboard() -> str:
    """The dashboard for Grafana, as JSON; which Prometheus and which service are variables of it."""
    return (FOLDER / "dashboard.json").read_text(encoding="utf-8")


def _values(measures: Measures) -> dict[str, str]:
    skipped = f'{measures.label}!~"{_ASKED_BY_MACHINES}"'
    by_label = measures.metric == measures.routes
    return {
        **{name: str(getattr(measures, name)) for name in SHAPES},
        "request_selector": f"{measures.selector},{skipped}",
        "latency_selector": f"{measures.selector},{skipped}" if by_label else measures.selector,
        "scale": "" if measures.unit == 1 else f"{_number(measures.unit)} * ",
        "every": span(measures.every),
        "window": span(measures.window),
        "soon": span(_soon(measures)),
        "latency_for": span(measures.latency_for),
        "errors_for": span(measures.errors_for),
        "denials_window": span(5 * measures.window),
        "denials_for": span(measures.latency_for),
        "latency_threshold": _number(2 * measures.slo_p95),
        "errors": _number(measures.errors),
        "traffic_floor": _number(measures.traffic_floor),
        "lock_waits": _number(measures.lock_waits),
        "replica_lag": _number(measures.replica_lag),
        "targets_up": "0.5",
        "stale_after": _number(_stale_after(measures)),
    }


def _soon(measures: Measures) -> float:
    return max(measures.window, 2 * measures.every)


def _stale_after(measures: Measures) -> float:
    return max(60, 4 * measures.every)


def _filled(template: str, values: dict[str, str], present: dict[str, bool]) -> str:
    """The template with its values, and without the blocks ``[[name`` to ``]]`` of what is not present."""
    text = (FOLDER / "templates" / template).read_text(encoding="utf-8")
    text = re.sub(
        r"^\[\[(\w+)\n(.*?)^\]\]\n",
        lambda found: found[2] if present[found[1]] else "",
        text,
        flags=re.MULTILINE | re.DOTALL,
    )
    return re.sub(r"<<(\w+)>>", lambda found: values[found[1]], text)


def _number(value: float) -> str:
    return f"{value:.15g}"
