"""Where a restored container goes on: below what its new node's runtime has of its own."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from node_worker.containerd.options import runc_options, with_root
from node_worker.containerd.port import Packed
from node_worker.containerd.proto import runc_pb2
from node_worker.resumed import CRIU_CONFIG, resumed_spec


def linux(tmp_path: Path, value: dict[str, Any], *, now: str = "c1", parent: str = "") -> Any:
    spec = Packed(type_url="spec", value=msgspec.json.encode({"linux": value}))
    resumed = resumed_spec(spec, tmp_path, was="c1", now=now, cgroup_parent=parent)
    return msgspec.json.decode(resumed.value)["linux"]


@pytest.mark.parametrize(
    ("was", "now", "parent", "cgroup"),
    [
        ("/pods/c1", "c1", "", "/pods/c1"),
        ("/pods/c1", "c2", "", "/pods/c2"),
        ("/there/c1", "c1", "/here", "/here/c1"),
        ("/there/c1", "c2", "/here", "/here/c2"),
        ("/here/deep/c1", "c1", "/here", "/here/deep/c1"),
    ],
)
def test_the_cgroup_is_its_own_and_its_nodes(
    tmp_path: Path, was: str, now: str, parent: str, cgroup: str
) -> None:
    value = linux(tmp_path, {"cgroupsPath": was}, now=now, parent=parent)

    assert value["cgroupsPath"] == cgroup


def test_no_cgroup_is_named_where_none_was(tmp_path: Path) -> None:
    assert linux(tmp_path, {}, now="c2", parent="/here") == {}


def test_criu_is_told_of_the_cgroup_of_this_restore_alone(tmp_path: Path) -> None:
    (tmp_path / "cgroup.controllers").touch()
    value = {"linux": {"cgroupsPath": "/there/c1"}, "annotations": {}}
    spec = Packed(type_url="spec", value=msgspec.json.encode(value))
    for parent in ("/first", "/second"):
        spec = resumed_spec(
            spec,
            tmp_path,
            was="c1",
            now="c1",
            cgroup_parent=parent,
            cgroup_tree=tmp_path,
        )
        annotations = msgspec.json.decode(spec.value)["annotations"]
        lines = Path(annotations[CRIU_CONFIG]).read_text().splitlines()
        assert [line for line in lines if "cgroup" in line] == [f"cgroup-root :{parent}/c1"]


def test_runc_keeps_its_state_where_the_nodes_runtime_looks() -> None:
    there = runc_options(root=Path("/there"), binary_name="runc-1", systemd_cgroup=True)

    here = with_root(there, Path("/here"))

    assert here
    options = runc_pb2.Options.FromString(here.value)
    assert (options.root, options.binary_name, options.systemd_cgroup) == ("/here", "runc-1", True)


def test_without_options_only_the_root_is_named() -> None:
    assert with_root(None, Path("/here")) == runc_options(root=Path("/here"))


def test_another_runtimes_options_are_left_alone() -> None:
    options = Packed(type_url="io.example.Options", value=b"own")

    assert with_root(options, Path("/here")) == options
