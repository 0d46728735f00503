"""What the commands share that act for somebody in a territory: options, a transaction, and what a denial says."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from leadprotect.access.arguments import as_user_id
from leadprotect.access.context import acting_as, declaring
from leadprotect.cli.complete import territories_like
from leadprotect.database.catalog import territory_role
from leadprotect.database.connection import connect
from leadprotect.database.memberships import grants
from leadprotect.database.opening import LOCK_TIMEOUT_MS
from leadprotect.database.sqlstates import mapped_errors
from leadprotect.database.statements import row
from leadprotect.errors import InvalidRequest, LeadAccessDenied, LeadProtectError, ProtectionUnavailable
from leadprotect.settings import current, render

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import psycopg

_NO_PRIVILEGE = "42501"
TERRITORY = click.option(
    "--territory", required=True, metavar="CODE", shell_complete=territories_like,
    help="Where; its role must be the login's.",
)  # fmt: skip
NOTE = click.option("--note", help="Recorded with it, at most 1 kB.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Do it, show it, and roll back; what is denied is recorded.")
_ACTOR = click.option("--as", "actor", required=True, metavar="USER", help="Who does it: recorded beside the login.")


JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a line.")


def changes(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of whatever changes something."""
    for option in (JSON, DRY_RUN, NOTE, _ACTOR, TERRITORY):
        command = option(command)
    return command


@contextmanager
def session(office: str, *, lock_timeout: int = LOCK_TIMEOUT_MS) -> Iterator[psycopg.Connection[Any]]:
    """A connection for what only holders of `office` may ask; whom it is denied to is told what a DBA can run.

    `lock_timeout` in milliseconds.
    """
    with connect(current(), lock_timeout=lock_timeout) as conn:
        try:
            with mapped_errors():
                yield conn
        except ProtectionUnavailable as error:
            if getattr(error.__cause__, "sqlstate", None) != _NO_PRIVILEGE:
                raise
            raise ProtectionUnavailable(f"{error}. {_grants(conn, current().role(office))}") from error


@contextmanager
def transaction(conn: psycopg.Connection[Any], actor: str, territory: str, *, dry_run: bool = False) -> Iterator[None]:
    """One transaction of `actor` in `territory`, rolled back at the end of a dry run."""
    try:
        user = as_user_id(actor)
    except InvalidRequest as error:
        raise click.BadParameter(str(error), param_hint="--as") from None
    try:
        with conn.transaction(force_rollback=dry_run), acting_as(conn, user, territory):
            _require_territory(conn, territory)
            yield
    except LeadAccessDenied as denied:
        raise LeadProtectError(f"{denied}, which is recorded; {_remedy(conn, denied, territory)}") from None


@contextmanager
def reading(conn: psycopg.Connection[Any], territory: str) -> Iterator[None]:
    """One transaction of a manager or auditor who looks at `territory`."""
    with conn.transaction(), declaring(conn, "", territory):
        _require_territory(conn, territory)
        offices = [current().role(office) for office in ("manager", "auditor")]
        holds = "SELECT pg_catalog.pg_has_role(%s, 'USAGE') OR pg_catalog.pg_has_role(%s, 'USAGE')"
        if row(conn, holds, offices) != (True,):
            raise ProtectionUnavailable(f"this is for managers and auditors. {_grants(conn, offices[0])}")
        yield


def _require_territory(conn: psycopg.Connection[Any], territory: str) -> None:
    """Raise where nothing would be found: it would look as if there were nothing."""
    s = current()
    admitted, known = row(conn, render("SELECT {schema}.admitted_territory(), {schema}.all_territories()", s))
    if territory not in known:
        raise InvalidRequest(f"--territory: there is no {territory!r}; known are {', '.join(sorted(known))}")
    if admitted is None:
        raise ProtectionUnavailable(
            f"the login does not hold {territory}. {_grants(conn, territory_role(conn, territory))}"
        )


_REASONS = {
    "suspended": "whom --as names is suspended there: leadprotect rules revoke USER VIEW_ONLY",
    "unassigned": "nobody owns it: leadprotect owner assign",
    "not_owner": "only its owner or a manager may",
}


def _remedy(conn: psycopg.Connection[Any], denied: LeadAccessDenied, territory: str) -> str:
    reason = denied.decision.reason
    if reason != "not_manager":
        return _REASONS.get(reason, f"there is no such lead in {territory}")
    return f"only a manager of {territory} may. {_grants(conn, current().role('manager'))}"


def _grants(conn: psycopg.Connection[Any], role: str) -> str:
    return f"A DBA can run: {grants(conn, [role], conn.info.user)}"
