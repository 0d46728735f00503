"""What a trace, the log and an exemplar tell of a call: what and why, and nothing about a person or a lead."""

from __future__ import annotations

import logging
from typing import Any

import psycopg
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest

import leadprotect
from leadprotect import metrics
from tests.support.database import Database

pytestmark = pytest.mark.profiles("pg18")


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    return traced(monkeypatch, ALWAYS_ON)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> CollectorRegistry:
    monkeypatch.setattr(metrics, "_active", [])
    registry = CollectorRegistry()
    metrics.enable(registry)
    return registry


def traced(monkeypatch: pytest.MonkeyPatch, sampler: Sampler) -> InMemorySpanExporter:
    exporter, provider = InMemorySpanExporter(), TracerProvider(sampler=sampler)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    return exporter


def said(span: ReadableSpan) -> tuple[str, str, Any]:
    attributes = span.attributes or {}
    return span.name, span.status.status_code.name, attributes.get("error.type")


def test_checks_and_denials_are_in_the_trace_and_in_the_log(
    database: Database, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "leadprotect")
    mine, theirs = (database.lead("DE", owner=database.user(number)) for number in (1, 2))
    with database.acting("seller_de", 1) as conn, trace.get_tracer("service").start_as_current_span("request"):
        leadprotect.can_edit(conn, mine)
        leadprotect.assert_edit(conn, mine)
        with pytest.raises(leadprotect.LeadAccessDenied):
            leadprotect.assert_edit(conn, theirs)
    *ours, request = spans.get_finished_spans()
    assert [(f"leadprotect.{kind}", "UNSET", None) for kind in ("check", "assert", "assert")] == [*map(said, ours)]
    facts = {"leadprotect.action": "EDIT", "leadprotect.reason": "not_owner", "leadprotect.territory": "DE"}
    assert [("leadprotect.denied", facts)] == [(event.name, dict(event.attributes or {})) for event in request.events]
    (line,) = (record for record in caplog.records if record.name == "leadprotect")
    assert ("an attempt was denied", "EDIT", "not_owner", "DE") == (
        line.message,
        *(vars(line)[name] for name in ("lead_action", "lead_reason", "lead_territory")),
    )
    told = f"{vars(line)} {[span.to_json() for span in spans.get_finished_spans()]}"
    assert not [person for person in (database.user(1), database.user(2), str(theirs)) if person in told]


def test_an_error_is_in_the_trace_by_its_class_and_not_by_what_it_names(
    database: Database, spans: InMemorySpanExporter
) -> None:
    with database.acting("seller_de", 1) as conn, pytest.raises(leadprotect.InvalidRequest, match="nobody's lead"):
        leadprotect.assert_edit(conn, "nobody's lead")
    (span,) = spans.get_finished_spans()
    assert ("leadprotect.assert", "ERROR", "InvalidRequest") == said(span)
    assert "nobody's lead" not in span.to_json()


def test_an_edit_in_one_round_trip_is_a_span_and_is_timed(
    database: Database, spans: InMemorySpanExporter, registry: CollectorRegistry
) -> None:
    lead = database.lead("DE", owner=database.user(1))
    with psycopg.connect(database.login_url("seller_de")) as conn:
        with leadprotect.editing(conn, lead, database.user(1), "DE"):
            conn.execute("UPDATE leads SET city = 'Essen'")
        with pytest.raises(leadprotect.LeadAccessDenied), leadprotect.editing(conn, lead, database.user(2), "DE"):
            pass
    names = [said(span) for span in spans.get_finished_spans()]
    assert [("leadprotect.editing", "UNSET", None), "leadprotect.editing"] == [names[0], names[1][0]]
    assert 2 == registry.get_sample_value("leadprotect_check_seconds_count", {"kind": "editing"})


@pytest.mark.parametrize("sampler", [ALWAYS_ON, ALWAYS_OFF], ids=["sampled", "not sampled"])
def test_an_exemplar_names_the_trace_where_it_is_sampled(
    database: Database, monkeypatch: pytest.MonkeyPatch, registry: CollectorRegistry, sampler: Sampler
) -> None:
    traced(monkeypatch, sampler)
    mine, theirs = (database.lead("DE", owner=database.user(number)) for number in (1, 2))
    with database.acting("seller_de", 1) as conn, trace.get_tracer("service").start_as_current_span("request") as span:
        leadprotect.assert_edit(conn, mine)
        with pytest.raises(leadprotect.LeadAccessDenied):
            leadprotect.assert_edit(conn, theirs)
    exemplar = f'trace_id="{span.get_span_context().trace_id:032x}"'
    lines = generate_latest(registry).decode().splitlines()  # type: ignore[no-untyped-call]
    having = {line.split("{")[0].split(" ")[0] for line in lines if exemplar in line}
    counters = {"lead_access_assert_allow_total", "lead_access_assert_deny_total", "leadprotect_check_seconds_bucket"}
    assert (counters if sampler is ALWAYS_ON else set()) == having
