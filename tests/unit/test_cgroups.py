"""What CRIU is told of the cgroup that runc makes, on a host with cgroup v2 alone."""

from pathlib import Path

import pytest

from node_worker.cgroups import criu_root

PODS = "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice"


@pytest.fixture
def unified(tmp_path: Path) -> Path:
    (tmp_path / "cgroup.controllers").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("/pods/c1", "/pods/c1"),
        ("/pods/c1/", "/pods/c1"),
        ("kubepods-burstable-pod1.slice:cri-containerd:c1", f"{PODS}/cri-containerd-c1.scope"),
        (":runc:c1", "/system.slice/runc-c1.scope"),
        ("-.slice:runc:c1", "/runc-c1.scope"),
        ("a.slice:runc:a-b.slice", "/a.slice/a-b.slice"),
    ],
)
def test_its_place_is_named(unified: Path, path: str, place: str) -> None:
    option = criu_root({"linux": {"cgroupsPath": path}}, tree=unified)

    assert option == f"cgroup-root :{place}"


@pytest.mark.parametrize("spec", [{}, {"linux": {}}, {"linux": {"cgroupsPath": "below/runc"}}])
def test_a_place_that_only_runc_knows_is_not_named(unified: Path, spec: dict[str, object]) -> None:
    assert not criu_root(spec, tree=unified)


def test_with_cgroup_v1_runc_names_it(tmp_path: Path) -> None:
    assert not criu_root({"linux": {"cgroupsPath": "/pods/c1"}}, tree=tmp_path)
