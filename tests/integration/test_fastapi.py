"""A service with FastAPI: each answer is the caller's own, whatever goes on beside it."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import Depends
from sqlalchemy import text

import leadprotect
from leadprotect.integrations.fastapi import acting_for
from tests.support.services import example

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import ModuleType

    from tests.support.database import Database

pytestmark = pytest.mark.profiles("pg18")

TERRITORIES, USERS, REQUESTS = ("DE", "CH"), (1, 2, 3), 1000
FORGETFUL = {
    "leadprotect.bind(engine, caller)": "LAST = [None]\nleadprotect.bind(engine, lambda: LAST[0])",
    "    return leadprotect.Context(x_user, x_territory)": (
        "    LAST[0] = leadprotect.Context(x_user, x_territory)\n    return LAST[0]"
    ),
}
"""A service that keeps who acts where every request finds it."""


def asking(service: ModuleType, ask: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    """Run it in a loop of its own, and give the connections back."""

    async def run() -> Any:
        transport = httpx.ASGITransport(service.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            try:
                return await ask(client)
            finally:
                await service.engine.dispose()

    return asyncio.run(run())


def headers(database: Database, user: int, territory: str) -> dict[str, str]:
    return {"X-User": database.user(user), "X-Territory": territory}


class World:
    """Leads of two territories and of none, each owner, and what the service must answer to whom."""

    def __init__(self, database: Database) -> None:
        self.owners: dict[str, tuple[str | None, int | None]] = {}
        for place in (*TERRITORIES, *TERRITORIES, None):
            for owner in (*USERS, None):
                lead = database.lead(place, owner=database.user(owner) if owner and place else None)
                self.owners[str(lead)] = (place, owner)

    def seen(self, territory: str) -> list[str]:
        return sorted(lead for lead, (place, _) in self.owners.items() if place in (territory, None))

    def reason(self, lead: str, user: int, territory: str) -> str:
        place, owner = self.owners.get(lead, ("nowhere", None))
        if place is None:
            return "unprotected"
        if place != territory:
            return "not_found"
        return "unassigned" if owner is None else "owner" if owner == user else "not_owner"

    def renamed(self, lead: str, user: int, territory: str) -> tuple[int, Any]:
        reason = self.reason(lead, user, territory)
        if lead == "nonsense":
            return 422, {"detail": "invalid_request"}
        if reason in ("owner", "unprotected"):
            return 200, {"leads": len(self.seen(territory))}
        return 404 if reason == "not_found" else 403, {"detail": reason}


async def one(client: httpx.AsyncClient, database: Database, world: World, dice: random.Random) -> str | None:
    """A request of somebody at random; what was wrong about its answer."""
    user, territory = dice.choice(USERS), dice.choice(TERRITORIES)
    lead = dice.choice([*world.owners, *world.seen(territory), str(database.user(99)), "nonsense"])
    kind = dice.choice(["list", "show", "rename", "rename", "break", "cancel"])
    who = headers(database, user, territory)
    if kind == "list":
        answer = await client.get("/leads", headers=who)
        expected: tuple[int, Any] = (200, world.seen(territory))
    elif kind == "show":
        lead = lead if lead != "nonsense" else str(database.user(99))
        answer = await client.get(f"/leads/{lead}", headers=who)
        reason = world.reason(lead, user, territory)
        expected = (200, {"allowed": reason in ("owner", "unprotected"), "reason": reason})
    elif kind == "rename":
        answer = await client.put(f"/leads/{lead}", params={"company": f"{user} {territory}"}, headers=who)
        expected = world.renamed(lead, user, territory)
    elif kind == "break":
        answer = await client.post("/break", headers=who)
        return None if answer.status_code == 500 else f"{answer.status_code} for what breaks"
    else:
        sent = asyncio.create_task(client.put(f"/leads/{lead}", params={"company": "cancelled"}, headers=who))
        await asyncio.sleep(dice.random() * 0.5)
        sent.cancel()
        await asyncio.gather(sent, return_exceptions=True)
        return None
    got = (answer.status_code, answer.json())
    return None if got == expected else f"{kind} {lead} by {user} in {territory}: {got}, not {expected}"


def wrong_answers(database: Database, service: ModuleType, world: World) -> list[str]:
    """What 1,000 requests at once were told that was not theirs."""

    async def break_off(database: Any = Depends(service.session)) -> None:  # noqa: B008 - FastAPI's way
        await database.execute(text("UPDATE leads SET company = 'broken'"))
        raise RuntimeError

    service.app.post("/break")(break_off)

    async def all_at_once(client: httpx.AsyncClient) -> list[str | None]:
        # each dice is its own, so that a failure comes again
        return await asyncio.gather(
            *(one(client, database, world, random.Random(seed)) for seed in range(REQUESTS))  # noqa: S311
        )

    return [wrong for wrong in asking(service, all_at_once) if wrong]


def test_a_thousand_requests_over_five_connections_are_each_answered_their_own(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(database)
    with example("fastapi_service", database, monkeypatch) as service:
        assert [] == wrong_answers(database, service, world)
    companies = database.sql("SELECT id::text, company FROM leads WHERE company NOT IN ('Muster GmbH', 'cancelled')")
    protected = [(lead, company) for lead, company in companies if world.owners[lead][0]]
    assert [] == [(lead, company) for lead, company in protected if company != "{1} {0}".format(*world.owners[lead])]
    assert protected
    records = database.audit("lead_id::text, user_id::text, territory, outcome::text")
    assert {"ALLOW", "DENY"} == {outcome for *_, outcome in records}
    lies = [
        (lead, user, territory, outcome)
        for lead, user, territory, outcome in records
        if (outcome == "ALLOW")
        != (
            world.owners.get(lead, ("nowhere",))[0] is None
            or world.owners.get(lead) == (territory, number_of(database, user))
        )
    ]
    assert [] == lies


def number_of(database: Database, user: str) -> int | None:
    return next((number for number in USERS if database.user(number) == user), None)


def test_control_a_service_that_shares_who_acts_is_found_out(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(database)
    with example("fastapi_service", database, monkeypatch, **FORGETFUL) as service:
        assert len(wrong_answers(database, service, world)) > 50


def test_an_error_answers_with_its_status(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = (database.lead("DE", owner=database.user(number)) for number in (1, 2))
    who = headers(database, 1, "DE")

    async def ask(client: httpx.AsyncClient) -> list[tuple[int, Any]]:
        asked = [mine, other, database.new_id(), "nonsense"]
        told = [await client.put(f"/leads/{lead}", params={"company": "Neu"}, headers=who) for lead in asked]
        told.append(await client.get("/leads"))
        with monkeypatch.context() as patch:
            patch.setattr("leadprotect.access.denials.record_denials", unrecorded)
            told.append(await client.put(f"/leads/{other}", params={"company": "Neu"}, headers=who))
        attempt = "{schema}.allow_edit({lead_type}, {schema}.lead_action, text)"
        database.sql(f"REVOKE ALL ON FUNCTION {attempt} FROM {{app}}")
        told.append(await client.put(f"/leads/{mine}", params={"company": "Neu"}, headers=who))
        return [(answer.status_code, answer.json()) for answer in told]

    with example("fastapi_service", database, monkeypatch) as service:
        found = asking(service, ask)
    assert [
        (200, {"leads": 2}),
        (403, {"detail": "not_owner"}),
        (404, {"detail": "not_found"}),
        (422, {"detail": "invalid_request"}),
    ] == found[:4]
    assert 422 == found[4][0]  # FastAPI's own, for a header that is missing
    assert [(503, {"detail": "unavailable"})] * 2 == found[5:]


def unrecorded(*_: Any) -> None:
    raise leadprotect.AuditUnavailable("the disk is full")


def test_a_mistake_of_the_service_stays_one(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that nobody was named for must not look like a denial to whoever is on call."""
    broken = {"return leadprotect.Context(x_user, x_territory)": "return None"}
    with example("fastapi_service", database, monkeypatch, **broken) as service:
        answer = asking(service, lambda client: client.get("/leads", headers=headers(database, 1, "DE")))
    assert (500, "Internal Server Error") == (answer.status_code, answer.text)


def test_what_runs_beside_requests_says_who_acts(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    lead = database.lead("CH", owner=database.user(1))

    async def work(_: httpx.AsyncClient) -> Any:
        with acting_for(database.user(1), "CH"):
            async with service.sessions() as session:
                return await session.run_sync(leadprotect.explain, lead)

    with example("fastapi_service", database, monkeypatch) as service:
        assert "owner" == asking(service, work).reason
