"""`python -m kybernate.embedded.kubernetes up|down|status [--nodes N] [--folder .cluster]`."""

import asyncio
import time
from pathlib import Path

import click

from kybernate.embedded.kubernetes import cluster
from kybernate.embedded.kubernetes.assets import KubernetesMissing
from kybernate.embedded.kubernetes.cluster import ClusterProblem
from kybernate.embedded.kubernetes.control_plane import ControlPlaneFailed
from kybernate.embedded.kubernetes.network import NoFreeNetwork
from kybernate.embedded.kubernetes.node import NodeFailed
from kybernate.embedded.stack import StackMissing

PROBLEMS = (
    ClusterProblem,
    ControlPlaneFailed,
    KubernetesMissing,
    NoFreeNetwork,
    NodeFailed,
    StackMissing,
)
folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".cluster"),
    show_default=True,
    help="Holds everything of the cluster, and its kubeconfig.",
)


@click.group()
def main() -> None:
    """A Kubernetes cluster on this machine, for tests and for trying things out."""


@main.command()
@folder_option
@click.option("--nodes", type=int, default=1, show_default=True)
def up(folder: Path, nodes: int) -> None:
    """Bring it up; what runs of it already stays."""
    begin = time.monotonic()
    try:
        running = asyncio.run(cluster.up(folder, nodes))
    except BaseExceptionGroup as group:
        raise click.ClickException("\n".join(map(str, group.exceptions))) from group
    except PROBLEMS as error:
        raise click.ClickException(str(error)) from error
    names = ", ".join(node.name for node in running.nodes)
    click.echo(f"{names} ready after {time.monotonic() - begin:.0f} s; to use it:")
    click.echo(f"  export KUBECONFIG={running.kubeconfig} PATH={folder.resolve()}:$PATH")


@main.command()
@folder_option
def down(folder: Path) -> None:
    """End it and remove everything of it, whatever was killed before."""
    try:
        asyncio.run(cluster.down(folder))
    except ClusterProblem as error:
        raise click.ClickException(str(error)) from error


@main.command()
@folder_option
def status(folder: Path) -> None:
    """Show which of its processes run; fails when one does not."""
    try:
        pids = cluster.status(folder)
    except (ClusterProblem, KubernetesMissing, StackMissing) as error:
        raise click.ClickException(str(error)) from error
    for name, pid in pids.items():
        click.echo(f"{name:28} {pid or 'does not run'}")
    if not all(pids.values()):
        raise SystemExit(1)


main()
