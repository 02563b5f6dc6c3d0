"""What is read from /proc and the control groups, with samples of the real files."""

from pathlib import Path

import pytest

from node_worker.gpu import cgroup, host

UUID = "GPU-5f3b1a52-1111-4222-8333-444455556666"
INFORMATION = f"""Model: \t\t NVIDIA H200
IRQ:   \t\t 24
GPU UUID: \t {UUID}
Video BIOS: \t 96.00.a0.00.01
Bus Type: \t PCIe
Bus Location: \t 0000:00:05.0
Device Minor: \t 3
"""
OPEN_MODULE = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.04  Release Build\n"
    "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
)
CLOSED_MODULE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57  Tue Jul 13\n"
OWN_WINDOWS = """200600000-202600000 rw-s 00000000 00:06 493      /dev/nvidiactl
206600000-206800000 rw-s 206600000 00:06 492                             /dev/nvidia-uvm
7f57a2400000-7f57a4400000 r-xp 00000000 fe:00 1234   /usr/lib/libcuda.so.580.159.04
"""
MANAGED = """7f2c00000000-7f2c40000000 rw-s 7f2c00000000 00:06 492           /dev/nvidia-uvm
"""


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    card = tmp_path / "gpus" / "0000:00:05.0"
    card.mkdir(parents=True)
    (card / "information").write_text(INFORMATION)
    (tmp_path / "version").write_text(OPEN_MODULE)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "version"), [(OPEN_MODULE, "580.159.04"), (CLOSED_MODULE, "470.57"), ("", "")]
)
def test_reads_the_version_of_the_driver(tmp_path: Path, text: str, version: str) -> None:
    (tmp_path / "version").write_text(text)

    assert host.driver_version(tmp_path) == version


def test_lists_the_gpus_of_the_host(driver: Path) -> None:
    assert host.gpu_uuids(driver) == (UUID,)


def test_a_gpu_cut_into_instances_is_seen(driver: Path) -> None:
    assert not host.mig_enabled("0000:00:05.0", driver)
    (driver / "capabilities" / "gpu3" / "mig" / "gi1").mkdir(parents=True)

    assert host.mig_enabled("0000:00:05.0", driver)


def test_a_host_without_a_driver_has_nothing(tmp_path: Path) -> None:
    assert host.driver_version(tmp_path) == ""
    assert host.gpu_uuids(tmp_path) == ()
    assert not host.mig_enabled("0000:00:05.0", tmp_path)


def test_tells_managed_memory_from_the_drivers_own_windows() -> None:
    assert host.managed_bytes(OWN_WINDOWS) == 0
    assert host.managed_bytes(OWN_WINDOWS + MANAGED) == 1 << 30


def test_a_process_has_cuda_when_the_library_is_mapped(tmp_path: Path) -> None:
    for pid, maps in ((1, OWN_WINDOWS), (2, "7f00-7f01 r-xp 0 fe:00 1 /usr/lib/libc.so.6\n")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "maps").write_text(maps)

    assert [host.has_cuda_library(pid, tmp_path) for pid in (1, 2, 3)] == [True, False, False]


def test_reads_available_memory(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       2048 kB\nMemAvailable:   1024 kB\n")

    assert host.available_bytes(meminfo) == 1 << 20
    assert host.available_bytes(tmp_path / "none") == 0


class Groups:
    """Control groups as files, and one process in them."""

    def __init__(self, folder: Path, line: str) -> None:
        self.proc, self.root = folder / "proc", folder / "cgroup"
        (self.proc / "7").mkdir(parents=True)
        (self.proc / "7" / "cgroup").write_text(line)

    def group(self, path: str, **files: str) -> None:
        folder = self.root / path
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)

    def rooms(self) -> dict[str, int]:
        found = cgroup.rooms(7, self.proc, self.root)
        return {str(group.relative_to(self.root)): room for group, room in found.items()}


def test_each_group_s_limit_counts_and_cache_counts_as_room(tmp_path: Path) -> None:
    groups = Groups(tmp_path, "0::/pods/one\n")
    groups.group("pods", memory__max="1000", memory__current="900", memory__stat="inactive_file 50")
    groups.group("pods/one", memory__max="800", memory__current="100")

    assert groups.rooms() == {"pods": 150, "pods/one": 700}


def test_without_a_limit_there_is_no_end_of_room(tmp_path: Path) -> None:
    groups = Groups(tmp_path, "0::/one\n")
    groups.group("one", memory__max="max", memory__current="100")

    assert groups.rooms() == {}


def test_reads_the_first_version_of_control_groups(tmp_path: Path) -> None:
    groups = Groups(tmp_path, "9:cpu,cpuacct:/one\n4:memory:/one\n1:name=systemd:/one\n")
    no_limit = str((1 << 63) - 4096)
    groups.group("memory", memory__limit_in_bytes=no_limit, memory__usage_in_bytes="5000")
    groups.group("memory/one", memory__limit_in_bytes="1000", memory__usage_in_bytes="400")

    assert groups.rooms() == {"memory/one": 600}


def test_a_process_that_is_gone_has_no_groups(tmp_path: Path) -> None:
    assert cgroup.rooms(8, tmp_path, tmp_path) == {}
