from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

import click
import pytest
from click.testing import CliRunner

from leadprotect import settings
from leadprotect.cli import COMMANDS as SUMMARIES
from leadprotect.cli import main
from leadprotect.errors import InvalidRequest
from tests.support.commands import members

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def commands(group: click.Group, *path: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in members(group).items():
        yield " ".join([*path, name]), command
        if isinstance(command, click.Group):
            yield from commands(command, *path, name)


COMMANDS = dict(commands(main))


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_says_what_it_does(name: str) -> None:
    first = (COMMANDS[name].help or "").split("\n\n")[0].strip()
    assert first.endswith(".")


@pytest.mark.parametrize(
    "bytes_", [b"\xef\xbb\xbf[alembic]\n", b"[alembic\n", "[alembic]\n".encode("utf-16")], ids=repr
)
@pytest.mark.parametrize(
    "command",
    ["validate", "next", "new x --phase expand", "rollback", "apply", "init", "guard -- alembic upgrade head"],
)
def test_an_ini_file_that_alembic_can_t_read_is_one_error_before_it_tries(
    command: str, bytes_: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", "postgresql://127.0.0.1:1/nowhere")
    (tmp_path / "alembic.ini").write_bytes(bytes_)
    done = CliRunner().invoke(main, command.split())
    assert (True, "Error: ") == (done.exit_code in {1, 2}, done.output[:7])
    assert "alembic.ini" in done.output


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_explained(name: str) -> None:
    options = [parameter for parameter in COMMANDS[name].params if isinstance(parameter, click.Option)]
    assert [] == [option.name for option in options if not option.help]


def test_the_page_of_help_says_of_a_command_what_the_command_says() -> None:
    assert {name: command.get_short_help_str(200) for name, command in members(main).items()} == SUMMARIES


def test_the_version_is_the_package_s() -> None:
    assert f"leadprotect, version {version('leadprotect')}\n" == CliRunner().invoke(main, ["--version"]).output


@pytest.fixture
def failing() -> Iterator[list[BaseException]]:
    """A command that raises what the test puts into the list."""
    raises: list[BaseException] = []

    @main.command()
    def fail() -> None:
        raise raises.pop()

    yield raises
    del main.commands["fail"]


def test_an_error_of_ours_is_one_line_and_exit_code_1(failing: list[BaseException]) -> None:
    failing.append(InvalidRequest("limit: 0 is too small"))
    result = CliRunner().invoke(main, ["fail"])
    assert (1, "", "Error: limit: 0 is too small\n") == (result.exit_code, result.stdout, result.stderr)


def test_ctrl_c_is_exit_code_130_without_a_stack_trace(failing: list[BaseException]) -> None:
    failing.append(KeyboardInterrupt())
    result = CliRunner().invoke(main, ["fail"])
    assert (130, "", "stopped\n") == (result.exit_code, result.stdout, result.stderr)


def test_wrong_usage_is_exit_code_2() -> None:
    assert 2 == CliRunner().invoke(main, ["no-such-command"]).exit_code


@pytest.fixture
def shown() -> Iterator[None]:
    """A command that says in which schema it would work."""

    @main.command()
    def schema() -> None:
        click.echo(settings.current().schema)

    yield
    del main.commands["schema"]


@pytest.mark.usefixtures("shown")
@pytest.mark.parametrize("option", ["-c", "--config"])
def test_the_ini_file_is_named_by_an_option(option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "crm.ini").write_text("[leadprotect]\nschema = named\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert "named\n" == CliRunner().invoke(main, [option, "crm.ini", "schema"]).stdout
    missing = CliRunner().invoke(main, [option, "none.ini", "schema"])
    assert f"Error: LEADPROTECT_CONFIG or --config: there is no file {tmp_path}/none.ini\n" == missing.stderr
    assert 1 == missing.exit_code
