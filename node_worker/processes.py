"""What `/proc` tells of a container's processes, as far as a checkpoint depends on it.

All calls block for a moment: make them in a thread. A process that ends while it is looked at is
left out.
"""

import ipaddress
import os
import re
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import msgspec

PROC: Final = Path("/proc")
CGROUPS: Final = Path("/sys/fs/cgroup")

_KIB: Final = 1024
_LISTEN: Final = 10
_CAP_SYS_RESOURCE: Final = 24
_DATED: Final = re.compile(r"/\.\.\d{4}(_\d\d){5}\.\d+/")
"""Where kubelet keeps files of a configMap, a secret or a token: another place in each pod."""
_SOCKET: Final = re.compile(r"socket:\[(\d+)\]$")
_STATUS_LINE: Final = re.compile(r"^(\w+):\s*(.*)$", re.MULTILINE)
_UNLIMITED: Final = 1 << 60
"""What cgroup v1 says for no limit is a little below 2^63."""


class OpenFile(msgspec.Struct, frozen=True, kw_only=True):
    """An open file that is a device, of a kind that only the kernel knows, or dated by kubelet."""

    descriptor: int
    target: str
    """As the link in /proc says: a path, or `anon_inode:[io_uring]`."""
    device: tuple[int, int] | None = None
    block: bool = False
    dated: bool = False
    """Of a configMap, a secret or a token: it has another path in each pod."""


class Process(msgspec.Struct, frozen=True, kw_only=True):
    """One process. Memory is what CRIU would have to write: the process's own, not its files."""

    pid: int
    inner_pid: int
    """Its number in its own PID namespace, and so in the images."""
    name: str
    state: str
    """As ps shows it: R, S, D, T (stopped), t (traced), Z …"""
    tracer: int = 0
    parent: int = 0
    of_root: bool = True
    """All its users and groups are root, which is CRIU's own."""
    threads: int = 1
    rss_bytes: int = 0
    private_bytes: int = 0
    shared_bytes: int = 0
    files: tuple[OpenFile, ...] = ()
    sockets: frozenset[int] = frozenset()


class TcpConnection(msgspec.Struct, frozen=True, kw_only=True):
    """A TCP connection that one of the processes holds."""

    inode: int
    local: str
    peer: str
    outside: bool


def look(pids: Iterable[int], *, proc: Path = PROC) -> tuple[Process, ...]:
    """The processes that are still there, in the order asked."""
    return tuple(found for pid in pids if (found := _process(proc / str(pid), pid)))


def tcp_connections(
    processes: Iterable[Process], *, proc: Path = PROC
) -> tuple[TcpConnection, ...]:
    """The connections of these processes, whatever else uses the same network."""
    found: dict[int, TcpConnection] = {}
    for process in processes:
        if process.sockets - found.keys():
            for connection in _connections(proc / str(process.pid) / "net"):
                if connection.inode in process.sockets:
                    found[connection.inode] = connection
    return tuple(found.values())


def is_cgroup_v1(pid: int, *, proc: Path = PROC) -> bool:
    """Whether the freezer that stops this process is cgroup v1's."""
    return "freezer" in _cgroups(pid, proc)


def parents(processes: Iterable[Process]) -> frozenset[int]:
    """Those outside: a container's shim."""
    found = tuple(processes)
    return frozenset(one.parent for one in found) - {one.pid for one in found} - {0}


def other_users_limits_are_told(processes: Iterable[Process], *, proc: Path = PROC) -> bool:
    """Whether the kernel tells CRIU the limits of other users' processes. CRIU is a child of the
    shim, and so has the capabilities of whoever is the parent of the container's first process;
    and all of them over a container that has a user namespace of its own.
    """
    found = tuple(processes)
    outside = parents(found)
    return all(
        _effective(proc / str(one.parent)) >> _CAP_SYS_RESOURCE & 1
        or _users_of(proc / str(one.pid)) != _users_of(proc / str(one.parent))
        for one in found
        if one.parent in outside
    )


def _users_of(folder: Path) -> str:
    """Its user namespace; empty where that cannot be seen."""
    try:
        return (folder / "ns/user").readlink().name
    except OSError:
        return ""


def _effective(folder: Path) -> int:
    """Capabilities; all where they cannot be seen, and CRIU will tell."""
    try:
        status = dict(_STATUS_LINE.findall((folder / "status").read_text(errors="replace")))
    except (FileNotFoundError, ProcessLookupError):
        return ~0
    return int(status.get("CapEff", "0"), 16)


def free_memory(pid: int, *, proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """What the process could still allocate: the host's free memory, or its cgroup's if less."""
    text = (proc / "meminfo").read_text()
    available = int(dict(_STATUS_LINE.findall(text)).get("MemAvailable", "0 kB").split()[0])
    return min([available * _KIB, *_cgroup_rooms(_cgroups(pid, proc), cgroups)])


def _process(folder: Path, pid: int) -> Process | None:
    try:
        status = dict(_STATUS_LINE.findall((folder / "status").read_text(errors="replace")))
        files, sockets = _files(folder / "fd")
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Process(
        pid=pid,
        inner_pid=int(status.get("NSpid", str(pid)).split()[-1]),
        name=status.get("Name", ""),
        state=status.get("State", "?")[:1],
        tracer=int(status.get("TracerPid", "0")),
        parent=int(status.get("PPid", "0")),
        of_root=set(f"{status.get('Uid', '0')} {status.get('Gid', '0')}".split()) == {"0"},
        threads=int(status.get("Threads", "1")),
        rss_bytes=_bytes(status, "VmRSS"),
        private_bytes=_bytes(status, "RssAnon") + _bytes(status, "VmSwap"),
        shared_bytes=_bytes(status, "RssShmem"),
        files=tuple(files),
        sockets=frozenset(sockets),
    )


def _bytes(status: dict[str, str], name: str) -> int:
    return int(status.get(name, "0 kB").split()[0]) * _KIB


def _files(folder: Path) -> tuple[list[OpenFile], list[int]]:
    files: list[OpenFile] = []
    sockets: list[int] = []
    for link in folder.iterdir():
        try:
            target = os.readlink(link)  # noqa: PTH115 - a Path would tidy up what is no path
            status = link.stat()
        except FileNotFoundError:  # closed just now
            continue
        if socket := _SOCKET.match(target):
            sockets.append(int(socket[1]))
        elif special := _special(int(link.name), target, status):
            files.append(special)
    return sorted(files, key=lambda file: file.descriptor), sockets


def _special(descriptor: int, target: str, status: os.stat_result) -> OpenFile | None:
    if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        device = (os.major(status.st_rdev), os.minor(status.st_rdev))
        block = stat.S_ISBLK(status.st_mode)
        return OpenFile(descriptor=descriptor, target=target, device=device, block=block)
    if target.startswith("anon_inode:"):
        return OpenFile(descriptor=descriptor, target=target)
    if _DATED.search(target):
        return OpenFile(descriptor=descriptor, target=target, dated=True)
    return None


def _connections(net: Path) -> Iterator[TcpConnection]:
    for table in ("tcp", "tcp6"):
        try:
            lines = (net / table).read_text().splitlines()[1:]
        except (FileNotFoundError, OSError):  # no IPv6 here, or the process has ended
            continue
        for line in lines:
            if connection := _connection(line.split()):
                yield connection


def _connection(columns: list[str]) -> TcpConnection | None:
    local, far, state, inode = columns[1], columns[2], int(columns[3], 16), int(columns[9])
    address, port = _address(far)
    if state == _LISTEN or not port or not inode:
        return None
    return TcpConnection(
        inode=inode,
        local=_text(*_address(local)),
        peer=_text(address, port),
        outside=_is_outside(address),
    )


def _is_outside(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    """Whether the far end lies outside of the container's own loopback."""
    mapped = getattr(address, "ipv4_mapped", None)
    return not (mapped or address).is_loopback


def _address(text: str) -> tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int]:
    """The kernel prints each 32-bit word of an address in its own byte order."""
    words, port = text.split(":")
    raw = bytes.fromhex(words)
    packed = b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4))
    return ipaddress.ip_address(packed), int(port, 16)


def _text(address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int) -> str:
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"


def _cgroups(pid: int, proc: Path) -> dict[str, str]:
    """The process's cgroup by controller; cgroup v2's stands under the empty name."""
    found: dict[str, str] = {}
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return found
    for line in lines:
        _, controllers, path = line.split(":", 2)
        found.update(dict.fromkeys(controllers.split(","), path))
    return found


def _cgroup_rooms(paths: dict[str, str], cgroups: Path) -> Iterator[int]:
    """What each memory limit above the process leaves, from its own cgroup up to the root."""
    names = _V1 if "memory" in paths else _V2
    root = cgroups / names.folder
    place = root / paths.get("memory", paths.get("", "/")).strip("/")
    while place != root and place.is_relative_to(root):
        limit, used = _number(place / names.limit), _number(place / names.used)
        if limit is not None and used is not None and limit < _UNLIMITED:
            yield max(0, limit - used + _reclaimable(place / "memory.stat", names))
        place = place.parent


def _reclaimable(path: Path, names: "_MemoryFiles") -> int:
    """The page cache of files counts as used, but gives way."""
    try:
        pairs = (line.split() for line in path.read_text().splitlines())
    except OSError:  # without it, the room is only counted too small
        return 0
    return sum(int(value) for name, value in pairs if name in names.reclaimable)


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:  # another cgroup version, or a controller that is not switched on
        return None
    return int(text) if text.isdigit() else None


class _MemoryFiles(msgspec.Struct, frozen=True, kw_only=True):
    """How a version of cgroups names what is known of memory."""

    folder: str
    limit: str
    used: str
    reclaimable: frozenset[str]


_V1: Final = _MemoryFiles(
    folder="memory",
    limit="memory.limit_in_bytes",
    used="memory.usage_in_bytes",
    reclaimable=frozenset({"total_inactive_file", "total_active_file"}),
)
_V2: Final = _MemoryFiles(
    folder="",
    limit="memory.max",
    used="memory.current",
    reclaimable=frozenset({"inactive_file", "active_file"}),
)
