"""Leads that are on their way to or from the database of another territory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from leadprotect.database.catalog import relation
from leadprotect.database.statements import rows
from leadprotect.doctor.finding import Fault, check
from leadprotect.settings import Settings, render

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    import psycopg

    from leadprotect.database.drivers import AnyConnection


@dataclass(frozen=True)
class OnTheWay:
    """How many leads are on their way, `direction` out or in, and since when the oldest; each is frozen."""

    direction: str
    territory: str
    elsewhere: str
    leads: int
    since: datetime

    def __str__(self) -> str:
        """One line: what is where, on its way where."""
        way = ("to", "from")[self.direction == "in"]
        return f"{self.leads:,} of {self.territory} on the way {way} {self.elsewhere}"


def standing_handovers(conn: AnyConnection, s: Settings) -> tuple[OnTheWay, ...]:
    """What is under way or stands still; none where nothing was ever handed over."""
    if relation(conn, s.schema, "lead_handovers") is None:
        return ()
    return tuple(OnTheWay(*one) for one in rows(conn, render("SELECT * FROM {schema}.standing_handovers()", s)))


@check("warning", "Nobody can edit these leads on either side until somebody ends the hand-over.")
def handover_standing(conn: psycopg.Connection[Any], s: Settings) -> Iterator[Fault]:
    """Leads that have been on their way to or from another database for more than ten minutes."""
    for one in standing_handovers(conn, s):
        ((late,),) = rows(conn, "SELECT %s < now() - interval '10 minutes'", (one.since,))
        if late:
            yield Fault("lead_handovers", f"{one} since {one.since:%Y-%m-%d %H:%M:%S%z}", "leadprotect move --resume")
