"""Every snippet of the docs runs, those that are awaited too: here, or where `ELSEWHERE` says."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import psycopg
import pytest
from prometheus_client import CollectorRegistry
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

import leadprotect
from tests.support.database import Database

ROOT = Path(__file__).parents[2]
SNIPPET = re.compile(r"^ *```python\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
PAGE = ROOT / "docs/how-to/let-a-context-last.md"
ONE_BY_ONE = ("README.md", "docs/how-to/use-from-a-service.md", "docs/how-to/gate-a-rollout.md")
ELSEWHERE = {
    "CONTRIBUTING.md": "e2e/test_contributing.py",
    "docs/explanation/numbering.md": "e2e/test_host_alembic.py",
    "docs/how-to/cover-a-holiday.md": "integration/test_howtos.py",
    "docs/how-to/hand-over-the-leads-of-a-seller.md": "integration/test_howtos.py",
    "docs/how-to/live-beside-your-own-alembic.md": "e2e/test_host_project.py",
    "docs/how-to/read-from-standbys.md": "integration/test_standbys.py",
    "docs/how-to/serve-several-databases.md": "integration/test_route.py",
    "docs/how-to/share-a-lead.md": "integration/test_howtos.py",
    "docs/how-to/suspend-somebody.md": "integration/test_howtos.py",
    "docs/how-to/test-a-service.md": "e2e/test_testing.py",
    "docs/package.md": "unit/test_readme.py",  # the README, for an index of packages
    "docs/tutorial/index.md": "e2e/test_tutorial.py",
}


def snippets(page: Path) -> list[str]:
    return [textwrap.dedent(code) for code in SNIPPET.findall(page.read_text(encoding="utf-8"))]


def test_no_page_has_a_snippet_that_nothing_runs() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    having = {str(page.relative_to(ROOT)) for page in pages if "_build" not in page.parts and snippets(page)}
    assert having == {*ONE_BY_ONE, *ELSEWHERE, str(PAGE.relative_to(ROOT))}
    for page, test in ELSEWHERE.items():
        name = Path(page).stem.replace("index", Path(page).parent.name)
        assert name in (ROOT / "tests" / test).read_text(encoding="utf-8")


@pytest.mark.profiles("pg18")
def test_each_snippet_does_what_it_says(database: Database) -> None:
    url = database.login_url("seller_de")
    engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(url))
    awaited = create_async_engine("postgresql+psycopg://", async_creator=lambda: psycopg.AsyncConnection.connect(url))
    known: dict[str, Any] = {
        "leadprotect": leadprotect,
        "psycopg": psycopg,
        "engine": engine,
        "sessions": sessionmaker(engine),
        "async_sessions": async_sessionmaker(awaited),
        "url": url,
        "lead_id": database.lead("DE", owner=database.user(1)),
        "user_id": database.user(1),
        "territory": "DE",
        "update_lead": text("UPDATE leads SET city = :city WHERE id = :id"),
    }

    async def play() -> None:
        for snippet in snippets(PAGE):
            code = compile(snippet, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            played = eval(code, known)  # noqa: S307 - the page is ours
            if inspect.isawaitable(played):
                await played
        await awaited.dispose()

    asyncio.run(play())
    engine.dispose()
    assert 6 == len(snippets(PAGE))
    assert ["Essen"] == database.sql("SELECT city FROM {leads}")
    # each edit was asserted, and one row tells of both
    assert [("EDIT", "ALLOW", "owner")] * 3 == database.audit()


@pytest.mark.profiles("pg18")
@pytest.mark.parametrize("page", ONE_BY_ONE)
def test_a_snippet_that_stands_alone_runs(database: Database, monkeypatch: pytest.MonkeyPatch, page: str) -> None:
    monkeypatch.setattr("leadprotect.metrics._active", [])
    registry = CollectorRegistry()
    monkeypatch.setattr("prometheus_client.REGISTRY", registry)
    user, lead = database.user(1), database.lead("DE", owner=database.user(1))
    with database.engine("seller_de") as engine, engine.begin() as conn:
        known: dict[str, Any] = {
            "leadprotect": leadprotect,
            "engine": engine,
            "conn": conn,
            "user_id": user,
            "territory": "DE",
            "request_id": "r-1",
            "lead_id": lead,
            "city": "Essen",
            "update_lead": text("UPDATE leads SET city = 'Essen' WHERE id = :id"),
        }
        for snippet in snippets(ROOT / page):
            exec(snippet, known)  # noqa: S102 - our own pages
    counts = "metrics.enable()" in "".join(snippets(ROOT / page))
    assert [None if counts else "Essen"] == database.sql("SELECT city FROM {leads}")
    assert counts == (registry.get_sample_value("lead_access_assert_allow_total") is not None)
