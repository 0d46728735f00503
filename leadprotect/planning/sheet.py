"""The page of a plan: one file, to be handed on before a deploy."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from leadprotect.page import fill

if TYPE_CHECKING:
    from leadprotect.planning.plan import DeployPlan

TEMPLATE = Path(__file__).with_name("plan.html")


def sheet(found: DeployPlan) -> str:
    """The page, whole."""
    return fill(TEMPLATE, asdict(found) | {"exit_code": found.exit_code, "seconds": found.seconds})


def size(count: float) -> str:
    """Bytes for a reader."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:  # noqa: PLR2004 - of the next unit
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"  # noqa: PLR2004
        count /= 1000
    return f"{count:.1f} TB"


def lasting(seconds: float | None) -> str:
    """Seconds for a reader."""
    if seconds is None:
        return "not measured"
    if seconds < 100:  # noqa: PLR2004 - more than a minute and a half
        return f"{seconds:.1f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 100 else f"{minutes / 60:.1f} h"  # noqa: PLR2004
