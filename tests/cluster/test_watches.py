"""Controllers keep up with a real API server whatever becomes of their connections to it."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import aiohttp
import pytest

from controller.kube import client
from controller.kube.client import (
    CHECKPOINTS,
    PODS,
    RESTORES,
    Change,
    Expired,
    Json,
    Kube,
    Resource,
    connect,
)
from controller.kube.watch import Informer
from kybernate.embedded.kubernetes.cluster import Cluster
from kybernate.tasks import end
from tests.support.controllers import until
from tests.support.kube_world import World, condition, settle, world
from tests.support.relay import Relay, relaying


@pytest.fixture
def theirs(account: Path, folder: Path) -> Path:
    """The controllers' kubeconfig, to be changed."""
    return Path(shutil.copy(account, folder))


@pytest.fixture
async def relay(
    own_cluster: Cluster, theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Relay]:
    """Between the controllers and the API server; a silent watch is given up after 3 seconds."""
    monkeypatch.setattr(client, "WATCH_SECONDS", 2)
    monkeypatch.setattr(client, "WATCH_SILENCE_SECONDS", 3.0)
    monkeypatch.setattr(client, "REQUEST_SECONDS", 3.0)
    config = json.loads(theirs.read_text())
    at = config["clusters"][0]["cluster"]
    server = urlsplit(at["server"])
    assert server.hostname
    assert server.port
    async with relaying(server.hostname, server.port) as between:
        at["server"] = f"https://{server.hostname}:{between.port}"
        theirs.write_text(json.dumps(config))
        yield between


@pytest.fixture
async def place(own_cluster: Cluster, theirs: Path) -> AsyncIterator[World]:
    async with world(own_cluster, theirs) as here:
        yield here


async def begun(place: World) -> None:
    """A pod is there and has been checkpointed once."""
    await place.pod("counter")
    await place.checkpoint("first", podName="counter", leaveRunning=True)
    await place.in_phase(CHECKPOINTS, "first", "Completed")


async def test_what_changed_behind_a_cut_connection_is_done_when_it_is_back(
    relay: Relay, place: World
) -> None:
    async with place.controllers(2):
        await begun(place)
        relay.cut()
        await place.checkpoint("second", podName="counter", leaveRunning=True)
        await place.kube.patch(
            CHECKPOINTS, place.namespace, "first", {"spec": {"timeout": 60, "leaveRunning": False}}
        )
        await settle()
        assert len(place.worker.done) == 1
        relay.heal()

        await place.in_phase(CHECKPOINTS, "second", "Completed")
        await place.once(CHECKPOINTS, "first", lambda one: condition(one["status"], "Stalled"))
        assert len(place.worker.done) == 2


async def test_controllers_survive_a_history_that_was_compacted_behind_a_cut(
    relay: Relay, place: World, own_cluster: Cluster
) -> None:
    async with place.controllers(2):
        await begun(place)
        relay.cut()
        await place.checkpoint("second", podName="counter", leaveRunning=True)
        await forget_history(own_cluster)
        relay.heal()

        await place.in_phase(CHECKPOINTS, "second", "Completed")
        assert len(place.worker.done) == 2


async def test_a_version_that_is_gone_leads_to_a_new_list(
    place: World, own_cluster: Cluster
) -> None:
    _, version = await place.kube.listed(CHECKPOINTS)
    await place.checkpoint("second", podName="counter")
    await forget_history(own_cluster)
    async with connect(own_cluster.kubeconfig) as kube:
        stale = Stale(kube, version)
        informer = Informer(cast("Kube", stale), CHECKPOINTS, lambda _: None)
        following = asyncio.create_task(informer.run())
        try:
            await until(lambda: asyncio.sleep(0, stale.lists), lambda lists: lists >= 2)
            await place.checkpoint("third", podName="counter")
            keys = {(place.namespace, name) for name in ("second", "third")}
            await until(lambda: asyncio.sleep(0, informer), lambda of: all(map(of.get, keys)))
        finally:
            await end(following)
    assert stale.expired == 1


class Stale:
    """The API server; its first list tells a version that it has forgotten since."""

    def __init__(self, kube: Kube, version: str) -> None:
        self.lists = self.expired = 0
        self._kube = kube
        self._version = version

    async def listed(self, resource: Resource, *, selector: str = "") -> tuple[list[Json], str]:
        found, version = await self._kube.listed(resource, selector=selector)
        self.lists += 1
        return found, version if self.lists > 1 else self._version

    async def watch(
        self, resource: Resource, version: str, *, selector: str = ""
    ) -> AsyncIterator[Change]:
        try:
            async for change in self._kube.watch(resource, version, selector=selector):
                yield change
        except Expired:
            self.expired += 1
            raise


async def test_what_was_deleted_while_no_controller_ran_is_cleaned_up_by_the_next(
    place: World,
) -> None:
    async with place.controllers():
        await begun(place)
        await place.checkpoint("second", podName="counter", leaveRunning=True)
        kept = (await place.in_phase(CHECKPOINTS, "second", "Completed"))["checkpointRef"]
        await place.restore("back", checkpointRef="second")
        made = await place.once(
            RESTORES, "back", lambda one: "restoredPodUID" in one.get("status", {})
        )
        name = made["status"]["restoredPodName"]
    for resource, gone in ((CHECKPOINTS, "first"), (PODS, name)):
        found = await place.kube.get(resource, place.namespace, gone)
        assert found is not None
        uid = found["metadata"]["uid"]
        await place.kube.delete(resource, place.namespace, gone, uid=uid)

    async with place.controllers(2):
        await place.once(CHECKPOINTS, "first", lambda one: one is None)
        status = await place.in_phase(RESTORES, "back", "Failed")

        assert condition(status, "Stalled")["reason"] == "PodDeleted"
        left = {key for key, state in (await place.catalogue()).items() if state == "ready"}
        assert left == {kept}


async def forget_history(cluster: Cluster) -> None:
    """etcd drops all old versions, and the API server what it remembers of them."""
    assert cluster.control_plane
    await compact(cluster.control_plane.etcd)
    await cluster.control_plane.restart_api_server()


async def compact(etcd: str) -> None:
    patience = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(etcd, timeout=patience, raise_for_status=True) as session:
        async with session.post("/v3/kv/range", json={"key": "AA=="}) as answer:
            revision = (await answer.json())["header"]["revision"]
        order = {"revision": revision, "physical": True}
        async with session.post("/v3/kv/compaction", json=order):
            pass
