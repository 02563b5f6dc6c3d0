"""The private containerd and its workloads, with the real containerd, runc and CRIU."""

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from kybernate.embedded import leftovers, oci
from kybernate.embedded.containerd import (
    ContainerdFailed,
    PrivateContainerd,
    private_containerd,
)
from kybernate.embedded.stack import Stack, StackMissing, find_stack
from kybernate.embedded.workload import NAMESPACE, Running, Workloads
from node_worker.containerd.client import Containerd, connect
from node_worker.containerd.port import (
    DumpOptions,
    RestorePaths,
    RuntimeFailed,
    RuntimeUnavailable,
    Stdio,
)

COUNTER = ("sh", "-c", "i=0; while true; do i=$((i+1)); echo $i; sleep 0.02; done")
TALKER = """
import os, socket, time
listener = socket.create_server(("127.0.0.1", 0))
there = socket.create_connection(listener.getsockname())
here, _ = listener.accept()
count = 0
while True:
    there.sendall(b"%d" % (count + 1))
    count = int(here.recv(16))
    print(count, os.getuid(), flush=True)
    time.sleep(0.02)
"""


async def go_round(runtime: Containerd, running: Running, folder: Path) -> None:
    """Dump with its end, delete, restore under the same id."""
    images, work = folder / "images", folder / "work"
    for path in (images, work):
        await asyncio.to_thread(path.mkdir)
    options = DumpOptions(
        image_path=str(images), work_path=str(work), exit=True, open_tcp=True, file_locks=True
    )
    await runtime.checkpoint(NAMESPACE, running.id, options)
    await running.kill()
    container = await runtime.container(NAMESPACE, running.id)
    await runtime.create_task(
        NAMESPACE,
        running.id,
        mounts=await runtime.mounts(NAMESPACE, container.snapshotter, container.snapshot_key),
        stdio=Stdio(stdout=running.log.as_uri(), stderr=running.log.as_uri()),
        restore=RestorePaths(image_path=str(images), work_path=str(work)),
        options=container.runtime_options,
    )
    await runtime.start_task(NAMESPACE, running.id)


def numbers(lines: list[str]) -> list[int]:
    return [int(line.split()[0]) for line in lines]


@pytest.mark.parametrize(
    "workload",
    [
        oci.Workload(args=("-c", TALKER)),
        oci.Workload(args=("-c", TALKER), user=oci.User(uid=1000, gid=1000), capabilities=()),
        oci.Workload(args=("-c", TALKER), capabilities=()),
        oci.Workload(args=("-c", TALKER), memory_bytes=128 * 1024 * 1024),
    ],
    ids=["root", "user", "no-capabilities", "memory-limit"],
)
async def test_a_python_with_a_connection_goes_round(
    workloads: Workloads, runtime: Containerd, folder: Path, workload: oci.Workload
) -> None:
    running = await workloads.start_container("talker", workload, python=True)
    await running.wait_for_more(5)
    await go_round(runtime, running, folder)
    lines = await running.wait_for_more(5)
    assert numbers(lines) == list(range(1, len(lines) + 1))
    assert {line.split()[1] for line in lines} == {str(workload.user.uid)}


async def test_binds_tmpfs_and_environment(workloads: Workloads, folder: Path) -> None:
    shared = folder / "shared"
    shared.mkdir()
    workload = oci.Workload(
        args=(
            "sh",
            "-c",
            "exec 2>&1; echo $WORD | tee /shared/word; df /scratch | tail -1; touch /ro/x; sleep 9",
        ),
        env={"WORD": "hello"},
        binds=(
            oci.Bind(source=shared, target="/shared", writable=True),
            oci.Bind(source=shared, target="/ro"),
        ),
        tmpfs=(oci.Tmpfs(target="/scratch", size="1m"),),
    )
    running = await workloads.start_container("mounts", workload)
    lines = await running.wait_for(lambda lines: len(lines) >= 3)
    assert (shared / "word").read_text() == lines[0] + "\n" == "hello\n"
    assert lines[1].split()[:2] == ["tmpfs", "1024"]
    assert "Read-only file system" in lines[2]


async def test_a_device_has_to_be_named_to_be_used(workloads: Workloads) -> None:
    device = Path("/dev/kmsg")
    tries = ("sh", "-c", "(: > /dev/kmsg) && echo open; sleep 60")
    named = await workloads.start_container("named", oci.Workload(args=tries, devices=(device,)))
    assert await named.wait_for(lambda lines: len(lines) >= 1) == ["open"]
    bind = oci.Bind(source=device, target=str(device), writable=True)
    seen = await workloads.start_container("seen", oci.Workload(args=tries, binds=(bind,)))
    (line,) = await seen.wait_for(lambda lines: len(lines) >= 1)
    assert "Operation not permitted" in line


async def test_a_removed_container_is_gone(workloads: Workloads, runtime: Containerd) -> None:
    running = await workloads.start_container("counter", oci.Workload(args=COUNTER))
    await running.wait_for_more()
    await running.remove()
    await running.remove()
    assert await runtime.containers(NAMESPACE) == ()
    assert not alive(running.pid)
    again = await workloads.start_container("counter", oci.Workload(args=COUNTER))
    await again.wait_for_more()
    await workloads.clear()
    assert not alive(again.pid)


async def test_a_program_that_is_not_there_leaves_the_name_free(
    workloads: Workloads, runtime: Containerd
) -> None:
    with pytest.raises(RuntimeFailed, match="no-such-program"):
        await workloads.start_container("counter", oci.Workload(args=("no-such-program",)))
    assert await runtime.containers(NAMESPACE) == ()
    running = await workloads.start_container("counter", oci.Workload(args=COUNTER))
    await running.wait_for_more()
    await running.remove()


async def test_containers_outlive_a_restart_of_the_daemon(
    daemon: PrivateContainerd, workloads: Workloads, runtime: Containerd
) -> None:
    running = await workloads.start_container("counter", oci.Workload(args=COUNTER))
    await daemon.stop()
    with pytest.raises(RuntimeUnavailable, match="see that it runs"):
        await runtime.version()
    await running.wait_for_more(5)
    await daemon.start()
    async with connect(daemon.socket) as after:
        assert (await after.task(NAMESPACE, "counter")).pid == running.pid


async def test_a_daemon_that_dies_during_a_dump_is_unavailable_and_leaves_nothing(
    folder: Path,
) -> None:
    home, images = folder / "containerd", folder / "images"
    images.mkdir()
    holder = (
        "import time; held = bytearray(b'x') * (256 << 20); print(1, flush=True); time.sleep(99)"
    )
    async with private_containerd(find_stack(), home) as daemon, connect(daemon.socket) as runtime:
        workloads = Workloads(daemon, runtime)
        workload = oci.Workload(args=("-c", holder))
        await (await workloads.start_container("big", workload, python=True)).wait_for_more()
        options = DumpOptions(image_path=str(images), work_path=str(images))
        dump = asyncio.create_task(runtime.checkpoint(NAMESPACE, "big", options))
        async with asyncio.timeout(60):
            while not (images / "pages-1.img").exists():  # noqa: ASYNC110 - a file says nothing
                await asyncio.sleep(0.001)
        await daemon.kill()
        with pytest.raises(RuntimeUnavailable):
            await dump
    assert leftovers.processes(home) == ()


@pytest.mark.parametrize("paused", [False, True], ids=["running", "paused"])
async def test_nothing_is_left(folder: Path, *, paused: bool) -> None:
    home = folder / "containerd"
    async with private_containerd(find_stack(), home) as daemon, connect(daemon.socket) as runtime:
        running = await Workloads(daemon, runtime).start_container(
            "counter", oci.Workload(args=COUNTER)
        )
        if paused:
            await runtime.pause(NAMESPACE, "counter")
        sockets = leftovers.shim_sockets(home)
        assert sockets
        assert leftovers.mounts(home)
        assert {daemon.pid, running.pid} < set(leftovers.processes(home))
        await daemon.kill()
    assert leftovers.processes(home) == ()
    assert leftovers.mounts(home) == ()
    assert not any(socket.exists() for socket in sockets)
    assert not cgroups(home)


async def test_the_next_start_clears_what_a_killed_one_left(folder: Path) -> None:
    home, stack = folder / "containerd", find_stack()
    dead = PrivateContainerd(stack, home)
    await dead.start()
    async with connect(dead.socket) as runtime:
        await Workloads(dead, runtime).start_container("counter", oci.Workload(args=COUNTER))
    await dead.kill()
    assert leftovers.processes(home)
    async with private_containerd(stack, home) as daemon, connect(daemon.socket) as runtime:
        assert leftovers.processes(home) == (daemon.pid,)
        again = await Workloads(daemon, runtime).start_container(
            "second", oci.Workload(args=COUNTER)
        )
        await again.wait_for_more()


async def test_two_of_them_do_not_meet(folder: Path) -> None:
    stack = find_stack()
    async with (
        private_containerd(stack, folder / "a") as one,
        private_containerd(stack, folder / "b") as other,
        connect(one.socket) as first,
        connect(other.socket) as second,
    ):
        for daemon, runtime in ((one, first), (other, second)):
            workloads = Workloads(daemon, runtime)
            await workloads.start_container("same", oci.Workload(args=COUNTER))
        kept = (await second.task(NAMESPACE, "same")).pid
        await Workloads(one, first).clear()
        assert (await second.task(NAMESPACE, "same")).pid == kept
        assert alive(kept)


async def test_a_containerd_that_cannot_start_says_why(folder: Path) -> None:
    broken = folder / "stack"
    for name in ("containerd-2", "runc", "criu", "busybox"):
        shutil.copytree(find_stack().root / name, broken / name)
    (broken / "containerd-2/bin/containerd").write_text("#!/bin/sh\necho no luck\nexit 3\n")
    with pytest.raises(ContainerdFailed, match=r"ended with 3(.|\n)*no luck"):
        async with private_containerd(Stack(root=broken, line="2"), folder / "containerd"):
            pass


async def test_a_socket_path_that_is_too_long_is_refused(folder: Path) -> None:
    with pytest.raises(ContainerdFailed, match="choose a shorter state folder"):
        async with private_containerd(find_stack(), folder / ("x" * 100)):
            pass


def test_a_missing_stack_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KYBERNATE_STACK", "/nowhere")
    with pytest.raises(StackMissing, match=r"scripts/stack\.sh"):
        find_stack()


async def test_a_cancelled_owner_cleans_up(folder: Path) -> None:
    home, started = folder / "containerd", asyncio.Event()

    async def own() -> None:
        async with private_containerd(find_stack(), home) as daemon:
            async with connect(daemon.socket) as runtime:
                workloads = Workloads(daemon, runtime)
                await workloads.start_container("counter", oci.Workload(args=COUNTER))
            started.set()
            await asyncio.Event().wait()

    owner = asyncio.create_task(own())
    await started.wait()
    for _ in range(3):  # somebody presses Ctrl-C again and again
        owner.cancel()
        await asyncio.sleep(0.01)
    with pytest.raises(asyncio.CancelledError):
        await owner
    assert leftovers.processes(home) == ()
    assert leftovers.mounts(home) == ()


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def cgroups(home: Path) -> list[str]:
    ours = leftovers.cgroup_parent(home).strip("/")
    return [name for _, names, _ in os.walk("/sys/fs/cgroup") for name in names if name == ours]
