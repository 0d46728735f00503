"""Counters and a histogram for Prometheus, spans of OpenTelemetry, a line of the log; nothing personal in any."""

from __future__ import annotations

import logging
import sys
import time
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadprotect.decision import DENIALS
from leadprotect.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from prometheus_client import CollectorRegistry, Counter, Histogram

log = logging.getLogger("leadprotect")

KINDS = ("check", "many", "list", "assert", "change", "editing")
BUCKETS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0)
"""Seconds; the service's objective is 0.05."""


@dataclass(frozen=True)
class _Metrics:
    registry: CollectorRegistry
    allow: Counter
    deny: Counter
    seconds: Histogram


_active: list[_Metrics] = []


def enable(registry: CollectorRegistry | None = None) -> None:
    """Count from now on, in `registry` (default: prometheus_client's own), and in every one enabled before.

    What is counted inside a sampled span of OpenTelemetry carries its trace as an exemplar, which a scrape by
    OpenMetrics shows. A second call for the same registry changes nothing. Every label set exists from the start, so a
    rate is 0 and not absent before the first denial. Works in multiprocess mode, starts no server.
    Raises `SettingsError` without the extra `gates`.
    """
    try:
        from prometheus_client import REGISTRY, Counter, Histogram  # noqa: PLC0415 - an extra
    except ModuleNotFoundError:
        message = "metrics need the extra gates: pip install 'leadprotect[gates]'"
        raise SettingsError(message) from None

    r = registry or REGISTRY
    if any(metrics.registry is r for metrics in _active):
        return
    made = _Metrics(
        r,
        Counter("lead_access_assert_allow", "Asserted attempts that were allowed", registry=r),
        Counter("lead_access_assert_deny", "Asserted attempts that were denied", ["reason"], registry=r),
        Histogram("leadprotect_check_seconds", "Time of an access check", ["kind"], buckets=BUCKETS, registry=r),
    )
    for reason in DENIALS:
        made.deny.labels(reason)
    for kind in KINDS:
        made.seconds.labels(kind)
    _active.append(made)


def allowed() -> None:
    """Count an attempt that was allowed."""
    for metrics in _active:
        metrics.allow.inc(exemplar=_exemplar())


def denied(reason: str) -> None:
    """Count an attempt that was denied."""
    for metrics in _active:
        metrics.deny.labels(reason).inc(exemplar=_exemplar())


def timed(kind: str) -> AbstractContextManager[None]:
    """Observe the seconds that the block takes, and make it a span where OpenTelemetry has been imported."""
    trace = sys.modules.get("opentelemetry.trace")
    return _spanned(kind, trace) if trace or _active else _NOTHING


_NOTHING = nullcontext()


@contextmanager
def _spanned(kind: str, trace: Any) -> Iterator[None]:
    if trace is None:
        yield from _timed(kind)
        return
    # its own way to tell of an error repeats the message, which may name a lead
    with trace.get_tracer("leadprotect").start_as_current_span(
        f"leadprotect.{kind}", record_exception=False, set_status_on_exception=False
    ) as span:
        try:
            yield from _timed(kind)
        except Exception as error:
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(trace.StatusCode.ERROR)
            raise


def told_denial(action: str, reason: str, territory: str | None) -> None:
    """Tell the log and the current span of a denial: what and why, never who or which lead."""
    facts = {"lead_action": action, "lead_reason": reason, "lead_territory": territory or ""}
    log.info("an attempt was denied", extra=facts)
    trace = sys.modules.get("opentelemetry.trace")
    add_event = getattr(trace.get_current_span(), "add_event", None) if trace else None
    if add_event:
        add_event("leadprotect.denied", {name.replace("lead_", "leadprotect."): value for name, value in facts.items()})


def _timed(kind: str) -> Iterator[None]:
    if not _active:
        yield
        return
    begin = time.perf_counter()
    try:
        yield
    finally:
        seconds = time.perf_counter() - begin
        for metrics in _active:
            metrics.seconds.labels(kind).observe(seconds, exemplar=_exemplar())


def _exemplar() -> dict[str, str] | None:
    """The trace to look at; https://opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics/#exemplars."""
    trace = sys.modules.get("opentelemetry.trace")
    span = trace.get_current_span().get_span_context() if trace else None
    if span is None or not span.is_valid or not span.trace_flags.sampled:
        return None
    return {"trace_id": f"{span.trace_id:032x}", "span_id": f"{span.span_id:016x}"}
