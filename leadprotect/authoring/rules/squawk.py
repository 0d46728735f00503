"""What squawk has to say about the SQL of a revision, where squawk is installed."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from leadprotect import processes
from leadprotect.authoring.finding import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from leadprotect.authoring.chain import RevisionChain
    from leadprotect.authoring.walk import Trial

CONFIG = ".squawk.toml"
# what the other rules say better, or the opposite of
_OTHERS = (
    "ban-char-field", "prefer-bigint-over-int", "prefer-bigint-over-smallint", "prefer-identity",
    "prefer-robust-stmts", "prefer-text-field", "require-statement-timeout", "require-timeout-settings",
)  # fmt: skip
# what contract is for
_DROPS = ("ban-drop-column", "ban-drop-table")


def squawk_program() -> str | None:
    """Its path; beside this Python first."""
    return shutil.which("squawk", path=str(Path(sys.executable).parent)) or shutil.which("squawk")


def squawk(step: Trial, chain: RevisionChain) -> Iterator[Problem]:
    """Source: https://squawkhq.com/docs/rules."""
    program = squawk_program()
    script = "SET lock_timeout = '100ms';\n" + step.scripts.get("upgrade", "")
    if program is None or "upgrade --sql" in step.failed:
        return
    own = chain.ini.parent / CONFIG
    left_out = (*_OTHERS, *_DROPS) if step.revision.phase == "contract" else _OTHERS
    how = ["--config", str(own)] if own.is_file() else ["--exclude", ",".join(left_out)]
    command = [program, "--reporter", "json", "--pg-version", "15", *how]
    done = processes.run_program(command, text=script)
    lines = script.splitlines()
    for found in json.loads(done.stdout or "[]"):
        text = lines[min(found["line"], len(lines) - 1)].strip()  # it counts from 0
        yield Problem(
            "squawk", step.revision.file, _line(step, text), f"{found['rule_name']}: {found['message']}",
            found["help"] or f"see https://squawkhq.com/docs/{found['rule_name']}",
        )  # fmt: skip


def _line(step: Trial, text: str) -> int:
    """Where the file has the line of the script; its upgrade() where the script is put together."""
    function = step.revision.function("upgrade")
    whole = step.revision.source.splitlines()
    same = [number for number, line in enumerate(whole, start=1) if text and text.rstrip(";") in line]
    return same[0] if same else function.lineno if function else 1
