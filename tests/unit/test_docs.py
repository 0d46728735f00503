"""What the reference must name, it names."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

import leadprotect
from leadprotect.cli import main
from leadprotect.settings import KEYS

REFERENCE = Path(__file__).parents[2] / "docs/reference"


@pytest.mark.parametrize("key", KEYS)
def test_every_setting_is_documented(key: str) -> None:
    assert f"| `{key}` |" in (REFERENCE / "settings.md").read_text()


@pytest.mark.parametrize("command", main.list_commands(click.Context(main)))
def test_every_command_is_documented(command: str) -> None:
    assert f"`leadprotect {command}" in (REFERENCE / "cli.md").read_text()


@pytest.mark.parametrize("name", [name for name in leadprotect.__all__ if name[0].islower()])
def test_every_function_is_documented(name: str) -> None:
    assert f"leadprotect.{name}\n" in (REFERENCE / "python.md").read_text()
