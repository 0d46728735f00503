"""Which steps of a command are of our branch, and which of a host's beside it in one chain of folders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from alembic import context
from alembic.runtime.migration import RevisionStep
from alembic.util import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BRANCH = "leadprotect"
"""The label of our revisions."""


def given_opts() -> dict[str, Any]:
    """What the command wants of its env.py; Alembic shows it only after `configure()`, which changes it."""
    given: dict[str, Any] = vars(context)["_proxy"].context_opts
    return given


def whose(opts: dict[str, Any]) -> tuple[bool, bool]:
    """Whether a command that writes is about our branch, and about the host's."""
    if "destination_rev" not in opts:
        return False, True
    wanted = opts["destination_rev"]
    named = [wanted] if isinstance(wanted, str) or wanted is None else list(wanted)
    if named in (["heads"], ["base"], [None]):
        return True, True
    ours = [_names_ours(str(one)) for one in named]
    return any(ours), not all(ours)


def _names_ours(name: str) -> bool:
    branch, at, _ = name.partition("@")
    if at or name in (BRANCH, "head"):
        return branch == BRANCH
    try:
        found = context.script.get_revision(name)
    except CommandError:
        return False  # relative to where the host stands, or no revision at all
    return hasattr(found.module, "phase")


def of_branch(asked: Callable[..., Any], *, ours: bool) -> Callable[..., Iterator[Any]]:
    """The steps of one branch alone: each has a version table of its own, and is at its base in the other's."""

    def steps(heads: Any, migration: Any) -> Iterator[Any]:
        return (step for step in asked(heads, migration) if _is_ours(step) == ours)

    return steps


def _is_ours(step: Any) -> bool:
    if isinstance(step, RevisionStep):
        return hasattr(step.revision.module, "phase")
    return any(name.startswith("lp_") for name in (*step.from_revisions, *step.to_revisions))


def complete(asked: Callable[..., Any]) -> Callable[..., Any]:
    """For ``check`` and ``revision``: what waits for our gate, or was rolled back, is no reason to refuse them."""

    def steps(heads: Any, migration: Any) -> Any:
        if "revision_context" not in given_opts():
            return asked(heads, migration)
        script = context.script
        ours = [one for one in script.get_heads() if hasattr(script.get_revision(one).module, "phase")]
        theirs = [one for one in heads if not hasattr(script.get_revision(one).module, "phase")]
        return asked((*theirs, *ours), migration)

    return steps


def nothing(_heads: Any, _migration: Any) -> tuple[Any, ...]:
    """A command that is about our branch alone."""
    return ()
