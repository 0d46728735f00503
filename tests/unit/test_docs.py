"""What the reference must name, it names."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import click
import pytest

import leadprotect
from leadprotect import errors
from leadprotect.cli import main
from leadprotect.decision import ALLOWED, DENIALS
from leadprotect.metrics import KINDS
from leadprotect.settings import KEYS
from tests.security.attacks import ATTACKS as TABLE
from tests.support import cli_page
from tests.support.doctor_page import PAGE, page
from tests.support.house import MODULES, defined

ERRORS = [name for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, Exception)]
ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs/reference"
ATTACKS = (ROOT / "docs/explanation/threat-model.md").read_text()


@pytest.mark.parametrize("key", KEYS)
def test_every_setting_is_documented(key: str) -> None:
    assert f"| `{key}` |" in (REFERENCE / "settings.md").read_text()


@pytest.mark.parametrize("command", main.list_commands(click.Context(main)))
def test_every_command_is_documented(command: str) -> None:
    assert f"`leadprotect {command}" in (REFERENCE / "cli.md").read_text()


def test_the_page_of_doctor_is_current() -> None:
    assert page() == PAGE.read_text(encoding="utf-8"), "run `make doctor`"


def test_the_page_of_options_is_current() -> None:
    assert cli_page.page() == cli_page.PAGE.read_text(encoding="utf-8"), "run `make options`"


@pytest.mark.parametrize("metric", ["lead_access_assert_allow_total", "lead_access_assert_deny_total", *KINDS])
def test_every_metric_and_kind_of_call_is_documented(metric: str) -> None:
    assert f"`{metric}`" in (REFERENCE / "python.md").read_text()


@pytest.mark.parametrize("reason", [*ALLOWED, *DENIALS])
def test_every_reason_is_documented(reason: str) -> None:
    assert f"`{reason}`" in (ROOT / "docs/explanation/decisions.md").read_text()


@pytest.mark.parametrize("name", leadprotect.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    if name in ERRORS:  # automodule shows each of them
        assert name in re.findall(r"(?:── | {4})(\w+)", errors.__doc__ or "")
    else:
        assert f":: leadprotect.{name}\n" in (REFERENCE / "python.md").read_text()


def test_every_error_is_a_public_name() -> None:
    assert {*ERRORS} <= set(leadprotect.__all__)


def test_the_public_names_are_sorted_as_a_reader_looks_them_up() -> None:
    assert sorted(leadprotect.__all__) == leadprotect.__all__


def test_what_a_public_name_takes_gives_or_raises_is_public() -> None:
    ours = {name for path in MODULES.values() for name in defined(path, ast.ClassDef)}
    told = {word for name in leadprotect.__all__ for word in re.findall(r"\b[A-Z]\w+", said_of(name))}
    # a host names them by hand: leadprotect.settings.parse
    assert (told & ours) - {"Settings"} <= set(leadprotect.__all__)
    assert {"Limits", "Backfilled", "Locked", "BackfillIncomplete"} <= told


def said_of(name: str) -> str:
    """The annotations of a function or of a class's fields, and the docstring, which names the errors."""
    public = getattr(leadprotect, name)
    return " ".join([str(public.__doc__), *map(str, getattr(public, "__annotations__", {}).values())])


@pytest.mark.parametrize("row", re.findall(r"\| ([^|]*`test_\w+\.py`[^|]*) \|$", ATTACKS, re.MULTILINE))
def test_a_test_that_the_threat_model_names_is_there(row: str) -> None:
    for file, names in re.findall(r"`(test_\w+\.py)`: ((?:`\w+`(?:, )?)+)", row):
        wanted = set(re.findall(r"`(\w+)`", names))
        # two folders may have a file of one name
        assert wanted <= {
            entry.name
            for path in (REFERENCE.parents[1] / "tests").rglob(file)
            for entry in ast.parse(path.read_text()).body
            if isinstance(entry, ast.FunctionDef)
        }


def test_an_attack_that_the_threat_model_names_is_in_the_table() -> None:
    named = re.findall(r"`attacks\.py`: ((?:`[^`]+`(?:, )?)+)", ATTACKS)
    assert len(named) > 20
    assert {name for row in named for name in re.findall(r"`([^`]+)`", row)} <= {str(attack) for attack in TABLE}
