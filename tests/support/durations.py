"""How long each test takes, as the last recorded run found: the longest begin first, and `--quick` leaves them out.

`make durations` writes the record anew; a test that isn't in it yet counts as quick.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

RECORD = Path(__file__).with_name("durations.json")
SLOW_S = 0.25
"""From here on a test is in the record; below it the order makes no difference."""


def duration_of(item: pytest.Item) -> float:
    """Seconds of the longest case of a test, its setup counted; 0 for one that is quick, or new."""
    return _recorded().get(function_of(item.nodeid), 0.0)


def function_of(nodeid: str) -> str:
    """The test without its case."""
    return nodeid.partition("[")[0].partition("@")[0]


class Recorder:
    """Writes the record when a run has ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration

    def pytest_sessionfinish(self) -> None:
        longest: dict[str, float] = {}
        for nodeid, seconds in self.seconds.items():
            longest[function_of(nodeid)] = max(seconds, longest.get(function_of(nodeid), 0.0))
        # one digit: no two runs agree in more
        slow = {test: float(f"{seconds:.1g}") for test, seconds in sorted(longest.items()) if seconds >= SLOW_S}
        RECORD.write_text(json.dumps(slow, indent=0) + "\n", encoding="utf-8")


@cache
def _recorded() -> dict[str, float]:
    found: dict[str, float] = json.loads(RECORD.read_text(encoding="utf-8"))
    return found
