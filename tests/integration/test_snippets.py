"""Every snippet of the page about contexts runs, those that are awaited too."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import sessionmaker

import leadprotect
from tests.support.database import Database

PAGE = Path(__file__).parents[2] / "docs/how-to/let-a-context-last.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


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
        for snippet in SNIPPETS:
            code = compile(snippet, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            played = eval(code, known)  # noqa: S307 - the page is ours
            if inspect.isawaitable(played):
                await played
        await awaited.dispose()

    asyncio.run(play())
    engine.dispose()
    assert 6 == len(SNIPPETS)
    assert ["Essen"] == database.sql("SELECT city FROM {leads}")
    # each edit was asserted, and one row tells of both
    assert [("EDIT", "ALLOW", "owner")] * 3 == database.audit()
