"""How far an answer reaches: the territories that a login may read, and those that it leaves out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from leadprotect.database.catalog import territory_role
from leadprotect.database.memberships import grants
from leadprotect.database.statements import row, rows
from leadprotect.errors import InvalidRequest, ProtectionUnavailable
from leadprotect.settings import current, render

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from leadprotect.database.drivers import AnyConnection


@dataclass(frozen=True)
class Reach:
    """`inside` are territories that an answer can hold, None for rows without one; `left_out` those that it can't.

    `unbound` is a login that no policy binds.
    """

    inside: tuple[str | None, ...]
    left_out: tuple[str, ...]
    unbound: bool


def reach(conn: AnyConnection, asked: Collection[str] | None = None) -> Reach:
    """What the login may read of the audit, of all or of the territories that were `asked` for ('': of none).

    The role of a territory counts, and where no policy binds the login, everything is inside. Raises
    `InvalidRequest` for a territory that is not known.
    """
    query = """
        SELECT t.code, {schema}.is_member(t.code),
               NOT pg_catalog.row_security_active('{schema}.lead_access_audit'::pg_catalog.regclass)
        FROM pg_catalog.unnest({schema}.all_territories()) AS t (code) ORDER BY t.code
        """
    found = rows(conn, render(query, current()))
    known = [code for code, _, _ in found]
    if unknown := [code for code in asked or () if code and code not in known]:
        raise InvalidRequest(f"territory {unknown[0]!r} is not known; known are {', '.join(known)}")
    wanted = {"", *known} if asked is None else {*asked}
    readable = {"", *(code for code, member, unbound in found if member or unbound)}
    return Reach(
        tuple(code or None for code in ("", *known) if code in wanted & readable),
        tuple(code for code in known if code in wanted - readable),
        any(unbound for _, _, unbound in found),
    )


def listing_reach(conn: AnyConnection, asked: Collection[str] | None = None) -> Reach:
    """The same for a listing, which is refused where it would be empty whatever there is.

    Raises `ProtectionUnavailable`, with the statement that helps, for a login that holds the role of no
    territory, and for a territory that was asked for and whose role it does not hold.
    """
    found = reach(conn, asked)
    rows(conn, render("SELECT FROM {schema}.lead_access_audit LIMIT 0", current()))  # who is no auditor learns that
    if found.left_out and asked is not None:
        names, statement = ", ".join(found.left_out), _grant(conn, found.left_out)
        raise ProtectionUnavailable(f"this login does not hold the role of {names}; a DBA can run: {statement}")
    if found.left_out and not any(found.inside):
        message = f"{_nothing(conn, found.left_out)}. Rows without territory alone are had by asking for territory ''"
        raise ProtectionUnavailable(message)
    return found


def without_role(conn: AnyConnection) -> tuple[str, ...]:
    """Territories whose role the acting role does not hold; raises `ProtectionUnavailable` where that is all."""
    query = (
        "SELECT t.code, {schema}.is_member(t.code) "
        "FROM pg_catalog.unnest({schema}.all_territories()) AS t (code) ORDER BY t.code"
    )
    found = rows(conn, render(query, current()))
    left_out = tuple(code for code, member in found if not member)
    if left_out and len(left_out) == len(found):
        raise ProtectionUnavailable(_nothing(conn, left_out))
    return left_out


def _nothing(conn: AnyConnection, left_out: Sequence[str]) -> str:
    names, statement = ", ".join(left_out), _grant(conn, left_out)
    return (
        f"this login holds the role of no territory, so nothing of {names} would be in the answer; a DBA can run: "
        f"{statement}"
    )


def _grant(conn: AnyConnection, left_out: Sequence[str]) -> str:
    query = "SELECT coalesce(nullif(pg_catalog.current_setting('role'), 'none'), session_user::pg_catalog.text)"
    (login,) = row(conn, query)
    return grants(conn, [territory_role(conn, code) for code in left_out], login)
