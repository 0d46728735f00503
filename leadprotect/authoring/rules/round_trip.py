"""A revision runs, is undone, and runs again: nothing is lost on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadprotect.authoring.finding import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadprotect.authoring.walk import Trial

_SHOWN = 3


def round_trip(step: Trial) -> Iterator[Problem]:
    """A rollback is asked for when nobody has the time to find out what it takes away.

    What may be lost is declared: ``loses = {"public.notes": "nobody has written any before contract"}``.
    """
    one = step.revision
    for way in ("upgrade", "again"):
        if way in step.failed:
            said = "fails" if way == "upgrade" else "fails after it was undone"
            yield Problem("round-trip", one.file, _line(step, "upgrade"), f"upgrade() {said}: {step.failed[way]}",
                          "mend it; an empty PostgreSQL and the revisions before it are all it may need")  # fmt: skip
    if "downgrade" in step.failed:
        yield Problem("round-trip", one.file, _line(step, "downgrade"),
                      f"downgrade() fails: {step.failed['downgrade']}",
                      "undo what upgrade() does, in the opposite order")  # fmt: skip
    declared = one.values.get("loses") or {}
    lost = {name: how for name, how in step.lost.items() if name.removeprefix("rows of ") not in declared}
    for name, how in list(lost.items())[:_SHOWN]:
        more = f" (and {len(lost) - _SHOWN} more)" if len(lost) > _SHOWN and name == list(lost)[_SHOWN - 1] else ""
        yield Problem("round-trip", one.file, _line(step, "downgrade"), f"{name}: {how}{more}",
                      "move what was written away instead of dropping it, or declare it in loses = {...}")  # fmt: skip


def _line(step: Trial, way: str) -> int:
    function = step.revision.function(way)
    return function.lineno if function else 1
