"""What a guard that is one of a fleet hears of the others, as one more gate, and says of itself to who leads them."""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from io import FileIO
from typing import TYPE_CHECKING

from leadprotect.gates.verdict import Answer, Evaluation, Verdict, worst_verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from leadprotect.gates.record import Record

GATE = "fleet"
"""The name of the gate that says what the others mean."""

LEAVE = "LEAVE"
"""Said instead of a verdict: the others go on no more, so neither does this one."""

GONE = "whoever leads the fleet is gone"


@dataclass(frozen=True)
class Stance:
    """Where a guard stands; `verdict` is that of its own gates, '' before they were asked; no revision is the base."""

    state: str
    verdict: str
    why: str
    began: str | None
    revision: str | None


class Others:
    """The last word about them; each line of stdin is a verdict or `LEAVE`, and why. Before the first all is good."""

    def __init__(self) -> None:
        self._word = Verdict.PROCEED, ""
        self._stood: Stance | None = None

    def listen(self, interrupt: Callable[[str], None], lines: Iterable[bytes] | None = None) -> threading.Thread:
        """Hear them until the end, which is that of who speaks: nobody would be told then what happens here."""

        def hear() -> None:
            # without a buffer, whose lock a thread that waits would hold at the end of the process
            for line in FileIO(0, closefd=False) if lines is None else lines:
                verdict, _, why = line.decode().strip().partition(" ")
                if verdict == LEAVE:
                    interrupt(why)
                else:
                    self._word = Verdict(verdict), why
            interrupt(GONE)

        hearing = threading.Thread(target=hear, name="leadprotect-guard-others", daemon=True)
        hearing.start()
        return hearing

    def asked_too(self, ask: Callable[[Evaluation | None], Evaluation]) -> Callable[[Evaluation | None], Evaluation]:
        """The gates of `ask`, and this one."""

        def asked(before: Evaluation | None) -> Evaluation:
            found = ask(before and replace(before, answers=tuple(one for one in before.answers if one.name != GATE)))
            verdict, why = self._word
            return replace(found, answers=(*found.answers, Answer(GATE, "the others", None, None, verdict, why)))

        return asked

    def changed(self, record: Record) -> Stance | None:
        """Where the guard stands now; None where it stood so before."""
        own = {name: curve for name, curve in record.gates.items() if name != GATE}
        verdict = worst_verdict({Verdict(curve.verdict) for curve in own.values()}) if own else ""
        why = "; ".join(f"{name}: {curve.why}" for name, curve in own.items() if curve.verdict == verdict)
        good = verdict in ("", Verdict.PROCEED)
        stands = Stance(record.state, str(verdict), record.why if good else why, record.to, record.revision)
        if stands == self._stood:
            return None
        self._stood = stands
        return stands
