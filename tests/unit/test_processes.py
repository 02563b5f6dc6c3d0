import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from node_worker.processes import (
    free_memory,
    is_cgroup_v1,
    look,
    other_users_limits_are_told,
    tcp_connections,
)

MIB = 1024 * 1024

PROGRAM = """
import os, socket, sys, threading, time
kept = bytearray(os.urandom(1024)) * (32 * 1024)
null = open("/dev/null")
poll = __import__("select").epoll()
listener = socket.create_server(("127.0.0.1", 0))
near = socket.create_connection(listener.getsockname())
far, _ = listener.accept()
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def program() -> Iterator[int]:
    arguments = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.kill()


def test_a_process_is_described(program: int) -> None:
    (found,) = look([program])

    assert found.pid == program
    assert found.inner_pid == program
    assert found.name.startswith("python")
    assert found.state in {"R", "S"}
    assert found.threads == 2
    assert 32 * MIB < found.private_bytes <= found.rss_bytes
    assert {file.target for file in found.files} >= {"/dev/null", "anon_inode:[eventpoll]"}
    devices = {file.device for file in found.files if file.target == "/dev/null"}
    assert devices == {(1, 3)}
    assert len(found.sockets) == 3


def test_only_its_own_connections_are_found(program: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        other = socket.create_connection(listener.getsockname())
        found = tcp_connections(look([program]))
        mine = {one.inode for one in tcp_connections(look([os.getpid()]))}
        inode = os.fstat(other.fileno()).st_ino
        other.close()

    assert len(found) == 2
    assert {one.outside for one in found} == {False}
    assert {one.local for one in found} == {one.peer for one in found}
    assert inode in mine
    assert inode not in {one.inode for one in found}


def test_a_process_that_is_gone_is_left_out() -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    assert look([process.pid]) == ()


def test_a_stopped_process_is_told_by_its_state() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        os.kill(process.pid, 19)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        (found,) = look([process.pid])
        process.kill()
    assert found.state == "T"


TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0500000A:A028 22D8B85D:01BB 01 00000000:00000000 00:00000000 00000000     0        0 2 1
   2: 0100007F:0050 0900007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 3 1
   3: 0500000A:A029 22D8B85D:01BB 06 00000000:00000000 00:00000000 00000000     0        0 0 3
   4: 0500000A:A02A 22D8B85D:01BB 01 00000000:00000000 00:00000000 00000000     0        0 9 1
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx rx ...
   0: 00000000000000000000000001000000:0050 00000000000000000000000001000000:9C40 01 0:0 00:0 0 0 0 4
   1: B80D0120000000000000000001000000:0050 B80D0120000000000000000002000000:01BB 01 0:0 00:0 0 0 0 5
   2: 0000000000000000FFFF00000100007F:0050 0000000000000000FFFF00000100007F:9C40 01 0:0 00:0 0 0 0 6
"""  # noqa: E501


def made_up(proc: Path, pid: int, *, cgroup: str = "0::/pod/box\n") -> None:
    folder = proc / str(pid)
    (folder / "net").mkdir(parents=True)
    (folder / "fd").mkdir()
    (folder / "status").write_text("Name:\tmade up\nState:\tS (sleeping)\nNSpid:\t77\t1\n")
    (folder / "net/tcp").write_text(TCP)
    (folder / "net/tcp6").write_text(TCP6)
    (folder / "cgroup").write_text(cgroup)
    (proc / "meminfo").write_text("MemTotal: 16000 kB\nMemAvailable:    9000 kB\n")
    for inode in range(1, 7):
        (folder / "fd" / str(inode)).symlink_to("/dev/null")


def test_connections_of_the_kernel_s_table_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(tmp_path, 77)
    monkeypatch.setattr(os, "readlink", lambda link: f"socket:[{Path(link).name}]")

    (process,) = look([77], proc=tmp_path)
    found = {one.inode: one for one in tcp_connections([process], proc=tmp_path)}

    assert process.inner_pid == 1
    assert sorted(found) == [2, 3, 4, 5, 6]
    assert (found[2].local, found[2].peer) == ("10.0.0.5:41000", "93.184.216.34:443")
    assert found[5].peer == "[2001:db8::2]:443"
    assert {inode for inode, one in found.items() if one.outside} == {2, 5}


def test_the_cgroup_version_is_told_by_the_freezer(tmp_path: Path) -> None:
    made_up(tmp_path, 1)
    made_up(tmp_path, 2, cgroup="5:freezer:/box\n4:cpu,cpuacct:/box\n0::/\n")
    assert not is_cgroup_v1(1, proc=tmp_path)
    assert is_cgroup_v1(2, proc=tmp_path)


def limits(folder: Path, limit: str, used: int, names: tuple[str, str], cache: str = "") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(cache)


V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes")
V2 = ("memory.max", "memory.current")


def test_the_tightest_memory_limit_counts_and_page_cache_gives_way(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    made_up(proc, 1)
    limits(groups / "pod", str(3 * MIB), 2 * MIB, V2, "anon 9\ninactive_file 1000\n")
    limits(groups / "pod/box", "max", 2 * MIB, V2)

    assert free_memory(1, proc=proc, cgroups=groups) == MIB + 1000


def test_limits_of_cgroup_v1_count_too(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    made_up(proc, 1, cgroup="5:memory:/box\n0::/\n")
    limits(groups / "memory/box", str(3 * MIB), MIB, V1)

    assert free_memory(1, proc=proc, cgroups=groups) == 2 * MIB


def test_without_a_limit_the_host_s_free_memory_counts(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    made_up(proc, 1, cgroup="5:memory:/box\n0::/\n")
    limits(groups / "memory/box", str((1 << 63) - 4096), MIB, V1)

    assert free_memory(1, proc=proc, cgroups=groups) == 9000 * 1024


def test_an_open_file_that_kubelet_has_dated_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "..2026_01_02_03_04_05.123456789"
    folder.mkdir()
    (tmp_path / "..data").symlink_to(folder.name)
    (folder / "colour").touch()
    (tmp_path / "other").touch()

    with (tmp_path / "..data/colour").open(), (tmp_path / "other").open():
        (found,) = look([os.getpid()])

    assert [file.target for file in found.files if file.dated] == [str(folder / "colour")]


def test_another_user_is_told_by_any_of_a_processs_users_and_groups() -> None:
    root, other, group = (
        subprocess.Popen(["sleep", "1000"], user=user, group=group)
        for user, group in ((0, 0), (7, 0), (0, 7))
    )
    try:
        found = look([root.pid, other.pid, group.pid])
    finally:
        for process in (root, other, group):
            process.kill()
            process.wait()

    assert [process.of_root for process in found] == [True, False, False]
    assert {process.parent for process in found} == {os.getpid()}


@pytest.mark.parametrize(("capabilities", "can"), [("1000000", True), ("feffffff", False)])
def test_whether_other_users_limits_are_told_is_up_to_the_parent(
    tmp_path: Path, capabilities: str, *, can: bool
) -> None:
    status = "Name:\tsleep\nPPid:\t{}\nNSpid:\t{}\nCapEff:\t{}\n"
    for pid, parent, held in ((5, 1, capabilities), (6, 5, "0"), (7, 6, "0")):
        (tmp_path / f"{pid}/fd").mkdir(parents=True)
        (tmp_path / f"{pid}/status").write_text(status.format(parent, pid, held))

    assert other_users_limits_are_told(look([6, 7], proc=tmp_path), proc=tmp_path) is can
    assert other_users_limits_are_told(look([5], proc=tmp_path), proc=tmp_path), "not to be seen"


def test_a_user_namespace_of_its_own_makes_up_for_what_the_parent_lacks(tmp_path: Path) -> None:
    for pid, parent, users in ((5, 1, "user:[1]"), (6, 5, "user:[2]"), (7, 6, "user:[2]")):
        (tmp_path / f"{pid}/fd").mkdir(parents=True)
        status = f"Name:\tsleep\nPPid:\t{parent}\nNSpid:\t{pid}\nCapEff:\t0\n"
        (tmp_path / f"{pid}/status").write_text(status)
        (tmp_path / f"{pid}/ns").mkdir()
        (tmp_path / f"{pid}/ns/user").symlink_to(users)

    assert other_users_limits_are_told(look([6, 7], proc=tmp_path), proc=tmp_path)
    assert not other_users_limits_are_told(look([7], proc=tmp_path), proc=tmp_path), "the same one"
