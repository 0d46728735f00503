"""What a shell completes, as it asks for it: commands, territories of the database, revisions of the chain."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from leadprotect.cli import main
from tests.support.revisions import HEAD

if TYPE_CHECKING:
    from tests.support.database import Database

pytestmark = pytest.mark.profiles("pg18")


def completed(line: str, **environment: str) -> list[str]:
    """What bash is told after <TAB> at the end of a line; the program answers by the name that the script calls."""
    words = line.split(" ")
    asks = {"_LEADPROTECT_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    run = "import sys; sys.argv[0] = 'leadprotect'; from leadprotect.cli import main; main(prog_name='leadprotect')"
    done = subprocess.run(
        [sys.executable, "-c", run], env=os.environ | asks | environment, text=True, capture_output=True, check=False
    )
    assert "" == done.stderr
    return [answer.partition(",")[2] for answer in done.stdout.splitlines() if answer]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_of_its_own(shell: str) -> None:
    ran = CliRunner().invoke(main, ["completion", shell])
    assert (0, True) == (ran.exit_code, "_LEADPROTECT_COMPLETE" in ran.output)


def test_another_shell_is_wrong_usage() -> None:
    assert 2 == CliRunner().invoke(main, ["completion", "tcsh"]).exit_code


def test_commands_and_options_are_completed() -> None:
    assert ["rehearse", "repair"] == [one for one in completed("leadprotect re") if one != "redteam"]
    assert "--json" in completed("leadprotect status --j")


def test_territories_come_from_the_database(expanded: Database) -> None:
    assert expanded.url
    assert ["CH", "DE"] == completed("leadprotect backfill run ")
    assert ["DE"] == completed("leadprotect backfill run d")
    assert ["CH", "DE"] == completed("leadprotect territory remove ")
    for command in ("owner show", "rules list", "audit list", "scripts x"):
        assert ["CH", "DE"] == completed(f"leadprotect {command} --territory ")


def test_a_database_that_does_not_answer_completes_nothing_and_says_nothing() -> None:
    nowhere = {"DATABASE_URL": "postgresql://somebody@127.0.0.1:1/nothing"}
    assert [] == completed("leadprotect backfill run ", **nowhere)
    assert [] == completed("leadprotect backfill run ", LEADPROTECT_SCHEMA="pg_wrong", **nowhere)


def test_revisions_come_from_the_chain() -> None:
    assert HEAD in completed("leadprotect rollback --to lp_")
    assert ["base"] == completed("leadprotect rollback --to b")
