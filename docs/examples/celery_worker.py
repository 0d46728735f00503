"""A worker with Celery: celery -A celery_worker worker."""

import os

import leadprotect
from celery import Celery
from celery.signals import worker_process_init
from leadprotect.integrations.requests import acting_for, caller
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

engine = create_engine(os.environ["SERVICE_URL"], pool_size=2)
leadprotect.bind(engine, caller)
worker = Celery("crm", broker=os.environ.get("BROKER_URL", "memory://"))


@worker_process_init.connect
def forget_the_parent_s_connections(**_: object) -> None:
    """A process that was forked must not talk on sockets of its parent."""
    engine.dispose(close=False)


@worker.task(autoretry_for=(leadprotect.LockUnavailable,), retry_backoff=True, max_retries=5)
def rename_lead(user_id: str, territory: str, lead_id: str, company: str) -> str:
    """Who acts comes with the task: a worker has no request to ask."""
    with acting_for(user_id, territory, rename_lead.request.id), Session(engine) as session:
        decision = leadprotect.assert_edit(session, lead_id, note="rename_lead")
        session.execute(text("UPDATE leads SET company = :c WHERE id = :id"), {"c": company, "id": lead_id})
        session.commit()
        return decision.reason
