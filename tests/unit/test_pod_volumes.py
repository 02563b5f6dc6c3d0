"""The contents of a pod's emptyDirs on their way into a checkpoint, and into another pod's."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from kybernate.store import Damaged, read_manifest, verify
from node_worker import volumes
from node_worker.archives import ArchiveFailed
from node_worker.containerd.port import Container, Mount, Packed, Stdio
from node_worker.faults import Refused
from node_worker.pods.bundles import Wish
from node_worker.pods.volumes import PODS, Fillings
from node_worker.volumes import EMPTY_DIRS, SANDBOX, SUBPATHS, UID_LABEL, Seen, Volume
from schemas import reasons
from schemas.base import Undecodable, decode
from schemas.manifest import Manifest
from schemas.messages import Checkpointed
from schemas.orders import CheckpointOrder, only_part
from schemas.volumes import VolumeRecord
from tests.support import mounts as real_mounts
from tests.support.workshop import NAMESPACE, Workshop, new_id, target


class Pod:
    """Kubelet's folder of a pod, and containerd's records of its containers."""

    _uids = itertools.count(1)

    def __init__(self, shop: Workshop) -> None:
        self.shop = shop
        self.uid = f"0000-{next(self._uids)}"
        self.sandbox = f"sandbox-{self.uid}"
        self.folder = shop.folder / "kubelet/pods" / self.uid
        (self.folder / "containers").mkdir(parents=True)
        self.has_memory = False

    def volume(self, name: str = "work") -> Path:
        path = self.folder / EMPTY_DIRS / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def container(self, id: str, *sources: Path) -> Container:
        own = self.folder / "containers/main/log"
        mounts = [{"source": str(source)} for source in (own, *sources)]
        if self.has_memory:
            mounts.append({"source": str(self.memory), "destination": "/dev/shm"})
        spec = {"mounts": mounts, "annotations": {SANDBOX: self.sandbox}}
        return Container(
            id=id,
            spec=Packed(type_url="spec", value=msgspec.json.encode(spec)),
            labels={UID_LABEL: self.uid},
        )

    async def known(self, id: str, *sources: Path) -> None:
        await self.shop.runtime.create_container(PODS, self.container(id, *sources))

    @property
    def memory(self) -> Path:
        """What containerd has made for its /dev/shm."""
        path = self.shop.folder / "sandboxes" / self.sandbox / "shm"
        path.mkdir(parents=True, exist_ok=True)
        return path

    def mounts_are_seen(self, *points: Path) -> None:
        """By the worker."""
        lines = (f"1 2 0:40 / {point} rw - tmpfs shm rw\n" for point in points)
        (self.shop.folder / "mountinfo").write_text("".join(lines))

    async def runs(self, id: str, *sources: Path) -> int:
        await self.known(id, *sources)
        mounts = (Mount(type="bind", source=str(self.folder), options=("rw",)),)
        await self.shop.runtime.create_task(PODS, id, mounts=mounts, stdio=Stdio())
        return await self.shop.runtime.start_task(PODS, id)

    def wish(self, name: str = "main") -> Wish:
        return Wish(
            source="",
            pod_namespace="team",
            sandbox=self.sandbox,
            container_name=name,
            restarts_from_image=True,
        )


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Workshop]:
    shop = Workshop(tmp_path)
    yield shop
    shop.close()


@pytest.fixture(autouse=True)
def processes(shop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "PROC", shop.folder / "proc")
    monkeypatch.setattr(volumes, "MOUNTS", shop.folder / "mountinfo")
    (shop.folder / "mountinfo").touch()


@pytest.fixture
def old(shop: Workshop) -> Pod:
    return Pod(shop)


@pytest.fixture
async def new(shop: Workshop) -> Pod:
    """Another pod with the same volume, whose container is about to come back."""
    pod = Pod(shop)
    pod.volume()
    await pod.known("new")
    return pod


async def checkpoint(pod: Pod) -> tuple[Path, Manifest]:
    """Of a running container of the pod."""
    shop = pod.shop
    await shop.start()
    ours = pod.container("c1")
    record = await shop.runtime.container(NAMESPACE, "c1")
    changed = msgspec.structs.replace(record, spec=ours.spec, labels=ours.labels)
    await shop.runtime.replace_container(NAMESPACE, changed)
    order = CheckpointOrder(parts=only_part(target()), checkpoint=new_id())
    outcome = await shop.run(order)
    assert isinstance(outcome.result, Checkpointed), outcome.failure
    folder = shop.store.folder(order.checkpoint)
    return folder, read_manifest(folder)


async def fill(
    pod: Pod, source: tuple[Path, Manifest], name: str = "main", id: str = "new"
) -> None:
    """As a container of the pod that comes back does; each time by another worker."""
    fillings, wish = Fillings(pod.shop.means), pod.wish(name)
    folder, manifest = source
    async with fillings.alone(wish):
        await fillings.fill(wish, folder, await fillings.targets(id, wish, manifest))


async def test_contents_go_from_one_pod_to_the_other(old: Pod, new: Pod) -> None:
    (old.volume() / "file").write_text("kept")
    (old.volume() / "sub").mkdir(mode=0o700)
    old.volume("second").joinpath("other").touch()
    new.volume("second")
    (new.volume() / "by-init").mkdir()
    (new.volume() / "by-init/file").write_text("makes way")

    source = await checkpoint(old)
    await fill(new, source)

    verify(*source)
    assert [one.name for one in source[1].volumes] == ["second", "work"]
    assert {"volumes/emptyDir/second.tar", "volumes/emptyDir/work.tar"} < {
        one.path for one in source[1].files
    }
    assert sorted(path.name for path in new.volume().iterdir()) == ["file", "sub"]
    assert (new.volume() / "sub").stat().st_mode & 0o777 == 0o700
    assert (new.volume("second") / "other").exists()


async def test_a_pod_without_volumes_needs_none(old: Pod, new: Pod) -> None:
    source = await checkpoint(old)
    (new.volume() / "file").write_text("its own")

    await fill(new, source)

    assert not source[1].volumes
    assert (new.volume() / "file").read_text() == "its own"


async def test_a_second_container_finds_what_the_first_has_made_of_it(old: Pod, new: Pod) -> None:
    (old.volume() / "file").write_text("old")
    source = await checkpoint(old)
    await fill(new, source, "first")
    (new.volume() / "file").write_text("live")

    await fill(new, source, "second")
    assert (new.volume() / "file").read_text() == "live"

    await fill(new, source, "first")
    assert (new.volume() / "file").read_text() == "live", "the second has it open"


async def test_a_container_alone_takes_its_contents_back(old: Pod, new: Pod) -> None:
    (old.volume() / "file").write_text("old")
    source = await checkpoint(old)
    await fill(new, source)
    (new.volume() / "file").write_text("of an attempt that failed")

    await fill(new, source)

    assert (new.volume() / "file").read_text() == "old"


async def test_a_folder_that_kubelet_has_mounted_stays_the_same_one(old: Pod, new: Pod) -> None:
    (old.volume() / "part/deep").mkdir(parents=True)
    (old.volume() / "part/deep/file").write_text("old")
    deep = new.volume() / "part/deep"
    deep.mkdir(parents=True)
    (deep / "by-init").touch()
    (new.volume() / "part/away").mkdir()
    place = new.folder / SUBPATHS / "work/main/0"
    place.mkdir(parents=True)

    with real_mounts.mounted(place, "--bind", str(deep)):
        await fill(new, await checkpoint(old))

        assert deep.samefile(place)
        assert [path.name for path in place.iterdir()] == ["file"]
        assert [path.name for path in (new.volume() / "part").iterdir()] == ["deep"]


async def test_links_lead_nowhere(old: Pod, new: Pod, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").touch()
    (old.volume() / "way").symlink_to(outside)
    (new.volume() / "trap").symlink_to(outside)

    await fill(new, await checkpoint(old))

    assert (outside / "precious").exists()
    assert (new.volume() / "way").readlink() == outside
    assert not (new.volume() / "trap").is_symlink()


async def test_shared_memory_goes_along_where_the_pod_has_some(old: Pod, new: Pod) -> None:
    old.has_memory = new.has_memory = True
    (old.memory / "shared").write_text("of the old pod")
    old.mounts_are_seen(old.memory)
    source = await checkpoint(old)
    await new.known("with memory")
    await new.runs(new.sandbox)

    with pytest.raises(Refused, match="the worker cannot see"):
        await fill(new, source, id="with memory")
    new.mounts_are_seen(new.memory)
    await fill(new, source, id="with memory")

    assert [str(one) for one in source[1].volumes] == ["/dev/shm"]
    assert (new.memory / "shared").read_text() == "of the old pod"


async def test_shared_memory_without_files_is_not_missed(old: Pod, new: Pod) -> None:
    old.has_memory = True
    old.mounts_are_seen(old.memory)
    source = await checkpoint(old)

    await fill(new, source)

    assert not source[1].volumes


def test_shared_memory_that_the_worker_cannot_see_is_told_if_it_is_used(old: Pod) -> None:
    old.has_memory = True
    assert told(old) == []

    memory = old.shop.folder / f"proc/{os.getpid()}/root/dev/shm"
    memory.mkdir(parents=True)
    (memory / "shared").touch()

    assert "cannot look into the pod's /dev/shm" in told(old)[0]


async def test_a_pod_without_shared_memory_of_its_own_is_refused(old: Pod, new: Pod) -> None:
    old.has_memory = True
    (old.memory / "shared").touch()
    old.mounts_are_seen(old.memory)

    words = str(await refusal(new, await checkpoint(old)))

    assert "the pod has no /dev/shm of its own" in words


async def refusal(pod: Pod, source: tuple[Path, Manifest]) -> Refused:
    (pod.volume("witness") / "file").write_text("untouched")
    with pytest.raises(Refused) as caught:
        await fill(pod, source)
    assert (pod.volume("witness") / "file").read_text() == "untouched"
    return caught.value


@pytest.mark.parametrize("instead", ["nothing", "link"])
async def test_a_pod_without_the_volume_is_refused(old: Pod, new: Pod, instead: str) -> None:
    old.volume("witness")
    old.volume("gone")
    source = await checkpoint(old)
    if instead == "link":
        (new.folder / EMPTY_DIRS / "gone").symlink_to(new.shop.folder)

    told = await refusal(new, source)

    assert "the pod has no emptyDir gone" in str(told)


async def test_too_little_room_is_refused_before_anything_is_touched(old: Pod, new: Pod) -> None:
    old.volume("witness")
    folder, manifest = await checkpoint(old)
    huge = (VolumeRecord(name="witness", bytes=1 << 60),)

    told = await refusal(new, (folder, msgspec.structs.replace(manifest, volumes=huge)))

    assert told.failure.reason == reasons.NOT_ENOUGH_DISK
    assert "1073741824.0 GiB more" in str(told)


async def test_a_volume_that_somebody_else_uses_already_is_refused(old: Pod, new: Pod) -> None:
    old.volume("witness")
    source = await checkpoint(old)
    await new.runs("sidecar", new.volume("witness"))

    assert "container sidecar of the pod runs already" in str(await refusal(new, source))


async def test_who_runs_elsewhere_or_has_ended_does_not_matter(old: Pod, new: Pod) -> None:
    (old.volume() / "file").write_text("old")
    source = await checkpoint(old)
    await new.known("init", new.volume())
    await new.runs("without", new.folder / "other")
    await old.runs("another-pods", old.volume())

    await fill(new, source)

    assert (new.volume() / "file").read_text() == "old"


async def test_a_pod_that_the_worker_does_not_see_is_refused(old: Pod, new: Pod) -> None:
    old.volume()
    source = await checkpoint(old)
    new.folder.rename(new.folder.with_name("hidden"))

    with pytest.raises(Refused, match="does not find kubelet's folder"):
        await fill(new, source)


async def test_contents_that_the_checkpoint_does_not_list_are_damage(old: Pod, new: Pod) -> None:
    old.volume()
    folder, manifest = await checkpoint(old)
    without = tuple(one for one in manifest.files if one.path != "volumes/emptyDir/work.tar")

    with pytest.raises(Damaged):
        await fill(new, (folder, msgspec.structs.replace(manifest, files=without)))


@pytest.mark.parametrize("name", ["../work", "a/b", "", ".", "A", "a.b", "a\n", "x" * 64, "-a"])
def test_a_manifest_with_another_kind_of_name_is_none(name: str) -> None:
    raw = msgspec.json.encode({"name": name, "bytes": 1})

    with pytest.raises(Undecodable):
        decode(raw, VolumeRecord)


def told(pod: Pod, *sources: Path) -> list[str]:
    seen = volumes.look([(pod.container("any", *sources), os.getpid())])
    return [failure.message for failure in volumes.obstacles(seen)]


def test_what_cannot_come_along_is_told(old: Pod) -> None:
    (old.volume() / "file").touch()
    mounted = old.folder / SUBPATHS / "work/main/0"
    mounted.parent.mkdir(parents=True)
    mounted.touch()
    old.volume("Not a name")

    unnamed, single = told(old)

    assert "single file of the emptyDir work (subPath, container main)" in single
    assert "Not a name is not named as a volume" in unnamed
    huge = Seen(volumes=(Volume(name="huge", path=Path("/huge"), file_system="hugetlbfs"),))
    assert "huge pages" in next(volumes.obstacles(huge)).message


def test_a_volume_that_the_worker_cannot_see_is_told_if_the_container_uses_it(old: Pod) -> None:
    volume, part = old.volume(), old.folder / SUBPATHS / "work/main/0"
    old.folder.rename(old.folder.with_name("hidden"))

    assert told(old) == []
    assert "cannot look into the pod's emptyDir work" in told(old, volume)[0]
    assert "cannot look into the pod's emptyDir work" in told(old, part)[0]


@pytest.mark.parametrize("uid", ["", "..", "a/b", "other"])
def test_only_the_pods_own_folder_is_looked_at(old: Pod, uid: str) -> None:
    container = old.container("any", old.volume())
    claimed = msgspec.structs.replace(container, labels={UID_LABEL: uid})

    assert volumes.look([(claimed, os.getpid())]) == Seen()


def test_the_space_of_files_counts_once_and_holes_do_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(1 << 20))
    os.link(tmp_path / "file", tmp_path / "again")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)

    assert 1 << 20 <= volumes.used_bytes(tmp_path) < 2 << 20


async def test_a_volume_that_cannot_be_read_fails_the_capture(tmp_path: Path) -> None:
    capture = volumes.Capture()
    capture.start((Volume(name="gone", path=tmp_path / "gone"),), tmp_path)

    with pytest.raises(ArchiveFailed, match="the pod's emptyDir gone") as caught:
        await capture.finish()

    assert caught.value.reason == reasons.VOLUME_FAILED
    await capture.stop()
    assert list((tmp_path / "volumes/emptyDir").iterdir()) == []
