"""What a terminal, a log and a program are told about a running backfill."""

from __future__ import annotations

import io
import json
from dataclasses import replace

from rich.console import Console

from leadprotect.backfilling.progress import Progress
from leadprotect.cli.progress import Bar, Lines

AT_FULL_SPEED = Progress(
    ("DE",), scanned=500, assigned=400, deferred=0, total=1000, seconds=5.0, rate=100.0, slice_rows=50, factor=1.0,
    reason=None,
)  # fmt: skip
SLOWED = replace(AT_FULL_SPEED, factor=0.5, reason="the assignments are being vacuumed")
HELD = replace(AT_FULL_SPEED, factor=0.0, reason="DE is paused: no reason given")


def lines(*told: Progress, as_json: bool = False) -> list[str]:
    stream = io.StringIO()
    with Lines(stream, as_json=as_json) as watcher:
        for one in told:
            watcher(one)
    return stream.getvalue().splitlines()


def test_a_line_tells_why_it_is_slow_and_why_it_holds() -> None:
    slowed, held = lines(SLOWED, HELD)

    assert slowed.endswith("slices of 50, slowed to 50 %: the assignments are being vacuumed")
    assert held.endswith("(50 %), waiting: DE is paused: no reason given")


def test_the_bar_tells_why_it_is_slow() -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True, record=True)
    with Bar(console) as bar:
        bar(SLOWED)

    assert "slowed to 50 %: the assignments are being vacuumed" in console.export_text()


def test_a_program_is_told_the_factor_and_the_reason() -> None:
    (line,) = lines(SLOWED, as_json=True)

    assert (0.5, SLOWED.reason) == (json.loads(line)["factor"], json.loads(line)["reason"])


def test_what_the_workers_wait_for_is_no_slowing_down() -> None:
    (line,) = lines(replace(AT_FULL_SPEED, reason="2 leads are locked by others"))

    assert line.endswith("slices of 50, 2 leads are locked by others")


def test_numbers_that_change_every_second_are_no_line_every_second() -> None:
    behind = [replace(SLOWED, reason=f"a replica is {seconds} s behind") for seconds in (3.1, 4.2, 2.9)]

    assert 1 == len(lines(*behind))
    assert 3 == len(lines(AT_FULL_SPEED, *behind, replace(behind[0], factor=0.0)))
