"""What the frameworks share: who acts in the request or task at hand, and the status that an error has."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from leadprotect.access.binding import Context
from leadprotect.errors import (
    InvalidRequest,
    LeadAccessDenied,
    LeadProtectError,
    LockUnavailable,
    NotHere,
    ProtectionUnavailable,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from uuid import UUID

FORBIDDEN, UNKNOWN, MISDIRECTED, UNPROCESSABLE, UNAVAILABLE, BROKEN = 403, 404, 421, 422, 503, 500

caller: ContextVar[Context | None] = ContextVar("leadprotect_caller", default=None)
"""Who acts, for `leadprotect.bind`: ``leadprotect.bind(engine, caller)``."""


@contextmanager
def acting_for(user_id: UUID | str, territory: str, correlation_id: UUID | str | None = None) -> Iterator[None]:
    """Let this user act in every transaction that begins inside the block, on whatever is bound to `caller`.

    For what runs outside a request: a worker's task, a command, a test.
    """
    token = caller.set(Context(user_id, territory, correlation_id))
    try:
        yield
    finally:
        caller.reset(token)


def status_of(error: LeadProtectError) -> int:
    """403 for a denial, 404 where there is no such lead, 421 where the territory is in another database.

    422 for a bad id, 503 where no answer was to be had. Whatever else is a mistake of the service: 500.
    """
    if isinstance(error, LeadAccessDenied):
        return UNKNOWN if error.decision.reason == "not_found" else FORBIDDEN
    if isinstance(error, InvalidRequest):
        return UNPROCESSABLE
    if isinstance(error, NotHere):
        return MISDIRECTED
    return UNAVAILABLE if isinstance(error, (ProtectionUnavailable, LockUnavailable)) else BROKEN


def detail_of(error: LeadProtectError) -> str:
    """What the client is told: nothing of the database, and of a denial its reason code alone."""
    if isinstance(error, LeadAccessDenied):
        return error.decision.reason
    known = {MISDIRECTED: NotHere.reason, UNPROCESSABLE: "invalid_request", UNAVAILABLE: "unavailable"}
    return known.get(status_of(error), "internal_error")
