"""The chain of revisions and its phases: expand prepares, migrate fills, contract enforces.

Phases come in this order inside one release's chain, and start anew after its contract: only there
may a phase come before the one it follows. An id tells its phase, and files sort as the chain is
linked; tests/migrations/test_lint.py holds both, so that nothing has to be loaded to know them.
"""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

from leadprotect.settings.files import version_path

ORDER = ("expand", "migrate", "contract")


def chain() -> tuple[str, ...]:
    """The ids of all revisions that this version carries, the first one first."""
    return tuple(sorted(path.stem for path in Path(version_path()).glob("lp_*.py")))


def file(revision: str) -> Path:
    """Where a revision's source is."""
    return Path(version_path()) / f"{revision}.py"


def phase(revision: str) -> str:
    """The phase of a revision, as its id tells: expand, migrate or contract."""
    return revision.split("_")[2]


def before(wanted: str) -> tuple[str, ...]:
    """The revisions before the first one of the phase `wanted`; the last of them is where its undoing ends."""
    return tuple(takewhile(lambda revision: phase(revision) != wanted, chain()))


def reached(present: str | None) -> str:
    """The furthest phase of what is applied: none at the base, unknown at a revision of a newer version.

    What is enforced stays so while a later release expands again.
    """
    if present is None:
        return "none"
    ids = chain()
    if present not in ids:
        return "unknown"
    return max((phase(revision) for revision in ids[: ids.index(present) + 1]), key=ORDER.index)


def through(present: str | None) -> tuple[str, ...]:
    """The revisions that are applied at `present`, the first one first; empty at the base and at a newer version's."""
    ids = chain()
    return ids[: ids.index(present) + 1] if present in ids else ()


def pending(present: str | None) -> tuple[str, ...]:
    """The revisions after `present`, the first one first; empty at a revision of a newer version."""
    ids = chain()
    return ids if present is None else ids[ids.index(present) + 1 :] if present in ids else ()
