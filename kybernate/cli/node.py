"""Commands for the node that they run on: make it ready for restores into pods, and undo that."""

import os
from pathlib import Path, PurePosixPath
from typing import Any

import click
import msgspec

from kybernate.cli import settings
from kybernate.cli.exits import Refused
from node_worker.install import distributions, files
from node_worker.install.configuration import Unusable
from node_worker.install.installer import Installer, Plan, Wanted
from node_worker.install.node import InstallProblem

_folder = click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path)
_inside = click.Path(path_type=PurePosixPath)
_root = settings.option(
    "--root",
    env="NODE_ROOT",
    type=_folder,
    default=Path("/"),
    show_default=True,
    help="Where the node's file system is seen; its programs are called by chroot then.",
)
_distribution = settings.option(
    "--distribution",
    env="DISTRIBUTION",
    type=click.Choice(distributions.NAMES),
    help="What brings containerd on this node; default: what is found.",
)
_config = settings.option(
    "--config",
    env="CONTAINERD_CONFIG",
    type=_inside,
    help="containerd's configuration file; default: the distribution's.",
)
_containerd = settings.option(
    "--containerd-program",
    env="CONTAINERD_PROGRAM",
    type=_inside,
    help="The containerd that checks the configuration; default: the distribution's.",
)
_prefix = settings.option(
    "--prefix",
    env="PREFIX",
    type=_inside,
    default=PurePosixPath("/opt/kybernate"),
    show_default=True,
    help="Where the OCI runtime and CRIU are put.",
)
_dry_run = click.option("--dry-run", is_flag=True, help="Show what would change, change nothing.")
_restart = click.option(
    "--restart/--no-restart",
    default=True,
    show_default=True,
    help="Restart containerd when its configuration has changed; containers run on.",
)


@click.group()
def node() -> None:
    """Prepare this node for restores into pods, or undo that."""


@node.command()
@_root
@_distribution
@_config
@_containerd
@_prefix
@settings.option(
    "--runtime-state",
    env="RUNTIME_STATE",
    type=_inside,
    default=PurePosixPath("/run/kybernate"),
    show_default=True,
    help="Folder in which the OCI runtime meets the worker.",
)
@settings.option(
    "--runc", env="RUNC", type=_inside, help="The runc to call; default: the one used now."
)
@settings.option(
    "--criu",
    env="CRIU",
    type=_folder,
    help="Folder with bin/criu and its lib/, to be copied; default: criu as the node has it.",
)
@_restart
@_dry_run
def install(**given: Any) -> None:
    """Put the OCI runtime in place and tell containerd of it.

    Adds the runtimes `kybernate` and `kybernate-gpu`; nothing that is there is changed. Safe to
    call again: what is as wanted is left alone.
    """
    wanted = msgspec.structs.replace(
        _wanted(given), state=given["runtime_state"], runc=given["runc"], criu=given["criu"]
    )
    _carry_out(wanted, given, adding=True)


@node.command()
@_root
@_distribution
@_config
@_containerd
@_prefix
@_restart
@_dry_run
def uninstall(**given: Any) -> None:
    """Take everything out that `install` has put in."""
    _carry_out(_wanted(given), given, adding=False)


def _wanted(given: dict[str, Any]) -> Wanted:
    return Wanted(
        root=given["root"],
        distribution=given["distribution"] or "",
        config=given["config"],
        containerd=given["containerd_program"],
        prefix=given["prefix"],
    )


def _carry_out(wanted: Wanted, given: dict[str, Any], *, adding: bool) -> None:
    try:
        installer = Installer(wanted)
        plan = installer.install() if adding else installer.uninstall()
        _show(plan, installer)
        if not plan.changes or given["dry_run"]:
            return
        if not adding and (used := installer.in_use()):
            raise InstallProblem(
                f"{len(used)} containers run by {wanted.prefix}/bin, such as {used[0]}; delete "
                "the pods of the runtime classes kybernate and kybernate-gpu first"
            )
        _need_root(wanted)
        restarted = installer.carry_out(plan, restart=given["restart"])
    except (InstallProblem, Unusable, OSError) as error:
        raise Refused(str(error)) from error
    _tell_of_restarts(plan, restarted)


def _need_root(wanted: Wanted) -> None:
    if wanted.root == Path("/") and os.geteuid() != 0:
        raise InstallProblem(
            "this needs root: run it as root, or with --dry-run to see the changes"
        )


def _show(plan: Plan, installer: Installer) -> None:
    click.echo(f"containerd of: {installer.distribution.name}")
    for change in plan.programs:
        click.echo(files.named(change), nl=False)
    for change in plan.entries:
        click.echo(files.shown(change), nl=False)
    if not plan.changes:
        click.echo("nothing to change")


def _tell_of_restarts(plan: Plan, restarted: tuple[str, ...]) -> None:
    for name in restarted:
        click.echo(f"restarted {name}")
    if plan.entries and not restarted:
        click.echo("containerd reads its new configuration when it is restarted: do that")
