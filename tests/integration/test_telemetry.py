"""What a denial tells the log and a trace: what and why, and nothing about a person or a lead."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

import leadprotect
from tests.support.database import Database

pytestmark = pytest.mark.profiles("pg18")


class Tracer:
    """As OpenTelemetry's, as far as it is used: the spans by name, with their events."""

    def __init__(self) -> None:
        self.spans: list[str] = []
        self.events: list[Any] = []

    @contextmanager
    def start_as_current_span(self, name: str) -> Iterator[None]:
        self.spans.append(name)
        yield

    def add_event(self, name: str, attributes: dict[str, str]) -> None:
        self.events.append((name, attributes))

    def get_span_context(self) -> Any:
        return SimpleNamespace(is_valid=True, trace_id=7)


def test_checks_and_denials_are_in_the_trace_and_in_the_log(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracer = Tracer()
    fake = SimpleNamespace(get_current_span=lambda: tracer, get_tracer=lambda _: tracer)
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", fake)
    caplog.set_level(logging.INFO, "leadprotect")
    mine, theirs = (database.lead("DE", owner=database.user(number)) for number in (1, 2))
    with database.acting("seller_de", 1) as conn:
        leadprotect.can_edit(conn, mine)
        leadprotect.assert_edit(conn, mine)
        with pytest.raises(leadprotect.LeadAccessDenied):
            leadprotect.assert_edit(conn, theirs)
    assert ["leadprotect.check", "leadprotect.assert", "leadprotect.assert"] == tracer.spans
    facts = {"leadprotect.action": "EDIT", "leadprotect.reason": "not_owner", "leadprotect.territory": "DE"}
    assert [("leadprotect.denied", facts)] == tracer.events
    (line,) = (record for record in caplog.records if record.name == "leadprotect")
    assert ("an attempt was denied", "EDIT", "not_owner", "DE") == (
        line.message,
        *(vars(line)[name] for name in ("lead_action", "lead_reason", "lead_territory")),
    )
    said = f"{vars(line)} {tracer.events}"
    assert not [person for person in (database.user(1), database.user(2), str(theirs)) if person in said]
