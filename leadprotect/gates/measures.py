"""What the rules of one service are about: how a host calls its metrics, and where it is too much."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from leadprotect.errors import InvalidRequest


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What the rules of one service are about: the options of ``leadprotect gate render``.

    `metric` is a histogram, `requests` a counter of requests by `status`, `routes` a histogram by `label`.
    `selector` and `postgres` are matchers of labels, `alive` the series that are 1 while a target is up.
    `slo_p95`, `window` of all rates, `every` of the rules, `latency_for` and `errors_for` are in seconds;
    `unit` is the seconds that 1 means in the histogram; `replica_lag` is in bytes.
    """

    service: str = "leadprotect"
    slo_p95: float = 0.15
    metric: str = "http_server_requests_seconds"
    requests: str = "http_server_requests_seconds_count"
    routes: str = "http_server_requests_seconds"
    label: str = "uri"
    status: str = "status"
    unit: float = 1
    selector: str = 'job="leads"'
    alive: str = 'up{job="leads"}'
    postgres: str = 'job="postgres"'
    exporter: str = "0.17"
    denials: bool = True
    window: float = 60
    every: float = 15
    latency_for: float = 600
    errors_for: float = 300
    traffic_floor: float = 0.1
    errors: float = 0.02
    lock_waits: float = 20
    replica_lag: float = 1024**3
    runbooks: str = "docs/runbooks"


PRESETS = {
    "micrometer": Measures(),
    "fastapi": Measures(
        metric="http_request_duration_highr_seconds",
        requests="http_requests_total",
        routes="http_request_duration_seconds",
        label="handler",
    ),
    "opentelemetry": Measures(
        metric="http_server_request_duration_seconds",
        requests="http_server_request_duration_seconds_count",
        routes="http_server_request_duration_seconds",
        label="http_route",
        status="http_response_status_code",
    ),
    "opentelemetry-ms": Measures(
        metric="http_server_duration_milliseconds",
        requests="http_server_duration_milliseconds_count",
        routes="http_server_duration_milliseconds",
        label="http_target",
        status="http_status_code",
        unit=0.001,
    ),
}
"""Name -> terms of a library that counts requests: Micrometer (Spring, Quarkus), prometheus-fastapi-instrumentator,
OpenTelemetry's conventions of today, and those before 1.23, in milliseconds."""

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r"[a-zA-Z_][a-zA-Z0-9_]*"
_MATCHER = rf'{_LABEL}\s*(?:=|!=|=~|!~)\s*"(?:[^"\\\n]|\\.)*"'
_MATCHERS = rf"{_MATCHER}(?:\s*,\s*{_MATCHER})*"
SHAPES = {
    "service": r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,62}",
    "metric": _NAME,
    "requests": _NAME,
    "routes": _NAME,
    "label": _LABEL,
    "status": _LABEL,
    "selector": _MATCHERS,
    "alive": rf"{_NAME}\{{{_MATCHERS}\}}",
    "postgres": _MATCHERS,
    "exporter": r"\d+\.\d+(?:\.\d+)?",
    "runbooks": r"[A-Za-z0-9:/._~-]+",
}


def check_measures(measures: Measures) -> None:
    """Raise `InvalidRequest`, naming the option, where a value can't stand in a rule or makes it blind."""
    for name, shape in SHAPES.items():
        if not re.fullmatch(shape, getattr(measures, name)):
            raise InvalidRequest(f"--{_option(name)}: {getattr(measures, name)!r} can't stand in a rule; write another")
    for name in ("slo_p95", "unit", "every", "traffic_floor", "lock_waits", "replica_lag"):
        if not 0 < getattr(measures, name) < 1e15:  # noqa: PLR2004 - a number that Prometheus compares exactly
            raise InvalidRequest(f"--{_option(name)}: {getattr(measures, name):g} is not above 0")
    if not 0 < measures.errors < 1:
        raise InvalidRequest(f"--errors: {measures.errors:g} is not a share between 0 and 1")
    if measures.every > 60:  # noqa: PLR2004 - seconds; what is older than five minutes is gone, and no longer old
        raise InvalidRequest(f"--every: {span(measures.every)} is more than a minute; a gate answers sooner")
    if measures.window < 4 * measures.every:
        raise InvalidRequest(
            f"--window: {span(measures.window)} holds fewer than 4 scrapes of {span(measures.every)}, "
            "so a lost one would leave a rate without data; make it longer, or scrape and judge more often (--every)"
        )
    for name in ("latency_for", "errors_for"):
        if getattr(measures, name) < measures.window:
            raise InvalidRequest(
                f"--{_option(name)}: {span(getattr(measures, name))} is shorter than --window, "
                "so one burst would roll back"
            )


def preset(name: str, **changed: object) -> Measures:
    """The measures of a preset with those that are not None changed; raises `InvalidRequest` for an unknown name.

    A metric of one's own brings its counter and routes along: Prometheus's histograms have all three.
    """
    if name not in PRESETS:
        raise InvalidRequest(f"--preset: {name!r} is not one of {', '.join(PRESETS)}")
    given = {key: value for key, value in changed.items() if value is not None}
    if "metric" in given:
        given = {"requests": f"{given['metric']}_count", "routes": given["metric"]} | given
    return replace(PRESETS[name], **given)  # type: ignore[arg-type]


def span(seconds: float) -> str:
    """Seconds as Prometheus writes them: 10m, 90s, 1500ms."""
    if seconds % 1:
        return f"{round(seconds * 1000)}ms"
    whole = int(seconds)
    return f"{whole // 60}m" if whole and whole % 60 == 0 else f"{whole}s"


def _option(name: str) -> str:
    return name.replace("_", "-")
