"""How a terminal, a log and a program are told where a backfill stands."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Self, TextIO

from rich.progress import BarColumn, ProgressColumn, Task, TextColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from leadprotect.cli.output import event
from leadprotect.cli.terminal import plain

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from rich.console import Console, RenderableType

    from leadprotect.backfilling.progress import Progress


LINE_EVERY_S = 10.0
_ROOM_FOR_NAMES = 20


class _TwoLines(RichProgress):
    """The bar on one line; below it how fast it goes, or why it waits and for whom."""

    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        yield Text(self.note)


class _Counts(ProgressColumn):
    """Leads that are done, of how many."""

    def render(self, task: Task) -> Text:
        whole = "?" if task.total is None else f"{task.total:,.0f}"
        return Text(f"{task.completed:,.0f}/{whole}")


class Bar:
    """A progress bar for a terminal."""

    def __init__(self, console: Console) -> None:
        self._bar = _TwoLines(TextColumn("{task.description}", markup=False), BarColumn(), _Counts(), console=console)
        self._task = self._bar.add_task("", total=None)

    def __enter__(self) -> Self:
        """Nothing yet: what is refused has no bar."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state on the screen."""
        self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        """Draw the state."""
        self._bar.start()
        self._bar.note = plain(_note(progress))
        self._bar.update(
            self._task, description=_names(progress.territories), completed=progress.scanned, total=progress.total
        )


class Lines:
    """A line every ten seconds for a log, and one whenever the reason to wait changes."""

    def __init__(self, stream: TextIO, *, as_json: bool = False) -> None:
        self._stream = stream
        self._as_json = as_json
        self._last: float | None = None
        self._situation: object = None

    def __enter__(self) -> Self:
        """Nothing to prepare."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to clean up."""

    def __call__(self, progress: Progress) -> None:
        """Write a line if it is time."""
        now = time.monotonic()
        due = self._last is None or now - self._last >= LINE_EVERY_S
        situation = _situation(progress)
        if not (due or progress.done or situation != self._situation):
            return
        self._last, self._situation = now, situation
        if self._as_json:
            line = event("done" if progress.done else "progress", progress, eta=progress.eta)
        else:
            line = plain(f"{_counts(progress)}, {_note(progress)}")
        print(line, file=self._stream, flush=True)


def _names(territories: tuple[str, ...]) -> str:
    """As many as leave room for a bar on a narrow terminal."""
    named = " ".join(territories)
    return named if len(named) <= _ROOM_FOR_NAMES else f"{territories[0]} +{len(territories) - 1}"


def _situation(progress: Progress) -> object:
    """Whether it holds or is slowed, and why: without the numbers, which are others every second."""
    return progress.factor == 0, progress.factor < 1, re.sub(r"[\d.,]+", "", progress.reason or "")


def _counts(progress: Progress) -> str:
    part = f"{100 * progress.scanned / progress.total:.0f} %" if progress.total else "100 %"
    return f"{' '.join(progress.territories)}: {progress.scanned:,} of about {progress.total:,} leads ({part})"


def _note(progress: Progress) -> str:
    if progress.reason and (progress.factor == 0 or (progress.factor == 1 and not progress.rate)):
        return f"waiting: {progress.reason}"
    parts = [f"{progress.rate:,.0f}/s"]
    if progress.eta is not None and not progress.done:
        parts.append(f"{_duration(progress.eta)} left")
    parts.append(f"slices of {progress.slice_rows:,}")
    if progress.deferred:
        parts.append(f"{progress.deferred:,} locked")
    if progress.reason:
        parts.append(
            f"slowed to {progress.factor * 100:.0f} %: {progress.reason}" if progress.factor < 1 else progress.reason
        )
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
