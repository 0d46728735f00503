"""The tutorial's commands, run in order in a kept demo, do what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.slow("it does everything that a newcomer does")

PAGE = Path(__file__).parents[2] / "docs/tutorial/index.md"
BLOCK = re.compile(r"^```(console|python|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def shell() -> Iterator[str]:
    """The lines that a kept demo prints for copying: a folder, an URL and a PATH."""
    command = [sys.executable, "-m", "leadprotect", "demo", "--scale", "0.02", "--keep"]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    lines = [line.strip() for line in told.splitlines()]
    end = next(line for line in lines if line.startswith("kill -INT ")).split("#", maxsplit=1)[0]
    try:
        yield "\n".join(line for line in lines if line.startswith(("cd ", "export ")))
    finally:
        subprocess.run(["sh", "-c", end], check=True)


def test_the_tutorial_runs_from_the_first_line_to_the_last(shell: str) -> None:
    outputs: list[str] = []
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LEADPROTECT_")}
    for kind, block in BLOCK.findall(PAGE.read_text()):
        if kind == "text":
            assert outputs[-1] == block
            continue
        if kind == "python":
            script = f"{shell}\n{sys.executable} - <<'END'\n{block}END\n"
        else:
            script = shell + "\n" + "\n".join(line.removeprefix("$ ") for line in block.splitlines())
        done = subprocess.run(
            ["sh", "-ec", script], check=False, capture_output=True, text=True, env=environment, timeout=120
        )
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"
        outputs.append(done.stdout)
    before, after, forged, audit, again = (outputs[number] for number in (1, 4, 5, 7, 8))
    assert ("CH" in before, "CH |" in after.split("(2 rows)")[0], "CH" in again) == (True, False, True)
    assert re.search(r"^ +0$", forged, re.MULTILINE)
    assert "seller_de | EDIT   | DENY    | not_owner" in audit
