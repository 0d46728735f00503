"""A trace of OpenTelemetry that is current, as a service's would be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opentelemetry import trace

if TYPE_CHECKING:
    import pytest


def in_a_trace(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the current trace be the one of this number; 0 is none."""
    span = trace.NonRecordingSpan(trace.SpanContext(trace_id=number, span_id=1, is_remote=False))
    monkeypatch.setattr(trace, "get_current_span", lambda _context=None: span)
