"""What a shell completes: territories of the database, and revisions of the chain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadprotect import phases
from leadprotect.errors import LeadProtectError

if TYPE_CHECKING:
    import click

_PATIENCE_S = 2


def territories_like(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[str]:
    """Codes that begin so; none where the database does not answer, since a shell waits for this."""
    from leadprotect.database.catalog import all_codes  # noqa: PLC0415
    from leadprotect.database.connection import connect  # noqa: PLC0415 - nothing else here needs a driver
    from leadprotect.settings import current  # noqa: PLC0415

    try:
        with connect(current()) as conn:
            conn.execute(f"SET statement_timeout = '{_PATIENCE_S}s'")
            found = all_codes(conn)
    except LeadProtectError:
        return []
    return [code for code in found if code.lower().startswith(begun.lower())]


def revisions_like(_ctx: click.Context, _param: click.Parameter, begun: str) -> list[str]:
    """Ids that begin so, and base."""
    return [one for one in ("base", *phases.chain()) if one.startswith(begun)]
