"""etcd, the API server, the controller manager and the scheduler, with secrets of their own.

The API server listens on the bridge's address; everybody shows a token that it reads from a file.
Its certificate signs itself and is what the kubeconfigs trust.
"""

import asyncio
import base64
import contextlib
import json
import random
import secrets
import signal
import socket
from collections.abc import Mapping
from pathlib import Path

import msgspec

from kybernate.embedded.kubernetes.assets import Assets
from kybernate.embedded.kubernetes.commands import run, succeeds
from kybernate.embedded.kubernetes.daemons import Daemon
from kybernate.embedded.kubernetes.network import Network

READY_TIMEOUT = 90.0
PORTS = range(20000, 32000)
ISSUER = "https://kubernetes.default.svc"


class ControlPlaneFailed(Exception):
    """A part of the control plane does not answer."""


class Ports(msgspec.Struct, frozen=True, kw_only=True):
    """Chosen free at the first start, kept from then on."""

    api: int
    etcd: int
    peer: int


def choose_ports(network: Network) -> Ports:
    return Ports(api=_free(network.host), etcd=_free("127.0.0.1"), peer=_free("127.0.0.1"))


class ControlPlane:
    """Its daemons by name, in `daemons`; `start` is harmless for what runs."""

    def __init__(self, home: Path, assets: Assets, network: Network, ports: Ports) -> None:
        self.home = home
        self.url = f"https://{network.host}:{ports.api}"
        self.etcd = f"http://127.0.0.1:{ports.etcd}"
        self._assets = assets
        self._network = network
        self._ports = ports
        self.daemons: Mapping[str, Daemon] = {
            daemon.name: daemon
            for daemon in (self._etcd(), self._api_server(), self._manager(), self._scheduler())
        }

    async def prepare(self, nodes: tuple[str, ...]) -> None:
        """Make certificate, key, tokens and kubeconfigs, unless they are there."""
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (self.home / "tls.crt").exists():
            await self._make_certificate()
        self._write_tokens(nodes)

    def kubeconfig(self, user: str) -> Path:
        return self.home / f"{user}.kubeconfig"

    async def start(self) -> None:
        """All of it; returns when the API server is ready."""
        self.daemons["etcd"].start()
        self.daemons["kube-apiserver"].start()
        await self.ready()
        self.daemons["kube-controller-manager"].start()
        self.daemons["kube-scheduler"].start()

    async def ready(self) -> None:
        get = (self._assets.program("kubectl"), "--kubeconfig", self.kubeconfig("admin"), "get")
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                while not await succeeds(*get, "--request-timeout=5s", "--raw", "/readyz"):
                    self._check_alive()
                    await asyncio.sleep(0.2)
        except TimeoutError as error:
            raise self._failed(self.daemons["kube-apiserver"], "does not answer") from error

    async def restart_api_server(self) -> None:
        """As after a crash: it says goodbye to nobody."""
        await self.daemons["kube-apiserver"].stop(signal.SIGKILL)
        self.daemons["kube-apiserver"].start()
        await self.ready()

    def _check_alive(self) -> None:
        for name in ("etcd", "kube-apiserver"):
            if self.daemons[name].pid is None:
                raise self._failed(self.daemons[name], "ended")

    def _failed(self, daemon: Daemon, what: str) -> ControlPlaneFailed:
        return ControlPlaneFailed(f"{daemon.name} {what}; {daemon.last_words()}")

    def _etcd(self) -> Daemon:
        clients = self.etcd
        peers = f"http://127.0.0.1:{self._ports.peer}"
        return self._daemon(
            "etcd",
            f"--data-dir={self.home}/etcd",
            f"--listen-client-urls={clients}",
            f"--advertise-client-urls={clients}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=default={peers}",
        )

    def _api_server(self) -> Daemon:
        return self._daemon(
            "kube-apiserver",
            f"--etcd-servers={self.etcd}",
            f"--bind-address={self._network.host}",
            f"--secure-port={self._ports.api}",
            f"--service-cluster-ip-range={self._network.services}",
            f"--tls-cert-file={self.home}/tls.crt",
            f"--tls-private-key-file={self.home}/tls.key",
            f"--token-auth-file={self.home}/tokens.csv",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-signing-key-file={self.home}/accounts.key",
            f"--service-account-key-file={self.home}/accounts.key",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            "--kubelet-preferred-address-types=InternalIP",
            "--allow-privileged",
        )

    def _manager(self) -> Daemon:
        return self._daemon(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig('kube-controller-manager')}",
            f"--service-account-private-key-file={self.home}/accounts.key",
            f"--root-ca-file={self.home}/tls.crt",
            "--use-service-account-credentials",
            "--leader-elect=false",
            *self._assets.dated("kube-controller-manager", "--port=0"),
            "--secure-port=0",
            "--kube-api-qps=100",
            "--kube-api-burst=200",
        )

    def _scheduler(self) -> Daemon:
        return self._daemon(
            "kube-scheduler",
            f"--kubeconfig={self.kubeconfig('kube-scheduler')}",
            "--leader-elect=false",
            *self._assets.dated("kube-scheduler", "--port=0"),
            "--secure-port=0",
        )

    def _daemon(self, name: str, *options: str) -> Daemon:
        return Daemon(name=name, home=self.home, command=(self._assets.program(name), *options))

    async def _make_certificate(self) -> None:
        names = (
            "DNS:kubernetes",
            "DNS:kubernetes.default",
            "DNS:kubernetes.default.svc",
            f"IP:{self._network.host}",
            f"IP:{self._network.first_service}",
        )
        account_key = ("-name", "prime256v1", "-genkey", "-noout")
        key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        try:
            await run("openssl", "ecparam", *account_key, "-out", self.home / "accounts.key")
            await run(
                *("openssl", "req", "-x509", *key, "-days", "3650", "-subj", "/CN=kubernetes"),
                *("-addext", f"subjectAltName={','.join(names)}"),
                *("-keyout", self.home / "tls.key", "-out", self.home / "tls.crt"),
            )
        except FileNotFoundError as error:
            raise ControlPlaneFailed("openssl is missing: apt-get install openssl") from error

    def _write_tokens(self, nodes: tuple[str, ...]) -> None:
        users = {
            "admin": ("admin", "system:masters"),
            "kube-controller-manager": ("system:kube-controller-manager", ""),
            "kube-scheduler": ("system:kube-scheduler", ""),
            **{node: (f"system:node:{node}", "system:nodes") for node in nodes},
        }
        tokens = self._tokens()
        for user in users:
            tokens.setdefault(user, secrets.token_hex())
            self._write_kubeconfig(user, tokens[user])
        lines = (f'{tokens[user]},{name},{user},"{of}"' for user, (name, of) in users.items())
        self._write("tokens.csv", "".join(f"{line}\n" for line in lines))

    def _tokens(self) -> dict[str, str]:
        """What was given out before, by user."""
        file = self.home / "tokens.csv"
        lines = file.read_text().splitlines() if file.exists() else []
        return {user: token for token, _, user, _ in (line.split(",") for line in lines)}

    def _write_kubeconfig(self, user: str, token: str) -> None:
        trusted = base64.b64encode((self.home / "tls.crt").read_bytes()).decode()
        cluster = {"server": self.url, "certificate-authority-data": trusted}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "kybernate", "cluster": cluster}],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": user, "context": {"cluster": "kybernate", "user": user}}],
            "current-context": user,
        }
        self._write(self.kubeconfig(user).name, json.dumps(config, indent=1))

    def _write(self, name: str, text: str) -> None:
        file = self.home / name
        file.touch(mode=0o600)
        file.write_text(text)


def _free(address: str) -> int:
    """Below the ports that clients are given: one that asks for a server which restarts might else
    be given the server's own port, and connect to itself.
    """
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe, contextlib.suppress(OSError):  # somebody has it
            probe.bind((address, port))
            return port
    raise ControlPlaneFailed(f"no port of {address} is free between {PORTS[0]} and {PORTS[-1]}")
