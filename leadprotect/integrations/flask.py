"""Flask: who acts in a request, and what an error answers; needs the extra flask."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from flask import has_request_context, jsonify

from leadprotect.access.binding import Context, bind
from leadprotect.errors import LeadProtectError
from leadprotect.integrations.requests import BROKEN, acting_for, caller, detail_of, status_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from flask import Flask, Response
    from sqlalchemy import Engine
    from sqlalchemy.orm import sessionmaker

__all__ = ["acting_for", "protect"]

log = logging.getLogger("leadprotect")


def protect(
    app: Flask, target: Engine | sessionmaker[Any], who: Callable[[], Context | tuple[Any, ...] | None]
) -> Callable[[], None]:
    """Let whom `who` names act in each transaction of `target` that begins in a request, and errors answer.

    `who` reads Flask's `request`, `session` or `g`; None is a request of nobody, whose transaction raises
    `ContextMissing`. Outside of requests, `acting_for` says who acts. Errors answer 403, 404, 421, 422 or
    503; a mistake of the service stays 500. Returns what unbinds, and raises what `leadprotect.bind` raises.
    Source: https://flask.palletsprojects.com/en/stable/errorhandling/#registering
    """

    def provide() -> Context | tuple[Any, ...] | None:
        return who() if has_request_context() else caller.get()

    def answer(error: LeadProtectError) -> tuple[Response, int]:
        if status_of(error) == BROKEN:
            raise error
        log.info("a request was refused", extra={"status": status_of(error), "reason": detail_of(error)})
        return jsonify(detail=detail_of(error)), status_of(error)

    app.register_error_handler(LeadProtectError, answer)
    return bind(target, provide)
