"""A service with Flask: flask --app flask_service run."""

import os

import leadprotect
from flask import Flask, request
from leadprotect.integrations.flask import protect
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

engine = create_engine(os.environ["SERVICE_URL"], pool_size=5)
app = Flask(__name__)


def who() -> tuple[str, str]:
    """Your own authentication; headers stand for it here."""
    return request.headers["X-User"], request.headers["X-Territory"]


protect(app, engine, who)


@app.get("/leads")
def list_leads() -> list[str]:
    """The leads that row security shows."""
    with Session(engine) as session:
        return list(session.scalars(text("SELECT id::text FROM leads ORDER BY id")))


@app.put("/leads/<lead_id>")
def rename_lead(lead_id: str) -> dict[str, int]:
    """Assert, edit, commit; what is read afterwards is read in a transaction of its own, by the same user."""
    with Session(engine) as session:
        leadprotect.assert_edit(session, lead_id)
        company = request.args["company"]
        session.execute(text("UPDATE leads SET company = :c WHERE id = :id"), {"c": company, "id": lead_id})
        session.commit()
        return {"leads": session.scalar(text("SELECT count(*) FROM leads")) or 0}
