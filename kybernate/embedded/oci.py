"""The OCI spec of a simple container, one that CRIU can dump and restore on any host.

Its network namespace is its own, with nothing but loopback in it; a createRuntime hook brings
loopback up, at the start and before CRIU restores sockets into a new namespace.
"""

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from node_worker.containerd.port import Packed

SPEC_TYPE = "types.containerd.io/opencontainers/runtime-spec/1/Spec"
CRIU_CONFIG_ANNOTATION = "org.criu.config"
LOOPBACK_ANNOTATION = "kybernate.io/loopback"
"""With "own" a restore adds no hook of its own: the spec's own brings loopback up."""
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DEFAULT_CAPABILITIES = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
LOOPBACK_UP = (
    """pid=$(sed -n 's/.*"pid": *\\([0-9]*\\).*/\\1/p'); """
    """exec "$0" nsenter -t "$pid" -n -- "$0" ifconfig lo up"""
)


class User(msgspec.Struct, frozen=True, kw_only=True):
    uid: int = 0
    gid: int = 0
    groups: tuple[int, ...] = ()


class Bind(msgspec.Struct, frozen=True, kw_only=True):
    """A file or folder of the host that the container sees."""

    source: Path
    target: str
    writable: bool = False


class Tmpfs(msgspec.Struct, frozen=True, kw_only=True):
    target: str
    size: str = "64m"


class Workload(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody wants to run, without the host's paths."""

    args: tuple[str, ...]
    env: Mapping[str, str] = {}
    cwd: str = "/"
    user: User = User()
    capabilities: tuple[str, ...] = DEFAULT_CAPABILITIES
    binds: tuple[Bind, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    devices: tuple[Path, ...] = ()
    """Device nodes of the host, such as a GPU's."""
    memory_bytes: int | None = None
    host_network: bool = False
    user_namespace: bool = False
    """One of its own, in which every id is itself."""
    annotations: Mapping[str, str] = {}


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """What of the host goes into the spec."""

    id: str
    cgroup: str
    busybox: Path
    criu_config: Path


def spec(workload: Workload, place: Place) -> Packed:
    value: dict[str, Any] = {
        "ociVersion": "1.0.2",
        "hostname": place.id[:63],
        "root": {"path": "rootfs", "readonly": False},
        "process": _process(workload),
        "mounts": [*_kernel_mounts(), *_own_mounts(workload)],
        "annotations": {
            CRIU_CONFIG_ANNOTATION: str(place.criu_config),
            LOOPBACK_ANNOTATION: "own",
            **workload.annotations,
        },
        "linux": _linux(workload, place),
    }
    if not workload.host_network:
        value["hooks"] = {"createRuntime": [_loopback_hook(place.busybox)]}
    return Packed(type_url=SPEC_TYPE, value=msgspec.json.encode(value))


def _process(workload: Workload) -> dict[str, Any]:
    env = {"PATH": DEFAULT_PATH, **workload.env}
    user, capabilities = workload.user, workload.capabilities
    ambient = () if user.uid == 0 else capabilities
    return {
        "terminal": False,
        "args": workload.args,
        "env": [f"{name}={value}" for name, value in env.items()],
        "cwd": workload.cwd,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.groups},
        "noNewPrivileges": True,
        "capabilities": {
            "bounding": capabilities,
            "effective": capabilities if user.uid == 0 else ambient,
            "permitted": capabilities,
            "inheritable": ambient,
            "ambient": ambient,
        },
    }


def _kernel_mounts() -> list[dict[str, Any]]:
    nothing = ["nosuid", "noexec", "nodev"]
    return [
        _mount("/proc", "proc", "proc", nothing),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts",
            "devpts",
            "devpts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        _mount("/dev/shm", "tmpfs", "shm", [*nothing, "mode=1777", "size=65536k"]),  # noqa: S108 - in the container
        _mount("/dev/mqueue", "mqueue", "mqueue", nothing),
        _mount("/sys", "sysfs", "sysfs", [*nothing, "ro"]),
    ]


def _own_mounts(workload: Workload) -> list[dict[str, Any]]:
    binds = [
        _mount(bind.target, "bind", str(bind.source), ["bind", "rw" if bind.writable else "ro"])
        for bind in workload.binds
    ]
    tmpfs = [
        _mount(each.target, "tmpfs", "tmpfs", ["nosuid", "nodev", f"size={each.size}"])
        for each in workload.tmpfs
    ]
    return binds + tmpfs


def _mount(target: str, type_: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": target, "type": type_, "source": source, "options": options}


def _linux(workload: Workload, place: Place) -> dict[str, Any]:
    kinds = ["pid", "ipc", "uts", "mount"]
    if not workload.host_network:
        kinds.append("network")
    devices = [_device(path) for path in workload.devices]
    resources: dict[str, Any] = {
        "devices": [{"allow": False, "access": "rwm"}, *map(_rule, devices)]
    }
    if workload.memory_bytes is not None:
        resources["memory"] = {"limit": workload.memory_bytes}
    mapping: list[dict[str, int]] = []
    if workload.user_namespace:
        kinds.append("user")
        mapping.append({"containerID": 0, "hostID": 0, "size": 65536})
    return {
        "namespaces": [{"type": kind} for kind in kinds],
        "uidMappings": mapping,
        "gidMappings": mapping,
        "cgroupsPath": place.cgroup,
        "devices": devices,
        "resources": resources,
        "maskedPaths": ["/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/timer_list"],
        "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"],
    }


def _device(path: Path) -> dict[str, Any]:
    node = path.stat()
    return {
        "path": str(path),
        "type": "b" if stat.S_ISBLK(node.st_mode) else "c",
        "major": os.major(node.st_rdev),
        "minor": os.minor(node.st_rdev),
        "fileMode": 0o666,
    }


def _rule(device: dict[str, Any]) -> dict[str, Any]:
    """What the device cgroup has to allow."""
    which = {name: device[name] for name in ("type", "major", "minor")}
    return {"allow": True, "access": "rwm", **which}


def _loopback_hook(busybox: Path) -> dict[str, Any]:
    return {"path": str(busybox), "args": [str(busybox), "sh", "-c", LOOPBACK_UP, str(busybox)]}
