"""The spec of a restored container: the one it had, prepared for CRIU. Pure but for one file.

runc passes CRIU few options by itself; the rest stands in a file that the annotation
`org.criu.config` names. The files are named after their content, so that containers share them
and none ever changes under one.
"""

import hashlib
import sys
from pathlib import Path
from typing import Any, Final

import msgspec

from node_worker import cgroups, loopback
from node_worker.containerd.port import Packed
from schemas.manifest import Streams

CRIU_CONFIG: Final = "org.criu.config"
LOOPBACK: Final = "kybernate.io/loopback"
"""Annotation; "own" says that the spec itself sees to it that loopback is up."""
NEEDED: Final = ("tcp-established", "file-locks", "network-lock skip")


def resumed_spec(
    spec: Packed,
    configs: Path,
    *,
    was: str,
    now: str,
    cgroup_parent: str = "",
    cgroup_tree: Path = cgroups.CGROUPS,
) -> Packed:
    """The spec with CRIU's options, a loopback that is up before CRIU restores sockets, and, for
    a container of another name, a cgroup of its own; below the parent, where one is given.
    """
    value: dict[str, Any] = msgspec.json.decode(spec.value, type=dict[str, Any])
    linux = value.get("linux")
    if isinstance(linux, dict) and (path := linux.get("cgroupsPath", "")):
        linux["cgroupsPath"] = _below(cgroup_parent, _renamed(path, was, now))
    annotations = dict(value.get("annotations") or {})
    config = _config(annotations.get(CRIU_CONFIG, ""), cgroups.criu_root(value, tree=cgroup_tree))
    annotations[CRIU_CONFIG] = str(_kept(config, configs))
    value["annotations"] = annotations
    if _has_network_of_its_own(value) and annotations.get(LOOPBACK) != "own":
        value["hooks"] = _with_loopback(value.get("hooks") or {})
    return Packed(type_url=spec.type_url, value=msgspec.json.encode(value))


def options_alone(spec: dict[str, Any], *, cgroup_tree: Path = cgroups.CGROUPS) -> str:
    """What a restore of a container with this spec needs, whatever its own file says."""
    return _config("", cgroups.criu_root(spec, tree=cgroup_tree))


def renamed_streams(streams: Streams, was: str, now: str) -> Streams:
    """Where the output goes on: a file stays the same file, or becomes one of the new name.

    A FIFO is somebody's who read from it; where it is gone, the output goes nowhere.
    """
    return Streams(
        stdout=_stream(streams.stdout, was, now), stderr=_stream(streams.stderr, was, now)
    )


def _stream(stream: str, was: str, now: str) -> str:
    if "://" not in stream:
        return stream if stream and Path(stream).exists() else ""
    folder, slash, file = stream.rpartition("/")
    return f"{folder}{slash}{_renamed(file, was, now)}"


def _renamed(text: str, was: str, now: str) -> str:
    """The last mention of the old name replaced; without one, the new name at the end."""
    if not text or was == now:
        return text
    before, found, after = text.rpartition(was)
    return f"{before}{now}{after}" if found else f"{text}-{now}"


def _below(parent: str, path: str) -> str:
    """The cgroup where this node's runtime has its own: the last part of the name stays."""
    if not parent or path.startswith(f"{parent}/"):
        return path
    return f"{parent}/{path.rpartition('/')[2]}"


def _config(named: str, cgroup_root: str) -> str:
    """What the container's own option file says, and what a restore needs besides.

    Where its cgroup was at an earlier restore says nothing about this one.
    """
    path = Path(named)
    read = path.read_text().splitlines() if named and path.is_file() else []
    own = [line for line in read if _option(line) != cgroups.ROOT_OPTION]
    missing = [line for line in NEEDED if line.split()[0] not in {_option(one) for one in own}]
    return "".join(f"{line}\n" for line in (*own, *missing, cgroup_root) if line)


def _option(line: str) -> str:
    return line.split(maxsplit=1)[0] if line.split() else ""


def _kept(config: str, configs: Path) -> Path:
    digest = hashlib.blake2s(config.encode(), digest_size=8).hexdigest()
    path = configs / f"{digest}.conf"
    if not path.exists():
        configs.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = path.with_suffix(".new")
        draft.write_text(config)
        draft.replace(path)
    return path


def _has_network_of_its_own(spec: dict[str, Any]) -> bool:
    namespaces = (spec.get("linux") or {}).get("namespaces") or []
    return any(one.get("type") == "network" and not one.get("path") for one in namespaces)


def _with_loopback(hooks: dict[str, Any]) -> dict[str, Any]:
    ours = {"path": sys.executable, "args": [sys.executable, "-I", "-S", loopback.__file__]}
    others = [one for one in hooks.get("createRuntime") or [] if one.get("args") != ours["args"]]
    return {**hooks, "createRuntime": [*others, ours]}
