"""A worker with Celery: the task says who acts, and its id is recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import leadprotect
from tests.support.services import example

if TYPE_CHECKING:
    from tests.support.database import Database


@pytest.mark.profiles("pg18")
def test_a_task_acts_as_whom_it_was_sent_for(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = (database.lead("DE", owner=database.user(number)) for number in (1, 2))
    with example("celery_worker", database, monkeypatch) as service:
        done = service.rename_lead.apply((database.user(1), "DE", str(mine), "Neu"), task_id="task 1")
        refused = service.rename_lead.apply((database.user(1), "DE", str(other), "Neu"), task_id="task 2")
        assert "owner" == done.get()
        with pytest.raises(leadprotect.LeadAccessDenied, match="not_owner"):
            refused.get()
        assert service.caller.get() is None
        service.engine.dispose()
    assert [("task 1", "ALLOW", "rename_lead"), ("task 2", "DENY", "rename_lead")] == database.audit(
        "correlation_id, outcome::text, note"
    )
    assert ["Neu", "Muster GmbH"] == database.sql("SELECT company FROM leads ORDER BY id")
