"""What the words of a command line are read as: durations and times, in one grammar for every command."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from leadprotect.errors import SettingsError
from leadprotect.settings.values import duration

if TYPE_CHECKING:
    from collections.abc import Callable


class Duration(click.ParamType[float]):
    """``250ms``, ``60s``, ``2min``, ``12 hours`` or ``7 days``, as in the settings; a number alone is seconds."""

    name = "duration"

    def __init__(self, *, least: float = 0.0, longest: str = "3650 days") -> None:
        self.least, self.longest = least, longest

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        try:
            seconds = duration("", str(value), longest=self.longest)
        except SettingsError as error:
            self.fail(str(error).removeprefix(": "), param, ctx)
        if seconds < self.least:
            self.fail(f"{value!r} is shorter than {self.least:g} s", param, ctx)
        return seconds


class DurationText(Duration):
    """The same, checked and passed on as it was written."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The text."""
        super().convert(value, param, ctx)
        return str(value)


class Moment(click.ParamType[datetime]):
    """A time by ISO 8601, with its zone."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """The time."""
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            self.fail(f"{value!r} is not a time such as 2026-03-01T09:00+01:00", param, ctx)
        if time.tzinfo is None:
            self.fail(f"{value!r} needs a time zone, as in 2026-03-01T09:00+01:00 or 2026-03-01T08:00Z", param, ctx)
        return time


TIME = Moment()


def lock_budget() -> Callable[..., Any]:
    """The option of every command that waits for locks of the host's tables."""
    return click.option(
        "--lock-budget",
        type=DurationText(),
        metavar="DURATION",
        help="How long to wait for locks in all, such as 5min.  [default: 60s]",
    )
