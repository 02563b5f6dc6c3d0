"""What the documentation lists is complete."""

from pathlib import Path

import click
import pytest

from kybernate.cli.program import COMMANDS, program
from schemas import reasons

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs/operations.md").read_text()
README = (ROOT / "README.md").read_text()
REASONS = [value for name, value in vars(reasons).items() if name.isupper()]


@pytest.mark.parametrize("reason", REASONS)
def test_every_reason_is_explained(reason: str) -> None:
    assert f"`{reason}`" in OPERATIONS


@pytest.mark.parametrize("name", ["controller", "worker", "up"])
def test_every_setting_of_a_service_is_listed(name: str) -> None:
    command = program.get_command(click.Context(program), name)
    assert command is not None
    for parameter in command.params:
        assert isinstance(parameter, click.Option)
        assert f"`{parameter.opts[0]}`" in OPERATIONS
        assert parameter.envvar is not None
        assert f"`{parameter.envvar}`" in OPERATIONS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_readme(name: str) -> None:
    assert f"`{name}" in README
