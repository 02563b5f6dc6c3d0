from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_worker.preflight import (
    DISK_MARGIN,
    MEMORY_MARGIN,
    Facts,
    lack_of_disk,
    memory_bytes,
    obstacles,
)
from node_worker.processes import OpenFile, Process, TcpConnection
from schemas import reasons
from schemas.orders import OutsideTcp

MIB = 1024 * 1024
PLENTY = 1 << 50


def process(pid: int = 100, **facts: Any) -> Process:
    return Process(**{"pid": pid, "inner_pid": 1, "name": "train", "state": "S", **facts})


def facts(*processes: Process, **others: Any) -> Facts:
    given_facts = {"processes": processes, "free_memory": PLENTY, **others}
    return Facts(**given_facts)


def holding(target: str, device: tuple[int, int] | None = None, *, block: bool = False) -> Process:
    file = OpenFile(descriptor=7, target=target, device=device, block=block)
    return process(files=(file,))


def only(found: Facts) -> str:
    (obstacle,) = obstacles(found)
    assert obstacle.message
    assert obstacle.advice
    return obstacle.reason


def test_an_ordinary_process_may_be_checkpointed() -> None:
    ordinary = (
        process(100, private_bytes=50 * MIB, threads=9),
        process(101, state="R"),
        process(102, state="Z"),
        holding("/dev/null", (1, 3)),
        holding("/dev/pts/3", (136, 3)),
        holding("/dev/net/tun", (10, 200)),
        holding("anon_inode:[eventpoll]"),
        holding("anon_inode:inotify"),
    )
    assert obstacles(facts(*ordinary)) == ()


def test_processes_of_other_users_need_a_capability_of_containerd() -> None:
    found = facts(process(), process(101, of_root=False), other_users=False)

    assert only(found) == reasons.CANNOT_BE_CHECKPOINTED
    assert "CAP_SYS_RESOURCE" in obstacles(found)[0].message
    assert not obstacles(facts(process(), other_users=False))
    assert not obstacles(facts(process(of_root=False)))


def test_what_a_pods_next_container_cannot_have_again_is_told() -> None:
    path = "/settings/..2026_01_02_03_04_05.123456789/colour"
    file = OpenFile(descriptor=7, target=path, dated=True)

    assert only(facts(process(files=(file,)))) == reasons.CANNOT_BE_CHECKPOINTED
    assert only(facts(process(), shared_pids=True)) == reasons.CANNOT_BE_CHECKPOINTED


def test_a_container_without_processes_is_not_running() -> None:
    assert only(facts()) == reasons.NOT_RUNNING


def test_a_stopped_process_stands_against_it_only_on_cgroup_v1() -> None:
    assert only(facts(process(state="T"), cgroup_v1=True)) == reasons.STOPPED_PROCESS
    assert obstacles(facts(process(state="T"), cgroup_v1=False)) == ()


@pytest.mark.parametrize("held", [{"state": "t"}, {"tracer": 4711}])
def test_a_traced_process_stands_against_it(held: dict[str, Any]) -> None:
    assert only(facts(process(**held))) == reasons.CANNOT_BE_CHECKPOINTED


@pytest.mark.parametrize(
    "held",
    [
        holding("/dev/fuse", (10, 229)),
        holding("/dev/dri/renderD128", (226, 128)),
        holding("/dev/vda", (254, 0), block=True),
        holding("/dev/ram0", (1, 0), block=True),
        holding("/dev/nvidiactl", (195, 255)),
        holding("anon_inode:[io_uring]"),
        holding("anon_inode:[perf_event]"),
        holding("anon_inode:kvm-vm"),
    ],
)
def test_what_criu_cannot_dump_is_named(held: Process) -> None:
    assert only(facts(held)) == reasons.CANNOT_BE_CHECKPOINTED
    assert "descriptor 7" in obstacles(facts(held))[0].message


def test_the_driver_closes_the_gpu_s_devices_of_a_cuda_process() -> None:
    held = holding("/dev/nvidia0", (195, 0))
    assert obstacles(facts(held, gpu_pids=frozenset({100}))) == ()
    assert only(facts(held, gpu_pids=frozenset({999}))) == reasons.CANNOT_BE_CHECKPOINTED


OUTSIDE = TcpConnection(inode=1, local="10.0.0.5:41000", peer="93.184.216.34:443", outside=True)
INSIDE = TcpConnection(inode=2, local="127.0.0.1:80", peer="127.0.0.1:40000", outside=False)


def test_outside_connections_stand_against_it_only_when_the_order_says_so() -> None:
    closing = facts(process(), connections=(OUTSIDE, INSIDE))
    refusing = facts(process(), connections=(OUTSIDE, INSIDE), outside_tcp=OutsideTcp.REFUSE)
    inside = facts(process(), connections=(INSIDE,), outside_tcp=OutsideTcp.REFUSE)

    assert obstacles(closing) == ()
    assert obstacles(inside) == ()
    assert only(refusing) == reasons.OUTSIDE_CONNECTION
    assert "93.184.216.34:443" in obstacles(refusing)[0].message


def test_many_outside_connections_stay_one_readable_message() -> None:
    many = facts(process(), connections=(OUTSIDE,) * 5000, outside_tcp=OutsideTcp.REFUSE)
    (obstacle,) = obstacles(many)
    assert "and 4995 more" in obstacle.message
    assert len(obstacle.message) < 1000


def test_a_terminal_stands_against_it() -> None:
    assert only(facts(process(), terminal=True)) == reasons.CANNOT_BE_CHECKPOINTED


def test_the_disk_must_hold_the_memory() -> None:
    large = facts(process(private_bytes=100 * MIB), gpu_bytes=MIB)
    needed = memory_bytes(large)
    assert needed == 101 * MIB
    assert lack_of_disk(needed, needed + DISK_MARGIN) == ()
    (told,) = lack_of_disk(needed, needed + DISK_MARGIN - 1)
    assert told.reason == reasons.NOT_ENOUGH_DISK
    assert told.advice


def test_shared_memory_is_counted_once() -> None:
    workers = [process(pid, private_bytes=MIB, shared_bytes=800 * MIB) for pid in range(100, 200)]
    assert memory_bytes(facts(*workers)) == 900 * MIB


def test_the_gpu_s_memory_must_fit_into_the_host_s() -> None:
    gpu = 2048 * MIB
    enough = gpu + MEMORY_MARGIN
    assert obstacles(facts(process(), gpu_bytes=gpu, free_memory=enough)) == ()
    tight = facts(process(), gpu_bytes=gpu, free_memory=enough - 1)
    assert only(tight) == reasons.NOT_ENOUGH_MEMORY


def test_without_a_gpu_the_host_s_memory_does_not_matter() -> None:
    assert obstacles(facts(process(private_bytes=MIB), free_memory=0)) == ()


def test_all_obstacles_are_told_at_once() -> None:
    found = obstacles(facts(process(tracer=1), terminal=True, gpu_bytes=MIB, free_memory=0))

    assert [one.reason for one in found] == [
        reasons.CANNOT_BE_CHECKPOINTED,
        reasons.CANNOT_BE_CHECKPOINTED,
        reasons.NOT_ENOUGH_MEMORY,
    ]
    for one, word in zip(found, ("tracer", "terminal", "GPU's memory"), strict=True):
        assert word in one.message


@given(
    st.lists(
        st.builds(
            Process,
            pid=st.integers(1, 99),
            inner_pid=st.integers(1, 99),
            name=st.text(),
            state=st.sampled_from("RSDTtZX?"),
            private_bytes=st.integers(0, 1 << 40),
            files=st.lists(
                st.builds(
                    OpenFile,
                    descriptor=st.integers(0, 99),
                    target=st.text(),
                    device=st.none() | st.tuples(st.integers(0, 300), st.integers(0, 300)),
                )
            ).map(tuple),
        )
    ),
    st.integers(0, 1 << 42),
    st.fixed_dictionaries({"terminal": st.booleans(), "cgroup_v1": st.booleans()}),
)
def test_every_obstacle_has_a_reason_words_and_advice(
    processes: list[Process], free: int, options: dict[str, bool]
) -> None:
    found = facts(*processes, gpu_bytes=1, free_memory=free, **options)
    told = obstacles(found)
    assert all(one.reason and one.message and one.advice for one in told)
