"""What pods can have besides a container, each resumed or refused in words, by custom resources."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from kybernate.embedded.kubernetes.commands import CommandFailed
from kybernate.embedded.kubernetes.waiting import until
from tests.support.cluster_pods import IMAGE, counting_pod
from tests.support.node_services import NodeServices
from tests.support.resuming import TIMEOUT, Resources

MEMORY = 64
PORT = 8197
COUNT = "i=0; while :; do i=$((i + 1)); echo Loop $i; sleep 0.2; done"
LOG = "exec 3>>/host/log; i=0; while :; do i=$((i+1)); echo Loop $i; echo $i >&3; sleep 0.2; done"
SERVE = f"httpd -f -p {PORT} -h /settings & "
LOOK = """
cat /settings/colour /one /secrets/word /projected/name /claimed/kept /init/by-init | xargs
ls /projected/token /var/run/secrets/kubernetes.io/serviceaccount/token
touch /forbidden 2>/dev/null || echo read-only
grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' /proc/1/status
"""
PROBE = {"periodSeconds": 1}
SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}


@pytest_asyncio.fixture(loop_scope="session")
async def pods(operated: NodeServices) -> AsyncIterator[Resources]:
    made = Resources(operated)
    yield made
    await made.all_gone()


class Furniture:
    """What a pod uses of its cluster and its node, under one name."""

    def __init__(self, services: NodeServices) -> None:
        self.name = f"test-{secrets.token_hex(4)}"
        self._kubectl = services.cluster.kubectl
        self._cluster = services.cluster
        self.host, self.volume = (services.node.home / kind / self.name for kind in ("h", "v"))

    async def make(self) -> None:
        for folder in (self.host, self.volume / "part"):
            folder.mkdir(parents=True)
        await self.colour("green")
        secret = ("secret", "generic", self.name, "--from-literal=word=open")
        await self._kubectl("create", *secret)
        size = {"storage": "1Mi"}
        shared = {"accessModes": ["ReadWriteOnce"], "storageClassName": ""}
        volume = {"capacity": size, "hostPath": {"path": str(self.volume)}, **shared}
        claim = {"resources": {"requests": size}, "volumeName": self.name, **shared}
        await self._cluster.apply(
            self._resource("PersistentVolume", volume),
            self._resource("PersistentVolumeClaim", claim),
        )

    async def colour(self, colour: str) -> None:
        await self._kubectl("delete", "configmap", self.name, "--ignore-not-found")
        await self._kubectl("create", "configmap", self.name, f"--from-literal=colour={colour}")

    async def clear(self) -> None:
        for kind in ("configmap", "secret", "pvc", "pv"):
            await self._kubectl("delete", kind, self.name, "--ignore-not-found", "--wait=false")

    def volumes(self) -> list[dict[str, Any]]:
        token = {"serviceAccountToken": {"path": "token"}}
        field = {"fieldRef": {"fieldPath": "metadata.name"}, "path": "name"}
        sources = [token, {"downwardAPI": {"items": [field]}}]
        return [
            {"name": "settings", "configMap": {"name": self.name}},
            {"name": "secrets", "secret": {"secretName": self.name}},
            {"name": "projected", "projected": {"sources": sources}},
            {"name": "host", "hostPath": {"path": str(self.host), "type": "Directory"}},
            {"name": "claimed", "persistentVolumeClaim": {"claimName": self.name}},
            {"name": "init", "emptyDir": {}},
        ]

    def mounts(self) -> list[dict[str, str]]:
        whole = ("settings", "secrets", "projected", "host", "init")
        return [
            *({"name": name, "mountPath": f"/{name}"} for name in whole),
            {"name": "settings", "mountPath": "/one", "subPath": "colour"},
            {"name": "claimed", "mountPath": "/claimed", "subPath": "part"},
        ]

    def _resource(self, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        metadata = {"name": self.name}
        return {"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec}


@pytest_asyncio.fixture(loop_scope="session")
async def furniture(operated: NodeServices) -> AsyncIterator[Furniture]:
    made = Furniture(operated)
    await made.make()
    yield made
    await made.clear()


def bare(pods: Resources, script: str = COUNT, **spec: Any) -> dict[str, Any]:
    name = f"test-{secrets.token_hex(4)}"
    pod = counting_pod(name, node=pods.services.node.name, runtime_class="kybernate")
    pod["spec"] |= spec
    pod["spec"]["containers"][0]["command"] = ["sh", "-c", script]
    return pod


def furnished(pods: Resources, furniture: Furniture) -> dict[str, Any]:
    pod = bare(pods, SERVE + LOG, volumes=furniture.volumes())
    first = {
        "name": "first",
        "image": IMAGE,
        "command": ["sh", "-c", "echo prepared >/init/by-init"],
        "volumeMounts": [{"name": "init", "mountPath": "/init"}],
    }
    # what starts from the image once the checkpoint is made would write to the volumes, too
    pod["spec"] |= {"initContainers": [first], "restartPolicy": "Never"}
    (container,) = pod["spec"]["containers"]
    container |= {
        "volumeMounts": furniture.mounts(),
        "securityContext": SECURITY,
        "resources": {"limits": {"memory": f"{MEMORY}Mi", "cpu": "500m"}},
        "startupProbe": {**PROBE, "tcpSocket": {"port": PORT}, "failureThreshold": 60},
        "readinessProbe": {**PROBE, "httpGet": {"port": PORT, "path": "/colour"}},
        "livenessProbe": {**PROBE, "exec": {"command": ["test", "-e", "/host/log"]}},
        "lifecycle": {"postStart": {"exec": {"command": ["sh", "-c", "echo x >>/host/started"]}}},
    }
    return pod


async def test_a_pod_with_a_bit_of_everything_goes_on(
    pods: Resources, furniture: Furniture
) -> None:
    first = await pods.apply(furnished(pods, furniture))
    await pods.counted(first)
    (furniture.volume / "part/kept").write_text("kept\n")
    (furniture.host / "started").unlink()
    looked = await said(pods, first, LOOK)
    assert looked.splitlines()[0].split() == ["greengreenopen" + first + "kept", "prepared"]
    checkpoint = await pods.checkpoint(first)
    await furniture.colour("red")

    second = await pods.restore(checkpoint)

    assert (await pods.counted(second, 5))[0] > 1
    await until(lambda: is_ready(pods, second), timeout=TIMEOUT)
    expected = looked.replace("green", "red").replace(first, second)
    assert await said(pods, second, LOOK) == expected
    assert (furniture.host / "started").read_text() == "x\n"
    written = list(map(int, (furniture.host / "log").read_text().split()))
    assert written == list(range(1, len(written) + 1))
    await its_memory_has_an_end(pods, second)


async def its_memory_has_an_end(pods: Resources, pod: str) -> None:
    """Much more than the limit takes a process; the container's own live on."""
    before = await restarts(pods, pod)
    with pytest.raises(CommandFailed, match="137"):
        await said(pods, pod, f"exec tail -c {2 * MEMORY}m /dev/zero")
    assert await restarts(pods, pod) == before


async def test_a_pod_in_the_network_of_its_node_goes_on(pods: Resources) -> None:
    pod = bare(pods, f"cd /; httpd -f -p {PORT} & {COUNT}", hostNetwork=True)
    first = await pods.apply(pod)
    await pods.counted(first)

    second = await pods.restore(await pods.checkpoint(first))

    assert (await pods.counted(second))[0] > 1
    node = pods.services.node
    page = f"http://{node.address}:{PORT}/etc/hostname"
    assert await said(pods, second, f"wget -q -O - {page}")


REFUSED = {
    "shareProcessNamespace": "uses shareProcessNamespace, with which it cannot be checkpointed",
    "hostPID": "uses hostPID, with which it cannot be checkpointed",
    "hostIPC": "uses hostIPC, with which it cannot be checkpointed",
}


async def test_what_cannot_resume_is_refused_and_runs_on(
    pods: Resources, furniture: Furniture
) -> None:
    expected = {
        await pods.apply(bare(pods, COUNT, **{field: True})): REFUSED[field] for field in REFUSED
    }
    reader = bare(pods, f"exec 3</settings/colour; {COUNT}", volumes=furniture.volumes())
    reader["spec"]["containers"][0]["volumeMounts"] = furniture.mounts()
    expected[await pods.apply(reader)] = "a file of a configMap, a secret or a token"
    for pod in expected:
        await pods.counted(pod)

    told = await asyncio.gather(*map(pods.refused, expected))

    for words, expectation in zip(told, expected.values(), strict=True):
        assert expectation in words
    shared, host, *_ = expected
    for pod in (shared, host):
        with pytest.raises(CommandFailed, match="shares process IDs"):
            await pods.services.checkpoint(pod)
    for pod in expected:
        counted = await pods.counted(pod)
        await pods.counted(pod, len(counted) + 2)


ITS_OWN = "id -u; id -g; id -G; ls -ldn /shared; grep -E '^(Uid|Gid|Groups|Cap.*):' /proc/1/status"


@pytest.mark.parametrize("hardened", [False, True], ids=["as-it-is", "hardened"])
async def test_a_container_of_another_user_than_root_goes_on(
    pods: Resources, *, hardened: bool
) -> None:
    first = await pods.apply(of_another_user(pods, hardened=hardened))
    await pods.counted(first)
    before = await said(pods, first, ITS_OWN)
    assert before.split()[:2] == ["1000", "1001"]

    checkpoint = await pods.checkpoint(first)
    pod = of_another_user(pods, hardened=hardened)
    pod["metadata"]["annotations"] = {"kybernate.io/restore-from": checkpoint}
    second = await pods.apply(pod)

    assert (await pods.counted(second, 5))[0] > 1
    assert await said(pods, second, ITS_OWN) == before
    written = (await said(pods, second, "cat /shared/log")).split()
    assert written == list(map(str, range(1, len(written) + 1)))


def of_another_user(pods: Resources, *, hardened: bool) -> dict[str, Any]:
    user = {"runAsUser": 1000, "runAsGroup": 1001, "fsGroup": 1002}
    security = user | ({"runAsNonRoot": True} if hardened else {})
    script = LOG.replace("/host/", "/shared/")
    volumes = [{"name": "work", "emptyDir": {}}]
    pod = bare(pods, script, securityContext=security, volumes=volumes)
    (container,) = pod["spec"]["containers"]
    container["volumeMounts"] = [{"name": "work", "mountPath": "/shared"}]
    if hardened:
        container["securityContext"] = SECURITY
    return pod


async def test_a_damaged_checkpoint_is_told_and_leaves_no_pod(pods: Resources) -> None:
    first = await pods.apply(bare(pods))
    await pods.counted(first)
    checkpoint = await pods.checkpoint(first)
    pages = next((pods.services.checkpoints / checkpoint).glob("containers/*/images/pages-*"))
    raw = bytearray(pages.read_bytes())
    raw[100] ^= 1
    pages.write_bytes(raw)

    told = await pods.not_restored(checkpoint)

    assert told["reason"] == "PodFailed"
    assert "CheckpointDamaged" in told["message"]


async def said(pods: Resources, pod: str, script: str) -> str:
    return await pods.cluster.kubectl("exec", pod, "--", "sh", "-c", script)


async def is_ready(pods: Resources, pod: str) -> bool:
    found = await pods.cluster.pod(pod)
    return bool(found["status"]["containerStatuses"][0]["ready"])


async def restarts(pods: Resources, pod: str) -> int:
    found = await pods.cluster.pod(pod)
    return int(found["status"]["containerStatuses"][0]["restartCount"])
