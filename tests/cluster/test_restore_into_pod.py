"""A pod that kubelet makes goes on where another one was, asked for by its annotation alone."""

import asyncio
import json
import os
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from kybernate.embedded.kubernetes.cluster import Cluster
from kybernate.embedded.kubernetes.waiting import until
from kybernate.embedded.leftovers import CGROUPS
from tests.support.cluster_pods import counting_pod
from tests.support.node_services import NodeServices, container_of
from tests.support.resuming import TIMEOUT, Pods

MEMORY = 64
LOOK = """
cat /settings/colour /secrets/word; echo
(cd /var/run/secrets/kubernetes.io/serviceaccount && ls token)
echo new >/shared/file && cat /shared/file
touch /forbidden 2>/dev/null || echo read-only
"""
UNKNOWN = "0b54f2a6-4d2c-4d5e-9f86-1a7c2f0f3c11"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def services(own_cluster: Cluster) -> AsyncIterator[NodeServices]:
    services = NodeServices(own_cluster)
    await services.start()
    yield services
    await services.stop()
    shutil.rmtree(services.state)


@pytest_asyncio.fixture(loop_scope="session")
async def pods(services: NodeServices) -> AsyncIterator[Pods]:
    made = Pods(services)
    yield made
    await made.all_gone()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def checkpoint(services: NodeServices) -> AsyncIterator[Path]:
    """Of a counting pod that is no more."""
    first = Pods(services)
    name = await first.make()
    assert (await first.counted(name, 5))[0] == 1
    folder = await services.checkpoint(name)
    await first.all_gone()
    yield folder
    shutil.rmtree(folder)


async def test_a_new_pod_goes_on_where_the_deleted_one_was(
    pods: Pods, services: NodeServices
) -> None:
    kubectl = services.cluster.kubectl
    first = await pods.make()
    await pods.counted(first, 5)
    await kubectl("exec", first, "--", "sh", "-c", "echo kept >/kept; rm /bin/counting")
    folder = await services.checkpoint(first)
    before = await pods.counted(first)
    await pods.gone(first)

    second = await pods.make(folder.name)
    after = await pods.counted(second, 5)

    assert 5 < after[0] <= before[-1] + 1
    assert after == list(range(after[0], after[-1] + 1))
    told = await kubectl("exec", second, "--", "cat", "/kept", "/etc/hostname")
    assert told == f"kept\n{second}\n"
    assert "counting" not in await kubectl("exec", second, "--", "ls", "/bin")
    pod = await services.cluster.pod(second)
    assert pod["status"]["podIP"] in await kubectl("exec", second, "--", "cat", "/etc/hosts")
    assert services.leftovers() == []

    container = container_of(pod)
    assert container in services.restored()
    await pods.gone(second)
    await until(_is_forgotten(services, container), timeout=TIMEOUT)
    shutil.rmtree(folder)


async def test_a_checkpoint_may_be_named_by_its_path_and_used_twice_at_once(
    pods: Pods, checkpoint: Path
) -> None:
    both = [await pods.make(checkpoint) for _ in range(2)]

    counted = [await pods.counted(pod) for pod in both]

    assert counted[0][0] == counted[1][0] > 1


async def test_without_the_annotation_a_pod_starts_from_its_image(pods: Pods) -> None:
    assert (await pods.counted(await pods.make()))[0] == 1


@pytest.mark.parametrize(("restart", "first"), [("image", 1), ("checkpoint", 0)])
async def test_a_crashed_container_starts_as_the_pod_wants(
    pods: Pods, checkpoint: Path, restart: str, first: int
) -> None:
    pod = await pods.make(checkpoint.name, restart=restart)
    was = (await pods.counted(pod))[0]

    await _crash(pods, pod)

    assert (await pods.counted(pod))[0] == (first or was)


async def test_what_a_pod_must_not_resume_from_is_refused_in_words(
    pods: Pods, checkpoint: Path, services: NodeServices
) -> None:
    root = services.checkpoints
    link = root / "a1b2c3d4-4d2c-4d5e-9f86-1a7c2f0f3c11"
    link.symlink_to(checkpoint)
    outside = services.node.home / "outside" / checkpoint.name
    shutil.copytree(checkpoint, outside)
    expected = {
        UNKNOWN: f"there is no checkpoint {UNKNOWN} of the namespace default",
        str(outside): "the path is not below",
        str(link): "a symbolic link is on the way",
        link.name: "there is no checkpoint",
        str(root): "a path has to end in a checkpoint's id",
        f"{root}/../{checkpoint.name}": "has to be a checkpoint's id (a UUID) or an absolute path",
        'x"; reboot': "has to be a checkpoint's id (a UUID) or an absolute path",
    }
    try:
        await _all_refused(pods, expected)
    finally:
        link.unlink()
        shutil.rmtree(outside.parent)


async def test_a_checkpoint_that_does_not_belong_or_does_not_fit_is_refused(
    pods: Pods, checkpoint: Path, services: NodeServices
) -> None:
    renamed = checkpoint.with_name("b1b2c3d4-4d2c-4d5e-9f86-1a7c2f0f3c11")
    shutil.copytree(checkpoint, renamed)
    elsewhere = checkpoint.with_name("elsewhere") / checkpoint.name
    damaged = checkpoint.with_name("damaged") / checkpoint.name
    for copy in (elsewhere, damaged):
        shutil.copytree(checkpoint, copy)
    pages = next(damaged.glob("containers/*/images/pages-*"))
    raw = bytearray(pages.read_bytes())
    raw[100] ^= 1
    pages.write_bytes(raw)
    foreign = checkpoint.with_name("foreign") / checkpoint.name
    shutil.copytree(checkpoint, foreign)
    manifest = json.loads((foreign / "manifest.json").read_bytes())
    manifest["host"]["architecture"] = "aarch64"
    (foreign / "manifest.json").write_text(json.dumps(manifest))
    try:
        await _all_refused(
            pods,
            {
                renamed.name: "CheckpointDamaged",
                str(damaged): "CheckpointDamaged",
                str(foreign): "of a node with aarch64, this one has",
            },
        )
        assert (await pods.counted(await pods.make(elsewhere)))[0] > 1
    finally:
        for folder in (renamed, elsewhere.parent, damaged.parent, foreign.parent):
            shutil.rmtree(folder)


async def test_another_namespaces_checkpoint_looks_like_none(
    pods: Pods, services: NodeServices
) -> None:
    cluster, space = services.cluster, f"test-{secrets.token_hex(4)}"
    await cluster.kubectl("create", "namespace", space)
    try:
        await _until_pods_can_be_made(cluster, space)
        pod = counting_pod("secretive", node=services.node.name, runtime_class="kybernate")
        pod["metadata"]["namespace"] = space
        await cluster.apply(pod)
        await cluster.wait_for("secretive", namespace=space)
        folder = await services.checkpoint("secretive", namespace=space)

        told = await pods.refusal(await pods.make(folder.name))

        assert f"there is no checkpoint {folder.name} of the namespace default" in told
        shutil.rmtree(folder)
    finally:
        await cluster.kubectl("delete", "namespace", space, timeout=150)


async def test_the_live_pods_volumes_limits_user_and_probes_hold(
    pods: Pods, services: NodeServices
) -> None:
    cluster = services.cluster
    settings = f"test-{secrets.token_hex(4)}"
    await cluster.kubectl("create", "configmap", settings, "--from-literal=colour=green")
    await cluster.kubectl("create", "secret", "generic", settings, "--from-literal=word=open")
    try:
        first = await pods.apply(_furnished(services, settings))
        await pods.counted(first)
        folder = await services.checkpoint(first)
        await pods.gone(first)
        await cluster.kubectl("delete", "configmap", settings)
        await cluster.kubectl("create", "configmap", settings, "--from-literal=colour=red")

        second = await pods.apply(_furnished(services, settings, folder.name))

        assert (await pods.counted(second))[0] > 1
        await until(_is_ready(cluster, second), timeout=TIMEOUT)
        told = await cluster.kubectl("exec", second, "--", "sh", "-c", LOOK)
        assert told.split() == ["redopen", "token", "new", "read-only"]
        assert _memory_limit(await services.pid(second)) == MEMORY << 20
        shutil.rmtree(folder)
    finally:
        await cluster.kubectl("delete", "configmap,secret", settings)


async def test_a_container_of_another_name_is_refused(pods: Pods, checkpoint: Path) -> None:
    told = await pods.refusal(await pods.make(checkpoint.name, container="other"))

    assert "is of counter, not of other" in told


async def test_without_a_worker_ordinary_pods_start_and_others_wait_for_it(
    pods: Pods, services: NodeServices, checkpoint: Path
) -> None:
    await services.stop()
    try:
        ordinary, waiting = await pods.make(), await pods.make(checkpoint.name)
        assert (await pods.counted(ordinary))[0] == 1
        assert "no Kybernate worker runs on this node" in await pods.refusal(waiting)
    finally:
        await services.start()

    assert (await pods.counted(waiting))[0] > 1


def _furnished(services: NodeServices, settings: str, source: str = "") -> dict[str, Any]:
    """A pod with a bit of everything that pods have."""
    name = f"test-{secrets.token_hex(4)}"
    pod = counting_pod(name, node=services.node.name, runtime_class="kybernate")
    if source:
        pod["metadata"]["annotations"] = {"kybernate.io/restore-from": source}
    pod["spec"]["volumes"] = [
        {"name": "settings", "configMap": {"name": settings}},
        {"name": "secrets", "secret": {"secretName": settings}},
        {"name": "shared", "emptyDir": {}},
    ]
    (container,) = pod["spec"]["containers"]
    container["volumeMounts"] = [
        {"name": name, "mountPath": f"/{name}"} for name in ("settings", "secrets", "shared")
    ]
    container["securityContext"] = {"readOnlyRootFilesystem": True}
    container["resources"] = {"limits": {"memory": f"{MEMORY}Mi"}}
    probe = {"exec": {"command": ["true"]}, "periodSeconds": 1}
    container |= {"livenessProbe": probe, "readinessProbe": probe}
    return pod


def _memory_limit(pid: int) -> int:
    """Of the process's cgroup, as the host sees it."""
    lines = [line.split(":") for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    paths = {names: path.removeprefix("/") for _, names, path in lines}
    if "memory" in paths:
        file = CGROUPS / "memory" / paths["memory"] / "memory.limit_in_bytes"
    else:
        file = CGROUPS / paths[""] / "memory.max"
    return int(file.read_text())


def _is_ready(cluster: Cluster, pod: str) -> Callable[[], Awaitable[bool]]:
    async def is_ready() -> bool:
        found = await cluster.pod(pod)
        return bool(found["status"]["containerStatuses"][0]["ready"])

    return is_ready


def _is_forgotten(services: NodeServices, container: str) -> Callable[[], Awaitable[bool]]:
    async def is_forgotten() -> bool:
        return container not in services.restored()

    return is_forgotten


async def _all_refused(pods: Pods, expected: dict[str, str]) -> None:
    """Pods with these annotations are refused with these words, and nothing is half made."""
    made = {await pods.make(source): words for source, words in expected.items()}
    told = await asyncio.gather(*(pods.refusal(pod) for pod in made))
    for words, expectation in zip(told, made.values(), strict=True):
        assert expectation in words
    for pod in made:
        found = await pods.cluster.pod(pod)
        assert not found["status"]["containerStatuses"][0]["ready"]
    assert pods.services.leftovers() == []


async def _crash(pods: Pods, pod: str) -> None:
    """End the container's first process from outside, and wait for the next container."""
    before = await _restarts(pods.cluster, pod)
    os.kill(await pods.services.pid(pod), signal.SIGKILL)

    async def has_restarted() -> bool:
        return await _restarts(pods.cluster, pod) > before

    await until(has_restarted, timeout=TIMEOUT)


async def _restarts(cluster: Cluster, pod: str) -> int:
    found: Any = await cluster.pod(pod)
    return int(found["status"]["containerStatuses"][0]["restartCount"])


async def _until_pods_can_be_made(cluster: Cluster, namespace: str) -> None:
    async def has_account() -> bool:
        account = ("serviceaccount", "default", "--namespace", namespace, "--ignore-not-found")
        return bool(await cluster.kubectl("get", *account))

    await until(has_account, timeout=TIMEOUT)
