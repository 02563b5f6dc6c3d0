"""What the worker does when a pod's container asks to resume, over twins; GPU memory included."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from node_worker.containerd.port import AlreadyExists, Container, Packed
from node_worker.faults import Refused
from node_worker.gpu.port import GpuFailed, GpuState
from node_worker.pods.requests import GoneTold, RestoreAsked, RunningAsked
from node_worker.pods.restores import Restores
from node_worker.resumed import CRIU_CONFIG
from schemas import reasons
from schemas.orders import CheckpointOrder, Part
from schemas.pods import PodRecord
from tests.support.fake_gpu import OTHER_UUID, facts
from tests.support.workshop import IMAGE, SNAPSHOTTER, Workshop, new_id, target

PODS = "k8s.io"
TEMPLATE = '{"spec": {"initContainers": [{"name": "first"}], "containers": [{"name": "counter"}]}}'


class Kubelet:
    """Makes containers of one pod, as kubelet and containerd do."""

    def __init__(self, shop: Workshop) -> None:
        self.shop = shop
        self.restores = Restores(shop.means)

    async def checkpointed(self, *, gpu: bool = False) -> str:
        await self.shop.start(gpu=gpu)
        pod = PodRecord(
            namespace="team",
            name="pod",
            uid=new_id(),
            node="node-1",
            template=TEMPLATE,
        )
        parts = (Part(name="counter", target=target()),)
        order = CheckpointOrder(parts=parts, checkpoint=new_id(), pod=pod)
        outcome = await self.shop.run(order)
        assert outcome.result is not None, outcome.failure
        return order.checkpoint

    async def ask(
        self, source: str, id: str = "new", *, image: str = IMAGE, **more: str
    ) -> RestoreAsked:
        await self._record(id, image)
        bundle = self.shop.folder / "bundles" / id
        bundle.mkdir(parents=True)
        annotations = {
            "io.kubernetes.cri.sandbox-id": "sandbox",
            "io.kubernetes.cri.sandbox-namespace": "team",
            "io.kubernetes.cri.container-name": "counter",
            "kybernate.io/restore-from": source,
            CRIU_CONFIG: "/etc/shadow",
        }
        told = {f"io.kubernetes.cri.{name.replace('_', '-')}": each for name, each in more.items()}
        spec = msgspec.json.encode({"annotations": annotations | told})
        (bundle / "config.json").write_bytes(spec)
        (bundle / "init.pid").write_text(str(os.getpid()))
        return RestoreAsked(container=id, asker=1, bundle=bundle)

    async def runs(self, id: str = "new") -> None:
        await self.restores.running(RunningAsked(container=id, asker=2))

    async def gone(self, id: str = "new") -> None:
        await self.restores.gone(GoneTold(container=id))

    def gpu_becomes(self, state: GpuState) -> None:
        """Of the process that is the container's first."""
        self.shop.gpu.add(os.getpid(), state)

    def gpu_state(self) -> GpuState:
        return self.shop.gpu.states[os.getpid()]

    def leftovers(self) -> list[str]:
        return [*self.shop.leftovers(), *map(str, (self.shop.settings.state / "pods").glob("*"))]

    async def _record(self, id: str, image: str) -> None:
        runtime = self.shop.runtime
        with contextlib.suppress(AlreadyExists):  # pulled for the container before
            await runtime.prepare_snapshot(PODS, SNAPSHOTTER, f"filling-{id}", "", {})
            await runtime.commit_snapshot(PODS, SNAPSHOTTER, image, f"filling-{id}", {})
        await runtime.prepare_snapshot(PODS, SNAPSHOTTER, id, image, {})
        spec = Packed(type_url="spec", value=b"{}")
        record = Container(id=id, spec=spec, snapshotter=SNAPSHOTTER, snapshot_key=id)
        await runtime.create_container(PODS, record)


@pytest.fixture
def kubelet(tmp_path: Path) -> Iterator[Kubelet]:
    shop = Workshop(tmp_path)
    yield Kubelet(shop)
    shop.close()


async def refused(kubelet: Kubelet, request: RestoreAsked) -> Refused:
    with pytest.raises(Refused) as caught:
        await kubelet.restores.restore(request)
    assert kubelet.leftovers() == []
    return caught.value


async def test_a_container_resumes_with_its_gpu_memory(kubelet: Kubelet) -> None:
    request = await kubelet.ask(await kubelet.checkpointed(gpu=True))

    paths = await kubelet.restores.restore(request)

    assert paths is not None
    assert (Path(paths.image_path) / "inventory.img").exists()
    assert Path(paths.work_path).is_dir()
    spec = msgspec.json.decode((request.bundle / "config.json").read_bytes())
    assert "tcp-established" in Path(spec["annotations"][CRIU_CONFIG]).read_text()
    kubelet.gpu_becomes(GpuState.CHECKPOINTED)
    await kubelet.runs()
    assert kubelet.gpu_state() is GpuState.RUNNING
    assert kubelet.leftovers() == []


async def test_another_worker_can_go_on_after_the_restore(kubelet: Kubelet) -> None:
    request = await kubelet.ask(await kubelet.checkpointed(gpu=True))
    await kubelet.restores.restore(request)
    kubelet.gpu_becomes(GpuState.CHECKPOINTED)

    kubelet.restores = Restores(kubelet.shop.means)
    await kubelet.runs()

    assert kubelet.gpu_state() is GpuState.RUNNING


async def test_a_gpu_that_does_not_come_back_is_told_and_nothing_is_left(kubelet: Kubelet) -> None:
    await kubelet.restores.restore(await kubelet.ask(await kubelet.checkpointed(gpu=True)))
    kubelet.gpu_becomes(GpuState.CHECKPOINTED)
    kubelet.shop.gpu.fail("restore", GpuFailed("out of memory", code="OUT_OF_MEMORY"))

    with pytest.raises(GpuFailed):
        await kubelet.runs()

    await kubelet.gone()
    assert kubelet.leftovers() == []


async def test_a_gpu_of_another_model_is_refused(kubelet: Kubelet) -> None:
    request = await kubelet.ask(await kubelet.checkpointed(gpu=True))
    other = msgspec.structs.replace(facts(OTHER_UUID), model="Other 1")
    kubelet.shop.gpu.gpus = (other,)

    with pytest.raises(Exception, match="Other 1"):
        await kubelet.restores.restore(request)

    assert kubelet.leftovers() == []


async def test_another_image_is_refused(kubelet: Kubelet) -> None:
    request = await kubelet.ask(await kubelet.checkpointed(), image="another-layer")

    assert (await refused(kubelet, request)).failure.reason == reasons.IMAGE_MISSING


async def test_an_init_container_starts_from_its_image(kubelet: Kubelet) -> None:
    request = await kubelet.ask(await kubelet.checkpointed(), container_name="first")

    assert await kubelet.restores.restore(request) is None


async def test_a_restarted_container_starts_from_its_image(kubelet: Kubelet) -> None:
    checkpoint = await kubelet.checkpointed()
    assert await kubelet.restores.restore(await kubelet.ask(checkpoint)) is not None
    again = await kubelet.ask(checkpoint, "failed")
    assert await kubelet.restores.restore(again) is not None, "it had not come back yet"
    await kubelet.runs()

    restarted = await kubelet.ask(checkpoint, "restarted")

    assert await kubelet.restores.restore(restarted) is None


@pytest.mark.parametrize("namespace", ["other", "tea", "team2"])
async def test_another_namespace_finds_nothing(kubelet: Kubelet, namespace: str) -> None:
    request = await kubelet.ask(await kubelet.checkpointed(), sandbox_namespace=namespace)

    assert (await refused(kubelet, request)).failure.reason == reasons.CHECKPOINT_MISSING


async def test_what_nobody_has_told_of_is_cleared_up(kubelet: Kubelet) -> None:
    checkpoint = await kubelet.checkpointed()
    await kubelet.restores.restore(await kubelet.ask(checkpoint))
    await kubelet.restores.clear_up()
    assert kubelet.leftovers(), "the container is there"
    await kubelet.shop.runtime.delete_container(PODS, "new")

    await kubelet.restores.clear_up()

    assert kubelet.leftovers() == []


async def test_a_pod_is_forgotten_when_it_is_no_more(kubelet: Kubelet) -> None:
    checkpoint = await kubelet.checkpointed()
    await kubelet.restores.restore(await kubelet.ask(checkpoint))
    await kubelet.runs()

    await kubelet.restores.clear_up()

    again = await kubelet.ask(checkpoint, "again")
    assert await kubelet.restores.restore(again) is not None


async def test_a_start_that_nobody_knows_of_is_told(kubelet: Kubelet) -> None:
    with pytest.raises(Refused, match="knows nothing"):
        await kubelet.runs()
