"""Clearing away what runc and CRIU leave of a container when something dies under them."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_worker import folders, freezer, runc_state
from node_worker.containerd.options import runc_options
from node_worker.containerd.port import Container, Packed


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    yield process
    process.kill()
    process.wait()


def container(root: Path, cgroup: str = "/no-such-cgroup/c1") -> Container:
    spec = Packed(type_url="spec", value=json.dumps({"linux": {"cgroupsPath": cgroup}}).encode())
    return Container(id="c1", spec=spec, runtime_options=runc_options(root=root))


def state(folder: Path, pid: int, start: int) -> None:
    folder.mkdir(parents=True)
    told = {"init_process_pid": pid, "init_process_start": start, "id": "c1"}
    (folder / "state.json").write_text(json.dumps(told))
    (folder / "criu-root").mkdir()


def started(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])


def test_ends_the_process_and_forgets_it(tmp_path: Path, process: subprocess.Popen[bytes]) -> None:
    state(tmp_path / "default" / "c1", process.pid, started(process.pid))
    runc_state.clear("default", container(tmp_path))
    assert process.wait(10) == -9
    assert not (tmp_path / "default" / "c1").exists()
    runc_state.clear("default", container(tmp_path))


def test_another_process_of_that_number_lives_on(
    tmp_path: Path, process: subprocess.Popen[bytes]
) -> None:
    state(tmp_path / "default" / "c1", process.pid, started(process.pid) - 1)
    runc_state.clear("default", container(tmp_path))
    assert process.poll() is None
    assert not (tmp_path / "default" / "c1").exists()


def test_runc_had_not_come_so_far(tmp_path: Path) -> None:
    folder = tmp_path / "default" / "c1"
    (folder / "criu-root").mkdir(parents=True)
    runc_state.clear("default", container(tmp_path))
    assert not folder.exists()


def test_what_is_in_a_folder_of_runcs_is_never_removed_blindly(tmp_path: Path) -> None:
    """`criu-root` may be the container's root filesystem."""
    root = tmp_path / "default" / "c1" / "criu-root"
    root.mkdir(parents=True)
    (root / "precious").write_text("data")
    with pytest.raises(OSError, match="not empty"):
        runc_state.clear("default", container(tmp_path))
    assert (root / "precious").read_text() == "data"


def test_a_mount_in_a_folder_is_unmounted_first(tmp_path: Path) -> None:
    precious, folder = tmp_path / "precious", tmp_path / "work" / "a b"
    precious.mkdir()
    (precious / "file").write_text("data")
    folder.mkdir(parents=True)
    subprocess.run(["mount", "--bind", precious, folder], check=True, timeout=10)
    folders.remove(tmp_path / "work")
    assert not (tmp_path / "work").exists()
    assert (precious / "file").read_text() == "data"
    folders.remove(tmp_path / "work")


@pytest.mark.parametrize("version", [1, 2])
def test_freezes_by_the_kernels_own_files(tmp_path: Path, version: int) -> None:
    proc, cgroups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "7").mkdir(parents=True)
    lines = {1: "4:memory:/pod/c1\n3:freezer:/pod/c1\n0::/\n", 2: "0::/pod/c1\n"}
    (proc / "7" / "cgroup").write_text(lines[version])
    names = {1: "freezer/pod/c1/freezer.state", 2: "pod/c1/cgroup.freeze"}
    file = cgroups / names[version]
    file.parent.mkdir(parents=True)
    frozen, thawed = {1: ("FROZEN", "THAWED"), 2: ("1", "0")}[version]
    file.write_text(f"{thawed}\n")
    assert freezer.freeze_if_thawed(7, proc=proc, cgroups=cgroups)
    assert file.read_text() == frozen
    assert not freezer.freeze_if_thawed(7, proc=proc, cgroups=cgroups)
    freezer.thaw(7, proc=proc, cgroups=cgroups)
    assert file.read_text() == thawed


def test_a_process_in_no_cgroup_that_freezes(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text("0::/\n")
    with pytest.raises(FileNotFoundError, match="no cgroup"):
        freezer.thaw(7, proc=tmp_path, cgroups=tmp_path)
