"""What a pod has in emptyDir volumes and shared memory comes along, and is put back once."""

import os
import secrets
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest_asyncio

from kybernate.embedded.kubernetes.waiting import until
from tests.support.cluster_pods import IMAGE, counting_pod
from tests.support.node_services import NodeServices
from tests.support.resuming import TIMEOUT, Resources

COUNT = """
exec 3>>/shared/log 4>>/dev/shm/log
i=0; while :; do i=$((i + 1)); echo Loop $i; echo $i >&3; echo $i >&4; sleep 0.2; done
"""
FILL = """
cd /shared && rm -r by-init folder
mkdir -m 2750 folder && echo text >folder/file && chmod 4711 folder/file && chown 7:8 folder/file
ln folder/file hard && ln -s /etc/passwd link && mkfifo -m 620 fifo && mknod device c 1 3
dd if=/dev/zero of=sparse bs=1 count=1 seek=20M 2>/dev/null
ls -ld /part/. && echo kept >/part/kept
dd if=/dev/urandom of=/memory/random bs=64k count=40 2>/dev/null
echo shared >/dev/shm/shared
"""
LOOK = """
for each in /shared /memory /part /dev/shm; do
    cd $each && find . ! -name log | sort | while read -r one; do
        stat -c '%N %a %u:%g %h %s' "$one"; [ ! -f "$one" ] || md5sum "$one"
    done
done
du -k /shared/sparse | cut -f1
"""
VOLUMES = [
    {"name": "work", "emptyDir": {}},
    {"name": "memory", "emptyDir": {"medium": "Memory"}},
    {"name": "other", "emptyDir": {}},
]
MOUNTS = [
    {"name": "work", "mountPath": "/shared"},
    {"name": "work", "mountPath": "/part", "subPath": "some/part"},
    {"name": "memory", "mountPath": "/memory"},
]
OTHER = {"name": "other", "mountPath": "/other"}


def pod_with_volumes(services: NodeServices, source: str = "", **more: str) -> dict[str, Any]:
    pod = counting_pod(
        f"test-{secrets.token_hex(4)}", node=services.node.name, runtime_class="kybernate"
    )
    annotations = {f"kybernate.io/{key}": value for key, value in more.items()}
    if source:
        annotations["kybernate.io/restore-from"] = source
    pod["metadata"]["annotations"] = annotations
    (container,) = pod["spec"]["containers"]
    container |= {"command": ["sh", "-c", COUNT], "volumeMounts": MOUNTS}
    first = {
        "name": "first",
        "image": IMAGE,
        "command": ["sh", "-c", "mkdir /shared/folder; echo init >/shared/by-init"],
        "volumeMounts": [MOUNTS[0], OTHER],
    }
    pod["spec"] |= {"volumes": VOLUMES, "initContainers": [first]}
    return pod


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def filled(operated: NodeServices) -> AsyncIterator[tuple[str, str]]:
    """A checkpoint of a pod that is no more, and how its volumes looked."""
    made = Resources(operated)
    name = await made.apply(pod_with_volumes(operated))
    await made.counted(name)
    await made.cluster.kubectl("exec", name, "--", "sh", "-ec", FILL)
    looked = await _look(made, name)
    yield await made.checkpoint(name), looked
    await made.all_gone()


@pytest_asyncio.fixture(loop_scope="session")
async def pods(operated: NodeServices) -> AsyncIterator[Resources]:
    made = Resources(operated)
    yield made
    await made.all_gone()


async def test_contents_come_along_and_open_files_go_on(
    pods: Resources, filled: tuple[str, str]
) -> None:
    checkpoint, looked = filled
    name = await pods.restore(checkpoint)

    counted = await pods.counted(name, 5)

    assert counted[0] > 1
    assert await _look(pods, name) == looked
    assert await _is_in_a_row(pods, name)
    assert int(looked.splitlines()[-1]) < 1024, "the hole came along as one"

    await pods.cluster.kubectl("exec", name, "--", "sh", "-c", "echo live >/shared/live")
    await _crash(pods, name)
    assert (await pods.counted(name))[0] == 1, "it has started from its image"
    assert await pods.cluster.kubectl("exec", name, "--", "cat", "/shared/live") == "live\n"
    assert not await _is_in_a_row(pods, name)


async def test_a_container_that_goes_back_to_the_checkpoint_takes_its_contents_back(
    pods: Resources, filled: tuple[str, str]
) -> None:
    checkpoint, looked = filled
    name = await pods.apply(pod_with_volumes(pods.services, checkpoint, restart="checkpoint"))
    await pods.counted(name)
    await pods.cluster.kubectl("exec", name, "--", "sh", "-c", "echo live >/shared/live")

    await _crash(pods, name)

    assert (await pods.counted(name))[0] > 1
    assert await _look(pods, name) == looked
    assert await _is_in_a_row(pods, name)


async def test_a_pod_without_a_volume_of_the_checkpoint_is_refused(
    pods: Resources, filled: tuple[str, str]
) -> None:
    pod = pod_with_volumes(pods.services, filled[0])
    pod["spec"]["volumes"] = VOLUMES[:2]
    pod["spec"]["initContainers"][0]["volumeMounts"].remove(OTHER)

    told = await pods.refusal(await pods.apply(pod))

    assert "the pod has no emptyDir other" in told
    assert pods.services.leftovers() == []


async def test_containers_that_share_a_volume_find_its_contents_once(pods: Resources) -> None:
    both = ("one", "two")
    pod = counting_pod(
        f"test-{secrets.token_hex(4)}", node=pods.services.node.name, runtime_class="kybernate"
    )
    pod["spec"] |= {"volumes": VOLUMES[:1], "restartPolicy": "Never"}
    pod["spec"]["containers"] = [
        {
            "name": name,
            "image": IMAGE,
            "command": ["sh", "-c", COUNT.replace("/log", f"/{name}")],
            "volumeMounts": MOUNTS[:1],
        }
        for name in both
    ]
    first = await pods.apply(pod)
    await pods.cluster.wait_for(first)
    before = [await _written(pods, first, file, 3) for file in _files(both)]

    second = await pods.restore(await pods.checkpoint(first))

    for file, numbers in zip(_files(both), before, strict=True):
        after = await _written(pods, second, file, len(numbers) + 5)
        assert after == list(range(1, len(after) + 1)), file


def _files(names: tuple[str, str]) -> list[str]:
    return [f"/{folder}/{name}" for folder in ("shared", "dev/shm") for name in names]


async def _written(pods: Resources, pod: str, file: str, least: int) -> list[int]:
    """The numbers in a file, once there are so many."""
    found: list[int] = []

    async def is_enough() -> bool:
        said = await pods.cluster.kubectl(
            *("exec", pod, "-c", "one", "--", "sh", "-c", f"[ ! -e {file} ] || cat {file}")
        )
        found[:] = map(int, said.split())
        return len(found) >= least

    await until(is_enough, timeout=TIMEOUT)
    return found


async def _look(pods: Resources, pod: str) -> str:
    return await pods.cluster.kubectl("exec", pod, "--", "sh", "-c", LOOK)


async def _is_in_a_row(pods: Resources, pod: str) -> bool:
    """Whether the files that the container has open hold every number that it has counted."""
    files = [
        list(map(int, (await pods.cluster.kubectl("exec", pod, "--", "cat", file)).split()))
        for file in ("/shared/log", "/dev/shm/log")
    ]
    return all(numbers == list(range(1, len(numbers) + 1)) for numbers in files)


async def _crash(pods: Resources, pod: str) -> None:
    async def restarts() -> int:
        found: Any = await pods.cluster.pod(pod)
        return int(found["status"]["containerStatuses"][0]["restartCount"])

    before = await restarts()
    os.kill(await pods.services.pid(pod), signal.SIGKILL)

    async def has_restarted() -> bool:
        return await restarts() > before

    await until(has_restarted, timeout=TIMEOUT)
