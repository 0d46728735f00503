"""What ``alembic upgrade --sql`` writes makes the same schema as the upgrade itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from leadprotect.authoring.finding import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadprotect.authoring.walk import Trial


def offline_equals_online(step: Trial) -> Iterator[Problem]:
    """Where a DBA runs the script, nothing asks the database in between.

    Source: https://alembic.sqlalchemy.org/en/latest/offline.html
    """
    one = step.revision
    for way in ("upgrade", "downgrade"):
        if said := step.failed.get(f"{way} --sql"):
            yield Problem("offline-equals-online", one.file, _line(step, way),
                          f"{way}() can't be written as SQL: {said}",
                          "let SQL ask what it needs: a DO block, or INSERT ... SELECT")  # fmt: skip
    for name, how in step.offline.items():
        said = f"its script fails: {how}" if name == "it" else f"{name} {how} where its script was run instead"
        yield Problem("offline-equals-online", one.file, _line(step, "upgrade"), said,
                      "decide in SQL, not in Python, what is to be done")  # fmt: skip


def _line(step: Trial, way: str) -> int:
    function = step.revision.function(way)
    return function.lineno if function else 1
