"""What happened in a guard's run, as its page shows it; times in seconds since it began."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from leadprotect.gates.machine import Phase
from leadprotect.gates.verdict import Verdict, finite

if TYPE_CHECKING:
    from leadprotect.gates.machine import State
    from leadprotect.gates.verdict import Evaluation

_MOST_POINTS = 1200
_MOST_LINES = 400


@dataclass
class Period:
    """Something that lasted, or lasts still: `end` is None until it is over."""

    what: str
    begin: float
    end: float | None = None
    why: str = ""


@dataclass
class Curve:
    """One question over time: a point is a time, a value (None without one) and a verdict."""

    query: str
    threshold: float | None = None
    verdict: str = ""
    why: str = ""
    points: list[tuple[float, float | None, str]] = field(default_factory=list)


@dataclass
class Record:
    """A run as it goes on; `began_at` in UTC, `to` the revision that a rollback would go to."""

    command: str
    database: str
    interval: float
    began_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    dry_run: bool = False
    to: str | None = None
    revision: str | None = None
    bake: float = 0.0
    seconds: float = 0.0
    state: str = str(Phase.PREFLIGHT)
    why: str = ""
    code: int | None = None
    steps: list[Period] = field(default_factory=list)
    pauses: list[Period] = field(default_factory=list)
    verdicts: list[Period] = field(default_factory=list)
    phases: list[Period] = field(default_factory=list)
    gates: dict[str, Curve] = field(default_factory=dict)
    lines: deque[tuple[float, str, str]] = field(default_factory=lambda: deque(maxlen=_MOST_LINES))
    following: list[str] = field(default_factory=list)

    def evaluated(self, at: float, found: Evaluation) -> None:
        """Keep what each gate said."""
        change(self.verdicts, str(found.verdict), at)
        for answer in found.answers:
            gate = self.gates.setdefault(answer.name, Curve(answer.query))
            gate.query, gate.threshold, gate.why = answer.query, answer.threshold, answer.why
            gate.verdict = str(answer.verdict)
            value = answer.value if finite(answer.value) else None
            gate.points.append((round(at, 1), value, gate.verdict))
            if len(gate.points) > _MOST_POINTS:
                del gate.points[1::2]

    def advanced(self, at: float, state: State) -> None:
        """Keep what it does now, and each pause with its reason."""
        self.seconds, self.state, self.why, self.code = at, state.told, state.why, state.code
        change(self.phases, state.told, at)
        if state.phase is Phase.HELD:
            change(self.pauses, "paused", at, state.why)
        elif self.pauses and self.pauses[-1].end is None:
            self.pauses[-1].end = at
        if state.code is not None:
            for spans in (self.steps, self.verdicts, self.phases, self.pauses):
                if spans and spans[-1].end is None:
                    spans[-1].end = at

    def data(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self) | {
            "began_at": self.began_at.strftime("%Y-%m-%d %H:%M:%S UTC"),
            "lines": list(self.lines),
            "running": self.code is None,
            "good": self.code == 0 if self.code is not None else self._verdict is Verdict.PROCEED,
            "told": self.state.replace("_", " "),
        }

    @property
    def _verdict(self) -> Verdict:
        return Verdict(self.verdicts[-1].what) if self.verdicts else Verdict.UNKNOWN


def change(spans: list[Period], what: str, at: float, why: str = "") -> None:
    """Begin a span where something else begins; a pause keeps the reason that it began with."""
    if spans and spans[-1].end is None:
        if spans[-1].what == what:
            return
        spans[-1].end = at
    spans.append(Period(what, at, None, why))
