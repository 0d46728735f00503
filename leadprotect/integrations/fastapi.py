"""FastAPI: a dependency that tells who acts, and what an error answers; needs the extra fastapi."""

# FastAPI reads the annotations of a dependency where it is made: no postponed ones here

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse

from leadprotect.access.binding import Context
from leadprotect.errors import LeadProtectError
from leadprotect.integrations.requests import BROKEN, acting_for, caller, detail_of, status_of

__all__ = ["acting_for", "caller", "handle_errors", "on_behalf_of"]

log = logging.getLogger("leadprotect")


def on_behalf_of(who: Callable[..., Any]) -> Callable[..., AsyncIterator[None]]:
    """A dependency that lets whom `who` names act in the request.

    ``FastAPI(dependencies=[Depends(on_behalf_of(who))])`` has it in every request. `who` is a dependency of your own,
    which may depend on others, and returns a `leadprotect.Context`, a tuple of user and territory, or None for a
    request of nobody. The engine is bound to `caller`.
    """

    async def declare(named: Any = Depends(who)) -> AsyncIterator[None]:  # noqa: B008 - a name of a closure can't be annotated
        # async: FastAPI would run another one in a thread, and what is set there is lost
        token = caller.set(None if named is None else Context(*named))
        try:
            yield
        finally:
            caller.reset(token)

    return declare


def handle_errors(app: FastAPI) -> None:
    """Let errors of leadprotect answer 403, 404, 421, 422 or 503; a mistake of the service stays 500.

    Source: https://fastapi.tiangolo.com/tutorial/handling-errors/#install-custom-exception-handlers
    """

    async def answer(_: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, LeadProtectError) or status_of(error) == BROKEN:
            raise error
        log.info("a request was refused", extra={"status": status_of(error), "reason": detail_of(error)})
        return JSONResponse({"detail": detail_of(error)}, status_of(error))

    app.add_exception_handler(LeadProtectError, answer)
