"""One node: a holder process with a network and a mount namespace, containerd and kubelet in them.

In the node's mount namespace /etc, /var/lib and /var/log are the node's own and /run is empty but
for the cluster's sockets, so that nothing is written to the host's and everything mounted there
goes when the node's last process does. What others have mounted below /tmp is let go of: a node
would keep it busy for as long as it runs. /run/containerd is the folder that the host sees as
`run_folder`. The same paths mean the same on the host for the rest.
"""

import asyncio
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from kybernate.embedded import leftovers
from kybernate.embedded.containerd import CRIU_CONFIG
from kybernate.embedded.kubernetes import images, network
from kybernate.embedded.kubernetes.assets import Assets
from kybernate.embedded.kubernetes.commands import TIMEOUT, Word, run, succeeds
from kybernate.embedded.kubernetes.daemons import NAME, Daemon
from kybernate.embedded.kubernetes.network import Network
from kybernate.embedded.kubernetes.waiting import until
from kybernate.embedded.stack import Stack

START_TIMEOUT = 60.0
CONNECT_TIMEOUT = 5.0
KUBELET_PORT = 10250
CGROUPS = Path("/sys/fs/cgroup")
HIDDEN = tuple(map(Path, ("/etc", "/run", "/var/lib", "/var/log")))
HANDLERS = ("kybernate", "kybernate-gpu")
WRAPPER = Path(__file__).parents[3] / "deploy/runtime/kybernate-runc"
HOLD = """\
set -e
home=$1 sockets=$2 mine=$3
while read -r _ _ _ _ point _; do
    case $home in "$point"/*) continue ;; esac
    case $point in /tmp/*) umount --lazy "$point" 2>/dev/null || : ;; esac
done </proc/self/mountinfo
for name in etc var/lib var/log; do mount --bind "$home/$name" "/$name"; done
mount --bind "$sockets" "$home/sockets"
mount -t tmpfs -o mode=755 run /run
mkdir -p "$sockets" /run/containerd /run/netns /run/lock
mkdir -m 700 /run/kybernate
mount --bind "$home/sockets" "$sockets"
umount "$home/sockets"
mount --bind "$mine" /run/containerd
mount --make-rshared /
touch /run/held
exec sleep infinity
"""
RUNTIME: Final = 'plugins."io.containerd.grpc.v1.cri".containerd.runtimes'


class NodeFailed(Exception):
    """A part of a node does not run."""


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """What a node needs to know of its cluster."""

    folder: Path
    sockets: Path
    network: Network
    assets: Assets
    stack: Stack


class Node:
    """A node by its number; `start` is harmless for what runs, `clear` for what does not."""

    def __init__(self, place: Place, number: int) -> None:
        self.number = number
        self.name = f"node-{number}"
        self.home = place.folder / "nodes" / self.name
        self.run_folder = place.sockets / self.name
        self.containerd = self.run_folder / "containerd.sock"
        self._place = place
        self.holder = self._daemon(
            "holder",
            *("unshare", "--net", "--mount", "--propagation", "slave"),
            *("sh", "-c", HOLD, "sh", self.home, place.sockets, self.run_folder),
        )

    @property
    def address(self) -> str:
        return self._place.network.node(self.number)

    @property
    def root(self) -> Path:
        """The node's file system, as the host sees it."""
        return Path(f"/proc/{self.pid}/root")

    @property
    def pid(self) -> int:
        """Of the process that holds the namespaces."""
        if (pid := self.holder.pid) is None:
            raise NodeFailed(f"{self.name} does not run; {self.holder.last_words()}")
        return pid

    @property
    def environment(self) -> dict[str, str]:
        """For whatever runs in the node: the stack's PATH, and the mark by which it is found."""
        return {
            "PATH": f"{self.home}/bin:{self._place.stack.path}",
            "HOME": os.environ.get("HOME", "/root"),
            leftovers.MARK: str(self.home),
            NAME: "command",
        }

    def inside(self, *command: Word) -> tuple[Word, ...]:
        """The command line that runs a command in the node's namespaces."""
        return ("nsenter", "-t", str(self.pid), "-m", "-n", "--", *command)

    async def run(self, *command: Word, timeout: float = TIMEOUT) -> str:
        """What a command writes when it runs in the node."""
        return await run(*self.inside(*command), env=self.environment, timeout=timeout)

    def containerd_daemon(self) -> Daemon:
        program = self._place.stack.containerd
        return self._inner("containerd", program, "--config", "/etc/containerd/config.toml")

    def kubelet(self) -> Daemon:
        return self._inner(
            "kubelet",
            self._place.assets.program("kubelet"),
            "--config=/etc/kubernetes/kubelet.json",
            "--kubeconfig=/etc/kubernetes/kubeconfig",
            *self._place.assets.dated("kubelet", "--container-runtime=remote"),
            "--container-runtime-endpoint=unix:///run/containerd/containerd.sock",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
        )

    async def start_containerd(self, archive: Path, kubeconfig: Path) -> None:
        """Everything but the kubelet; returns when containerd answers and has the images."""
        if self.holder.pid is None:
            await asyncio.to_thread(self._prepare, kubeconfig)
            self.holder.start()
        await until(self._held, timeout=START_TIMEOUT, every=0.02)
        await network.connect_node(self._place.network, self.number, self.pid, self._place.folder)
        self.containerd_daemon().start()
        await self._containerd_answers()
        await self._ctr("images", "import", archive)

    async def kubelet_listens(self) -> bool:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                _, writer = await asyncio.open_connection(self.address, KUBELET_PORT)
        except OSError:
            return False
        writer.close()
        return True

    async def restart_containerd(self) -> None:
        """As after a change of its configuration; containers run on. Returns when the kubelet has
        found it again: what that tries and fails at before, it does not try again for long.
        """
        await self.containerd_daemon().stop()
        self.containerd_daemon().start()
        await self._containerd_answers()
        await until(self._kubelet_finds_containerd, timeout=START_TIMEOUT)

    async def _kubelet_finds_containerd(self) -> bool:
        url = f"https://{self.address}:{KUBELET_PORT}/runningpods/"
        patience = aiohttp.ClientTimeout(total=CONNECT_TIMEOUT)
        try:
            async with (
                aiohttp.ClientSession(timeout=patience) as session,
                session.get(url, ssl=False) as answer,
            ):
                return answer.ok
        except (aiohttp.ClientError, TimeoutError):
            return False

    def _prepare(self, kubeconfig: Path) -> None:
        leftovers.clear(self.home)
        shutil.rmtree(self.home, ignore_errors=True)
        shutil.rmtree(self.run_folder, ignore_errors=True)
        for folder in ("var/lib", "var/log", "bin", "sockets", "containerd"):
            (self.home / folder).mkdir(mode=0o755, parents=True)
        self.run_folder.mkdir(mode=0o700, parents=True)
        _make_cgroups(leftovers.cgroup_parent(self.home))
        etc = self.home / "etc"
        subprocess.run(["cp", "--archive", "/etc", etc], check=True, timeout=START_TIMEOUT)
        for folder in ("cni/net.d", "containerd", "criu", "kubernetes"):
            (etc / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(kubeconfig, etc / "kubernetes/kubeconfig")
        (etc / "criu/runc.conf").write_text(CRIU_CONFIG)
        (etc / "containerd/config.toml").write_text(self._containerd_configuration())
        (etc / "cni/net.d/10-kybernate.conflist").write_text(json.dumps(self._network_list()))
        (etc / "kubernetes/kubelet.json").write_text(json.dumps(self._kubelet_configuration()))
        self._place_wrapper()

    def _place_wrapper(self) -> None:
        shutil.copy(WRAPPER, self.home / "bin/kybernate-runc")
        settings = {"RUNC": self._place.stack.runc, "CRIU": self._place.stack.criu.parent}
        ours = "".join(f"{name}='{value}'\n" for name, value in settings.items())
        name = WRAPPER.with_suffix(".conf").name
        (self.home / "bin" / name).write_text(WRAPPER.with_suffix(".conf").read_text() + ours)

    async def _held(self) -> bool:
        """Whether the namespaces are complete."""
        return (self.root / "run/held").exists()

    async def _containerd_answers(self) -> None:
        try:
            async with asyncio.timeout(START_TIMEOUT):
                while not await succeeds(*self._ctr_command("version")):
                    if self.containerd_daemon().pid is None:
                        break
                    await asyncio.sleep(0.1)
        except TimeoutError as error:
            raise NodeFailed(self._no_containerd("does not answer")) from error
        if self.containerd_daemon().pid is None:
            raise NodeFailed(self._no_containerd("ended"))

    def _no_containerd(self, what: str) -> str:
        return f"containerd of {self.name} {what}; {self.containerd_daemon().last_words()}"

    async def _ctr(self, *words: Word) -> None:
        await run(*self._ctr_command(*words))

    def _ctr_command(self, *words: Word) -> tuple[Word, ...]:
        ctr = self._place.stack.containerd.with_name("ctr")
        return (ctr, "--address", self.containerd, "--namespace", "k8s.io", *words)

    def _inner(self, name: str, *command: Word) -> Daemon:
        return self._daemon(name, *self.inside(*command))

    def _daemon(self, name: str, *command: Word) -> Daemon:
        env = {"PATH": self.environment["PATH"]}
        return Daemon(name=name, home=self.home, command=command, env=env)

    def _containerd_configuration(self) -> str:
        home = self.home / "containerd"
        return f"""\
version = 2
root = "{home}/root"
state = "{home}/state"
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{home}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{images.PAUSE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{self._place.assets.cni}"
[{RUNTIME}.runc]
runtime_type = "io.containerd.runc.v2"
""" + "".join(map(self._handler, HANDLERS))

    def _handler(self, name: str) -> str:
        return f"""\
[{RUNTIME}.{name}]
runtime_type = "io.containerd.runc.v2"
pod_annotations = ["kybernate.io/*"]
container_annotations = ["kybernate.io/*"]
[{RUNTIME}.{name}.options]
BinaryName = "{self.home}/bin/kybernate-runc"
"""

    def _network_list(self) -> dict[str, object]:
        addresses = {
            "type": "host-local",
            "ranges": [[{"subnet": self._place.network.pods(self.number)}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        }
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": addresses}
        return {"cniVersion": "0.4.0", "name": "kybernate", "plugins": [bridge]}

    def _kubelet_configuration(self) -> dict[str, object]:
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": leftovers.cgroup_parent(self.home),
            "enforceNodeAllocatable": [],
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "1%"},
            "failSwapOn": False,
            "healthzPort": 0,
            "imageGCHighThresholdPercent": 100,
            "kubeAPIBurst": 200,
            "kubeAPIQPS": 100,
            "makeIPTablesUtilChains": False,
            "nodeStatusUpdateFrequency": "2s",
            "readOnlyPort": 0,
            "resolvConf": "",
            "syncFrequency": "1s",
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        }


def _make_cgroups(name: str) -> None:
    """The kubelet wants the root of its pods' cgroups to be there, in every hierarchy."""
    hierarchies = [path for path in CGROUPS.iterdir() if (path / "cgroup.procs").is_file()]
    unified = (CGROUPS / "cgroup.controllers").is_file()
    for hierarchy in [CGROUPS] if unified else hierarchies:
        (hierarchy / name.removeprefix("/")).mkdir(exist_ok=True)
