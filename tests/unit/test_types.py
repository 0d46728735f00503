"""What a checker of types tells a service: a misspelt reason or action, and what each call gives."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from mypy import api

import leadprotect
from leadprotect import Action, Decision, Reason, aio
from leadprotect.access.attempts import ACTIONS
from leadprotect.decision import ALLOWED, DENIALS, PROTECTIONS

ROOT = Path(__file__).parents[2]

SERVICE = """
from uuid import UUID
import leadprotect
from leadprotect import aio
from psycopg import AsyncConnection, Connection
from sqlalchemy.orm import Session

def sync(conn: Connection, session: Session, lead: UUID, number: int) -> None:
    reveal_type(leadprotect.can_edit(conn, lead))
    reveal_type(leadprotect.can_edit_many(session, [lead]))
    reveal_type(leadprotect.can_edit_many(session, [number]))
    reveal_type(leadprotect.explain(conn, lead).reason)
    reveal_type(leadprotect.editable_leads(conn).leads)
    with leadprotect.acting_as(session, lead, "DE") as nothing:
        reveal_type(nothing)
    leadprotect.assert_edit(conn, lead, action="VIEW")
    leadprotect.assert_edit(conn, lead, action="edit")  # wrong
    if leadprotect.explain(conn, lead).reason == "ownre":  # wrong
        pass
    leadprotect.can_edit(lead, lead)  # wrong
    leadprotect.grant(conn, lead, "COLLABORATOR")
    leadprotect.grant(conn, lead, "COLABORATOR")  # wrong
    reveal_type(leadprotect.rules(conn)[0].protection)

async def awaited(conn: AsyncConnection, lead: UUID) -> None:
    reveal_type(await aio.can_edit(conn, lead))
    reveal_type(await aio.can_edit_many(conn, ["a lead"]))
    async with aio.editing(conn, lead, "seller", "DE") as nothing:
        reveal_type(nothing)
    leadprotect.can_edit(conn, lead)  # wrong
"""
REASONS = f"Literal{[*DENIALS, 'unprotected', 'owner', 'collaborator', 'manager']}"
REVEALED = [
    "bool",
    "dict[UUID, bool]",
    "dict[int, bool]",
    REASONS,
    "tuple[Decision, ...]",
    "None",
    f"Literal{[*PROTECTIONS]}",
    "bool",
    "dict[str, bool]",
    "None",
]


WRONG = [number for number, line in enumerate(SERVICE.splitlines(), 1) if line.endswith("# wrong")]


@pytest.mark.nightly("by day pyright tells the same, and mypy reads all of ours in `make lint`")
def test_a_service_that_mypy_checks_strictly_learns_what_is_wrong(tmp_path: Path) -> None:
    service = tmp_path / "service.py"
    service.write_text(SERVICE)
    said, _, _ = api.run(
        ["--strict", "--config-file=", "--cache-dir", str(tmp_path / "cache"), "--no-incremental", str(service)]
    )
    revealed = re.findall(r'Revealed type is "(.+)"', said.replace("'] | Literal['", "', '"))
    assert REVEALED == [re.sub(r"\b(?:\w+\.)+(?=\w)", "", one).replace("builtins.", "") for one in revealed]
    assert WRONG == sorted({int(line) for line in re.findall(r"service\.py:(\d+): error", said)}), said


def test_a_service_that_pyright_checks_strictly_learns_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "service.py").write_text(SERVICE)
    (tmp_path / "pyrightconfig.json").write_text('{"typeCheckingMode": "strict"}')
    run = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "service.py"]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    done = subprocess.run(run, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    said = json.loads(done.stdout)["generalDiagnostics"]
    revealed = [re.findall(r' is "(.+)"$', one["message"]) for one in said if one["severity"] == "information"]
    assert [[one] for one in REVEALED] == revealed
    assert WRONG == [one["range"]["start"]["line"] + 1 for one in said if one["severity"] == "error"], said


def test_every_public_name_is_importable_and_none_is_shadowed_by_a_module() -> None:
    for name in leadprotect.__all__:
        assert getattr(leadprotect, name) is not None
        assert not (ROOT / "leadprotect" / f"{name}.py").exists()
        assert not (ROOT / "leadprotect" / name).exists()
    assert set(aio.__all__) <= set(leadprotect.__all__)


def test_the_types_hold_what_is_checked_when_it_runs() -> None:
    assert {*DENIALS, *ALLOWED} == {*get_args(Reason)}
    assert get_args(Action) == ACTIONS
    assert "Reason" == Decision.__annotations__["reason"]
