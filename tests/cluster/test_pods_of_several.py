"""Pods with several containers: checkpointed as one, each of them resumed in the new pod."""

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

NAMES = ("counter", "beside")
COUNT = """
mkdir -p /shared; exec 3>>/shared/$NAME
if [ $NAME = counter ]; then
    sleep 9999 | nc -l -p 7000 &
else
    (sleep 1; sleep 9999 | nc 127.0.0.1 7000 2>/dev/null) &
fi
i=0; while :; do i=$((i + 1)); echo Loop $i; echo $i >&3; sleep 0.2; done
"""
FIRST = "echo once >>/shared/first"
WORK = [{"name": "work", "mountPath": "/shared"}]


def pod_of_two(services: NodeServices, *, sharing: bool = True) -> dict[str, Any]:
    pod = counting_pod(
        f"test-{secrets.token_hex(4)}", node=services.node.name, runtime_class="kybernate"
    )
    first = {"name": "first", "image": IMAGE, "command": ["sh", "-c", FIRST], "volumeMounts": WORK}
    pod["spec"] |= {
        "volumes": [{"name": "work", "emptyDir": {}}],
        "initContainers": [first],
        "containers": [container(name, sharing=sharing) for name in NAMES],
    }
    return pod


def container(name: str, *, sharing: bool) -> dict[str, Any]:
    return {
        "name": name,
        "image": IMAGE,
        "command": ["sh", "-c", COUNT],
        "env": [{"name": "NAME", "value": name}],
        "volumeMounts": WORK if sharing or name == NAMES[0] else [],
    }


@pytest_asyncio.fixture(loop_scope="session")
async def pods(operated: NodeServices) -> AsyncIterator[Resources]:
    made = Resources(operated)
    yield made
    await made.all_gone()


async def written(pods: Resources, pod: str, container: str, of: str) -> list[int]:
    """What one container has written into the volume that both share, as the other sees it."""
    text = await pods.cluster.kubectl("exec", pod, "-c", container, "--", "cat", f"/shared/{of}")
    return [int(line) for line in text.split()]


async def restarts(pods: Resources, pod: str, container: str) -> int:
    found: Any = await pods.cluster.pod(pod)
    statuses = found["status"]["containerStatuses"]
    return next(int(one["restartCount"]) for one in statuses if one["name"] == container)


async def test_both_go_on_and_one_that_crashes_starts_by_itself(pods: Resources) -> None:
    name = await pods.apply(pod_of_two(pods.services))
    for one in NAMES:
        await pods.counted(name, 5, container=one)
    new = await pods.restore(await pods.checkpoint(name))
    for one, other in (NAMES, NAMES[::-1]):
        assert (await pods.counted(new, container=one))[0] > 5
        numbers = await written(pods, new, one, other)
        assert numbers == list(range(1, len(numbers) + 1)), "its open file went on"
    first = await pods.cluster.kubectl("exec", new, "-c", NAMES[0], "--", "cat", "/shared/first")
    assert first == "once\n", "what the new pod's init container wrote made way"

    os.kill(await pods.services.pid(new, "beside"), signal.SIGKILL)

    async def has_restarted() -> bool:
        return await restarts(pods, new, "beside") == 1

    await until(has_restarted, timeout=TIMEOUT)
    assert (await pods.counted(new, container="beside"))[0] == 1, "it has started from its image"
    counted = await pods.counted(new, container="counter")
    await pods.counted(new, len(counted) + 2, container="counter")
    assert await restarts(pods, new, "counter") == 0


async def test_of_a_pod_one_container_alone_goes_on(pods: Resources) -> None:
    name = await pods.apply(pod_of_two(pods.services, sharing=False))
    for one in NAMES:
        await pods.counted(name, 5, container=one)

    new = await pods.restore(await pods.checkpoint(name, containerName="counter"))

    assert (await pods.counted(new, container="counter"))[0] > 5
    assert (await pods.counted(new, container="beside"))[0] == 1, "it has started from its image"
