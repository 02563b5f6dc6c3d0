"""Commands that run: the services, until SIGINT or SIGTERM ends them, and the demo."""

import os
import socket
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from kybernate.cli import options, settings
from kybernate.cli.exits import Failed, Refused

STATE = Path("/var/lib/kybernate")
CONTAINERD = Path("/run/containerd/containerd.sock")
LAST_PORT = 65535
LONGEST_NODE = 253
"""Kubernetes' own limit."""


def _address(_context: click.Context, parameter: click.Parameter, given: str | None) -> str | None:
    if not given and parameter.name == "webhook_listen":
        return given
    host, colon, port = str(given).rpartition(":")
    if not colon or not port.isdecimal() or int(port) > LAST_PORT or not host.isprintable():
        raise click.BadParameter(f"{given!r} is no HOST:PORT; write for example 127.0.0.1:7474")
    return given


def _tokens_shown(
    _context: click.Context, _parameter: click.Parameter, given: tuple[str, ...]
) -> tuple[str, ...]:
    """One that nobody can show would lock everybody out, an empty one let everybody in."""
    for token in given:
        if not token.strip() or token != token.strip() or not token.isprintable():
            raise click.BadParameter(
                "a token is one line without spaces around it; leave it out to let everybody in"
            )
    return given


def _named(_context: click.Context, _parameter: click.Parameter, given: str) -> str:
    if not given.isprintable() or not 0 < len(given) <= LONGEST_NODE:
        raise click.BadParameter(
            f"a node's name has 1 to {LONGEST_NODE} signs on one line; this one has {len(given)}"
        )
    return given


def _whole(_context: click.Context, _parameter: click.Parameter, given: Path | None) -> Path | None:
    """Other programs, which work elsewhere, are told of it."""
    return given and given.absolute()


_listen = settings.option(
    "--listen",
    env="LISTEN",
    callback=_address,
    default=settings.DEFAULT_LISTEN,
    show_default=True,
    metavar="HOST:PORT",
    help="Where the REST API is served; port 0 takes a free one.",
)
_tokens = settings.option(
    "--token",
    "tokens",
    env="TOKEN",
    multiple=True,
    callback=_tokens_shown,
    help="Bearer token that clients have to show; several are good, none lets everybody in.",
)
_file = click.Path(exists=True, dir_okay=False, path_type=Path)
_tls_cert = settings.option(
    "--tls-cert", env="TLS_CERT", type=_file, help="Certificate of the REST API, PEM."
)
_tls_key = settings.option("--tls-key", env="TLS_KEY", type=_file, help="Its key, PEM.")
_kubernetes = settings.option(
    "--kubernetes",
    env="CUSTOM_RESOURCES",
    is_flag=True,
    help="Take KybernateCheckpoint and KybernateRestore resources as requests.",
)
_kubeconfig = settings.option(
    "--kubeconfig",
    env="KUBECONFIG",
    type=_file,
    help="How the API server is reached; default: as a pod of the cluster, or as kubectl does.",
)
_webhook = settings.option(
    "--webhook-listen",
    env="WEBHOOK_LISTEN",
    default="",
    callback=_address,
    metavar="HOST:PORT",
    help="Where the API server asks about new pods (label kybernate.io/resume); default: nowhere.",
)
_socket = click.Path(dir_okay=False, path_type=Path)
_node = settings.option(
    "--node",
    env="NODE",
    default=socket.gethostname,
    callback=_named,
    show_default="the host's name",
    help="Name of this node; one worker per name.",
)
_state = settings.option(
    "--state",
    env="STATE",
    callback=_whole,
    type=click.Path(file_okay=False, path_type=Path),
    default=STATE,
    show_default=True,
    help="Folder of everything that has to survive a restart.",
)
_checkpoints = settings.option(
    "--checkpoints",
    env="CHECKPOINTS",
    callback=_whole,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder of checkpoints; default: in the state folder.",
)

_pods = settings.option(
    "--pods",
    env="PODS",
    is_flag=True,
    help="Bring containers of Kubernetes pods back (annotation kybernate.io/restore-from).",
)
_runtime_state = settings.option(
    "--runtime-state",
    env="RUNTIME_STATE",
    callback=_whole,
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("/run/kybernate"),
    show_default=True,
    help="Where it meets the OCI runtime of such pods; STATE in kybernate-runc.conf.",
)


@click.command()
@_listen
@_tokens
@_tls_cert
@_tls_key
@_kubernetes
@_kubeconfig
@_webhook
@settings.bus
@settings.service
def controller(**given: Any) -> None:
    """Run a controller: any number of them side by side, none is special."""
    from controller import app  # noqa: PLC0415 - imported by who runs it
    from controller.settings import ControllerSettings  # noqa: PLC0415

    if given["tls_key"] and not given["tls_cert"]:
        raise click.UsageError("--tls-key is of no use without --tls-cert; name the certificate")
    chosen = ControllerSettings(
        listen=given["listen"],
        tokens=given["tokens"],
        tls_cert=given["tls_cert"],
        tls_key=given["tls_key"],
        kubernetes=given["kubernetes"],
        kubeconfig=given["kubeconfig"],
        webhook_listen=given["webhook_listen"],
        bus=settings.bus_settings(given),
    )
    _run("kybernate-controller", given, app.run(chosen))


@click.command()
@_node
@settings.option(
    "--containerd",
    env="CONTAINERD",
    callback=_whole,
    type=_socket,
    default=CONTAINERD,
    show_default=True,
    help="containerd's socket.",
)
@_state
@_checkpoints
@_pods
@_runtime_state
@settings.bus
@settings.service
def worker(**given: Any) -> None:
    """Run the worker of a node, as root on that node."""
    from node_worker import app  # noqa: PLC0415 - imported by who runs it
    from node_worker.settings import WorkerSettings  # noqa: PLC0415

    _need_root("worker")
    chosen = WorkerSettings(
        node=given["node"],
        containerd=given["containerd"],
        state=given["state"],
        checkpoints=given["checkpoints"],
        pods=given["pods"],
        runtime_state=given["runtime_state"],
        bus=settings.bus_settings(given),
    )
    _run("kybernate-worker", given, app.run(chosen))


@click.command()
@_listen
@_tokens
@_node
@_state
@_checkpoints
@settings.option(
    "--containerd",
    env="CONTAINERD",
    callback=_whole,
    type=_socket,
    help="Socket of a containerd that runs already; default: a private one in the state folder.",
)
@_pods
@_runtime_state
@_kubernetes
@_kubeconfig
@_webhook
@settings.service
def up(**given: Any) -> None:
    """Run NATS, controller, worker and a private containerd in one process, for this host."""
    from kybernate.embedded import host  # noqa: PLC0415 - imported by who runs it

    _need_root("up")
    chosen = host.HostSettings(
        folder=given["state"],
        node=given["node"],
        listen=given["listen"],
        tokens=given["tokens"],
        checkpoints=given["checkpoints"],
        containerd=given["containerd"],
        pods=given["pods"],
        runtime_state=given["runtime_state"],
        kubernetes=given["kubernetes"],
        kubeconfig=given["kubeconfig"],
        webhook_listen=given["webhook_listen"],
    )
    _run("kybernate", given, host.run(chosen))


@click.command()
@options.output
@click.option("--gpu", is_flag=True, help="Count on a GPU, with about 2 GiB of its memory in use.")
def demo(*, output: str, gpu: bool) -> None:
    """Start a container that counts, checkpoint it, kill it, resume it: the count goes on.

    Everything runs in a folder of its own; nothing is left behind. With --gpu the Python that
    runs this needs PyTorch.
    """
    from kybernate.cli.showing import show  # noqa: PLC0415 - imported by who runs it

    _need_root("demo")
    with _in_words():
        good = show(gpu=gpu, json=output == "json")
    if not good:
        raise Failed("the demo was not what it has to be; see above")


def _need_root(command: str) -> None:
    if os.geteuid() != 0:
        raise Refused(
            f"`kybernate {command}` needs root: it drives containerd and CRIU",
            f"run it as root: sudo kybernate {command}",
        )


def _run(name: str, given: dict[str, Any], work: Coroutine[Any, Any, None]) -> None:
    """Run a service until it is signalled; its end in words."""
    import asyncio  # noqa: PLC0415 - not before --help has been answered

    from kybernate import tasks, telemetry  # noqa: PLC0415

    telemetry.log_to(level=given["log_level"], json=given["log_format"] == "json")
    with _in_words(), telemetry.tracing(name, endpoint=given["otlp_endpoint"]):
        asyncio.run(tasks.run_until_signalled(work))


@contextmanager
def _in_words() -> Iterator[None]:
    """What is wrong with the surroundings ends in words, a fault of the program in its trace."""
    try:
        yield
    except Exception as error:
        from kybernate.cli.troubles import in_words  # noqa: PLC0415 - knows everything

        if told := in_words(error):
            raise told from error
        raise
