"""The gate of contract: which conditions hold, and what opens those that do not.

The conditions are asked of the data and the catalog by one SQL function of the migrate step; this
module only reads its answer, for env.py, for `status`, and for whoever wants to know.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from leadprotect.database.statements import rows
from leadprotect.settings import Settings, current, literal, render

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from leadprotect.database.drivers import AnyConnection


ACCEPTABLE = (
    "unowned",
    "unprotected",
    "host_code",
    "owner_column_code",
    "lead_tables_keys",
    "lead_tables_code",
    "shadow",
)
"""Conditions that a person may accept, by name and value."""


@dataclass(frozen=True)
class Condition:
    """One condition of the gate: whether it holds, why, and what to run when it does not."""

    name: str
    met: bool
    detail: str
    remedy: str | None


def conditions(conn: AnyConnection, *, settings: Settings | None = None) -> list[Condition]:
    """Ask every condition of contract; reads only, and holds no lock that a writer could feel.

    Raises `ProtectionUnavailable` before the migrate step, or without the role of an operator.
    """
    s = settings or current()
    query = render(
        "SELECT condition, met IS TRUE, detail, remedy "
        "FROM {schema}.gate_conditions(make_interval(secs => %s), %s, %s::name[], {lead_tables})",
        s,
    )
    found = rows(conn, query, (s.observation_window, s.host_rls, list(s.exempt_roles)))
    return [Condition(*row) for row in found]


def accepting(accepted: Sequence[tuple[str, Decimal]], settings: Settings) -> list[str]:
    """The statements by which whoever migrates answers for conditions, each up to a share of the leads."""
    call = render("SELECT {schema}.accept_condition", settings)
    return [f"{call}({literal(name)}, {share})" for name, share in accepted]


def closed(asked: list[Condition]) -> str | None:
    """One line that says which conditions are false and what to run; None when all hold."""
    missing = [f"{c.detail} ({c.remedy})" if c.remedy else c.detail for c in asked if not c.met]
    return "; ".join(missing) or None
