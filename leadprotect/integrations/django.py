"""Django: a middleware that tells who acts, what an error answers, and a system check; needs the extra django.

::

    INSTALLED_APPS = [..., "leadprotect.integrations.django.LeadProtect"]
    MIDDLEWARE = [..., "leadprotect.integrations.django.LeadProtectMiddleware"]   # after that of authentication
    LEADPROTECT = {"WHO": "crm.who", "DATABASE": "default"}
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import psycopg
from django.apps import AppConfig
from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, transaction
from django.http import JsonResponse
from django.utils.module_loading import import_string
from psycopg.pq import TransactionStatus

from leadprotect.access.arguments import check_caller
from leadprotect.access.context import set_context, trace_id
from leadprotect.access.startup import check_startup
from leadprotect.database.bound import per_database
from leadprotect.errors import ContextMissing, InvalidRequest, LeadProtectError, NotProtected
from leadprotect.integrations.requests import BROKEN, acting_for, caller, detail_of, status_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from uuid import UUID

    from django.http import HttpRequest, HttpResponse

    from leadprotect.access.binding import Context

log = logging.getLogger("leadprotect")

_standing: WeakKeyDictionary[psycopg.Connection[Any], Context] = WeakKeyDictionary()
"""Driver's connection -> whose context its transaction has."""


class LeadProtect(AppConfig):  # type: ignore[misc] # Django has no types
    """Registers the check: ``manage.py check --database default`` asks what `leadprotect.check_startup` asks."""

    name = "leadprotect.integrations.django"
    label = "leadprotect"
    verbose_name = "leadprotect"

    def ready(self) -> None:
        """Django calls it once, when everything is loaded."""
        checks.register(check_database, checks.Tags.database)


class LeadProtectMiddleware:
    """Lets whom the setting ``WHO`` names act in each transaction of a request, and errors answer.

    ``WHO`` is the path of a function that takes the request and returns a `leadprotect.Context`, a tuple of user
    and territory, or None for a request of nobody, whose statements have no context and see no lead of a territory.
    Source: https://docs.djangoproject.com/en/stable/topics/http/middleware/
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self._get_response = get_response
        self._who = import_string(_setting("WHO"))

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """The response of whatever comes after."""
        who = self._who(request)
        if who is None:
            return self._get_response(request)
        with acting(*who):
            return self._get_response(request)

    def process_exception(self, _: HttpRequest, error: Exception) -> HttpResponse | None:
        """403, 404, 421, 422 or 503 for an error of leadprotect; a mistake of the service stays 500."""
        if not isinstance(error, LeadProtectError) or status_of(error) == BROKEN:
            return None
        log.info("a request was refused", extra={"status": status_of(error), "reason": detail_of(error)})
        return JsonResponse({"detail": detail_of(error)}, status=status_of(error))


@contextmanager
def acting(user_id: UUID | str, territory: str, correlation_id: UUID | str | None = None) -> Iterator[None]:
    """Let this user act in every statement of Django's connection inside the block, in as many transactions as it has.

    A statement outside of `transaction.atomic` gets a transaction of its own. For commands and
    workers, too. Raises what `leadprotect.acting_as` raises, from the statement.
    Source: https://docs.djangoproject.com/en/stable/topics/db/instrumentation/
    """
    django = connections[_alias()]
    try:
        with acting_for(user_id, territory, correlation_id), django.execute_wrapper(_in_context):
            yield
    finally:
        # a transaction that goes on, as in a test, must not go on as his
        if django.in_atomic_block and django.connection and not django.needs_rollback:
            _declared(django)


def connection() -> psycopg.Connection[Any]:
    """The connection of psycopg below Django's, for the functions of leadprotect; inside `transaction.atomic` only.

    Raises `ContextMissing` outside of it, `InvalidRequest` where Django uses another driver than psycopg 3.
    """
    django = connections[_alias()]
    if not django.in_atomic_block:
        raise ContextMissing("outside of transaction.atomic() nothing would last to the next statement: call it inside")
    return _declared(django)


def check_database(*, databases: list[str] | None = None, **_: Any) -> list[checks.CheckMessage]:
    """What keeps the database's sessions from being protected, as Django's system check."""
    alias = _alias()
    if alias not in (databases or ()):
        return []
    try:
        check_startup(_driver(connections[alias]))
    except NotProtected as error:
        return [checks.Error(f"{name}: {what}", id="leadprotect.E001") for name, what in error.dangers]
    except LeadProtectError as error:
        return [checks.Error(str(error), id="leadprotect.E002")]
    return []


def _in_context(execute: Callable[..., Any], sql: str, params: Any, many: bool, context: dict[str, Any]) -> Any:  # noqa: FBT001 - Django calls it so
    """Set the context at the begin of each transaction: it ends with a commit, and a new one begins without."""
    django = context["connection"]
    if django.in_atomic_block:
        _declared(django)
        return execute(sql, params, many, context)
    with transaction.atomic(using=django.alias):
        _declared(django)
        return execute(sql, params, many, context)


def _declared(django: Any) -> psycopg.Connection[Any]:
    """The driver's connection, with the context of who acts now: set where another one, or none, stands."""
    driver = _driver(django)
    if driver.info.transaction_status == TransactionStatus.IDLE:
        _standing.pop(driver, None)  # it ended with its transaction
    who = caller.get()
    if who == _standing.get(driver):
        return driver
    _set_context(driver, who)
    if who is None:
        del _standing[driver]
    else:
        _standing[driver] = who
    return driver


@per_database
def _set_context(conn: psycopg.Connection[Any], who: Context | None) -> None:
    if who is None:
        set_context(conn, "", "", None)
        return
    check_caller(who.user_id, who.territory)
    correlation = str(who.correlation_id) if who.correlation_id else trace_id()
    set_context(conn, str(who.user_id), who.territory, correlation)


def _driver(django: Any) -> psycopg.Connection[Any]:
    django.ensure_connection()
    driver = django.connection
    if not isinstance(driver, psycopg.Connection):
        raise InvalidRequest(f"Django's driver is {type(driver).__module__}; leadprotect needs psycopg 3")
    return driver


def _alias() -> str:
    return str(getattr(settings, "LEADPROTECT", {}).get("DATABASE", "default"))


def _setting(name: str) -> str:
    try:
        return str(settings.LEADPROTECT[name])
    except (AttributeError, KeyError):
        raise ImproperlyConfigured(f"LEADPROTECT[{name!r}] is missing in the settings") from None
