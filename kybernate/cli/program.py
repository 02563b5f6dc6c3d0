"""The program: its commands, each imported only when it is called, and how it ends."""

from importlib import import_module
from typing import Any

import click

from kybernate.cli.exits import Interrupted

COMMANDS = {
    "checkpoint": ("kybernate.cli.orders", "Checkpoint a running container."),
    "restore": ("kybernate.cli.orders", "Resume a container from a checkpoint."),
    "get": ("kybernate.cli.views", "List actions, checkpoints or nodes."),
    "describe": ("kybernate.cli.views", "Show one action, checkpoint or node in full."),
    "delete": ("kybernate.cli.orders", "Delete a checkpoint, or forget a node that is gone."),
    "cancel": ("kybernate.cli.orders", "Cancel an action."),
    "up": ("kybernate.cli.services", "Run everything this host needs, in one process."),
    "controller": ("kybernate.cli.services", "Run a controller."),
    "worker": ("kybernate.cli.services", "Run the worker of a node."),
    "node": ("kybernate.cli.node", "Prepare this node for restores into pods."),
    "demo": ("kybernate.cli.services", "Show the whole way round with a container that counts."),
}

EPILOG = """\b
Exit codes:
  0    done
  1    the action failed or was cancelled
  2    wrong usage
  3    no controller answers, or none reaches NATS
  4    refused, or there is no such thing; nothing was changed
  5    the deadline passed first
  130  interrupted; an action that was under way goes on
"""


class Program(click.Group):
    """A group that imports a command when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, _ = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(module), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Interrupted("interrupted") from error


@click.command(
    cls=Program,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(package_name="kybernate")
def program() -> None:
    """Checkpoint running containers, GPU memory included, and resume them."""
