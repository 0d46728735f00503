"""A service with Flask: who acts in a request, and what an error answers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.orm import Session

import leadprotect
from leadprotect.integrations.flask import acting_for
from tests.support.services import example

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from tests.support.database import Database

pytestmark = pytest.mark.profiles("pg18")


@pytest.fixture
def service(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    with example("flask_service", database, monkeypatch) as module:
        yield module
        module.engine.dispose()


def put(service: ModuleType, database: Database, lead: Any, user: int = 1, territory: str = "DE") -> tuple[int, Any]:
    who = {"X-User": database.user(user), "X-Territory": territory}
    answer = service.app.test_client().put(f"/leads/{lead}?company=Neu", headers=who)
    return answer.status_code, answer.get_json()


def test_an_error_answers_with_its_status(
    database: Database, service: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, other = (database.lead("DE", owner=database.user(number)) for number in (1, 2))
    assert (200, {"leads": 2}) == put(service, database, mine)
    assert (403, {"detail": "not_owner"}) == put(service, database, other)
    assert (404, {"detail": "not_found"}) == put(service, database, other, territory="CH")
    assert (422, {"detail": "invalid_request"}) == put(service, database, "nonsense")

    def unrecorded(*_: Any) -> None:
        raise leadprotect.AuditUnavailable("the disk is full")

    monkeypatch.setattr("leadprotect.access.denials.record_denials", unrecorded)
    assert (503, {"detail": "unavailable"}) == put(service, database, other)
    assert ["Neu", "Muster GmbH"] == database.sql("SELECT company FROM leads ORDER BY id")


def test_requests_of_many_threads_are_each_answered_their_own(database: Database, service: ModuleType) -> None:
    leads = {territory: [database.lead(territory) for _ in range(n)] for territory, n in (("DE", 3), ("CH", 5))}

    def ask(number: int) -> bool:
        territory = ("DE", "CH")[number % 2]
        who = {"X-User": database.user(number), "X-Territory": territory}
        answer = service.app.test_client().get("/leads", headers=who)
        return bool(sorted(map(str, leads[territory])) == answer.get_json())

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(1, 201)))


def test_what_runs_beside_requests_says_who_acts(database: Database, service: ModuleType) -> None:
    lead = database.lead("CH", owner=database.user(1))
    with acting_for(database.user(1), "CH"), Session(service.engine) as session:
        assert "owner" == leadprotect.explain(session, lead).reason
    with Session(service.engine) as session, pytest.raises(leadprotect.ContextMissing):
        leadprotect.explain(session, lead)


def test_a_mistake_of_the_service_stays_one(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {'return request.headers["X-User"], request.headers["X-Territory"]': "return None"}
    with example("flask_service", database, monkeypatch, **broken) as service:
        assert 500 == put(service, database, database.lead("DE"))[0]
        service.engine.dispose()
