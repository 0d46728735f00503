"""A service with FastAPI: uvicorn fastapi_service:app."""

import os
from collections.abc import AsyncIterator
from typing import Annotated

import leadprotect
from fastapi import Depends, FastAPI, Header
from leadprotect import aio
from leadprotect.integrations.fastapi import caller, handle_errors, on_behalf_of
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

engine = create_async_engine(os.environ["SERVICE_URL"], pool_size=5, max_overflow=0, pool_timeout=120)
sessions = async_sessionmaker(engine, expire_on_commit=False)
leadprotect.bind(engine, caller)


def who(x_user: Annotated[str, Header()], x_territory: Annotated[str, Header()]) -> leadprotect.Context:
    """Your own authentication; headers stand for it here."""
    return leadprotect.Context(x_user, x_territory)


async def session() -> AsyncIterator[AsyncSession]:
    """A session of a request, rolled back where nobody commits."""
    async with sessions() as one:
        yield one


app = FastAPI(dependencies=[Depends(on_behalf_of(who))])
handle_errors(app)
Database = Annotated[AsyncSession, Depends(session)]


@app.get("/leads")
async def list_leads(database: Database) -> list[str]:
    """The leads that row security shows."""
    return list(await database.scalars(text("SELECT id::text FROM leads ORDER BY id")))


@app.get("/leads/{lead_id}")
async def show_lead(lead_id: str, database: Database) -> dict[str, str | bool]:
    """May he edit it, and why."""
    decision = await aio.explain(database, lead_id)
    return {"allowed": decision.allowed, "reason": decision.reason}


@app.put("/leads/{lead_id}")
async def rename_lead(lead_id: str, company: str, database: Database) -> dict[str, int]:
    """Assert, edit, commit; what is read afterwards is read in a transaction of its own, by the same user."""
    await aio.assert_edit(database, lead_id)
    await database.execute(text("UPDATE leads SET company = :c WHERE id = :id"), {"c": company, "id": lead_id})
    await database.commit()
    seen = await database.scalar(text("SELECT count(*) FROM leads"))
    return {"leads": seen or 0}
