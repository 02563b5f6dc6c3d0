"""Informers keep up with whatever happens to a watch; queues attend to each object in turn."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

from controller.kube.client import PODS, Change, Expired, Kube, KubeUnavailable, Resource
from controller.kube.queue import Attend, Queue
from controller.kube.watch import Informer, Key, key_of
from kybernate.tasks import end
from tests.support.controllers import until


def an_object(name: str, version: int) -> dict[str, Any]:
    return {"metadata": {"namespace": "n", "name": name, "resourceVersion": str(version)}}


class FakeServer:
    """Lists what is there, and breaks each watch as it is told."""

    def __init__(self) -> None:
        self.there: list[dict[str, Any]] = []
        self.versions: list[str] = []
        self.lines: asyncio.Queue[Change | Exception] = asyncio.Queue()

    async def listed(
        self, resource: Resource, *, selector: str = ""
    ) -> tuple[list[dict[str, Any]], str]:
        return list(self.there), "1"

    async def watch(
        self, resource: Resource, version: str, *, selector: str = ""
    ) -> AsyncIterator[Change]:
        self.versions.append(version)
        while True:
            match await self.lines.get():
                case Exception() as error:
                    raise error
                case Change(type="END"):
                    return
                case change:
                    yield change


@asynccontextmanager
async def following(server: FakeServer) -> AsyncIterator[tuple[Informer, list[str]]]:
    told: list[str] = []
    informer = Informer(cast("Kube", server), PODS, lambda one: told.append(key_of(one)[1]))
    task = asyncio.create_task(informer.run())
    try:
        await informer.listed.wait()
        yield informer, told
    finally:
        await end(task)


async def names(informer: Informer) -> set[str]:
    return {key_of(one)[1] for one in informer.all()}


async def test_a_watch_goes_on_where_the_last_one_ended() -> None:
    server = FakeServer()
    async with following(server) as (informer, told):
        for change in (
            Change(type="ADDED", object=an_object("a", 5)),
            Change(type="BOOKMARK", object={"metadata": {"resourceVersion": "9"}}),
            Change(type="END", object={}),
            Change(type="DELETED", object=an_object("a", 11)),
        ):
            server.lines.put_nowait(change)
        await until(lambda: asyncio.sleep(0, told), lambda seen: len(seen) == 2)

        assert server.versions == ["1", "9"]
        assert await names(informer) == set()


async def test_what_is_told_twice_is_there_once_and_goes_once() -> None:
    server = FakeServer()
    async with following(server) as (informer, told):
        for kind, version in (("ADDED", 5), ("ADDED", 5), ("MODIFIED", 6), ("MODIFIED", 6)):
            server.lines.put_nowait(Change(type=kind, object=an_object("a", version)))
        await until(lambda: asyncio.sleep(0, told), lambda seen: len(seen) == 4)
        assert [one["metadata"]["resourceVersion"] for one in informer.all()] == ["6"]

        for _ in range(2):
            server.lines.put_nowait(Change(type="DELETED", object=an_object("a", 7)))
        await until(lambda: asyncio.sleep(0, told), lambda seen: len(seen) == 6)
        assert await names(informer) == set()


async def test_after_a_break_everything_is_listed_anew() -> None:
    server = FakeServer()
    server.there = [an_object("a", 1), an_object("b", 1)]
    async with following(server) as (informer, told):
        for problem in (Expired("too old"), KubeUnavailable("cut off")):
            server.there = [an_object("b", 1), an_object(type(problem).__name__, 2)]
            server.lines.put_nowait(problem)
            wanted = {"b", type(problem).__name__}
            await until(lambda: names(informer), wanted.__eq__)

        assert told.count("a") == 2
        assert told.count("b") == 3


@asynccontextmanager
async def queue(attend: Attend) -> AsyncIterator[Queue]:
    waiting = Queue("test", attend)
    task = asyncio.create_task(waiting.run())
    try:
        yield waiting
    finally:
        await end(task)


KEY = ("n", "a")


async def test_one_object_is_attended_to_by_one_task_and_again_when_it_changed() -> None:
    busy, most, times = 0, 0, 0
    gate = asyncio.Event()

    async def attend(_key: Key) -> None:
        nonlocal busy, most, times
        busy, times = busy + 1, times + 1
        most = max(most, busy)
        await gate.wait()
        busy -= 1

    async with queue(attend) as waiting:
        waiting.add(KEY)
        await until(lambda: asyncio.sleep(0, times), lambda seen: seen == 1)
        for _ in range(5):
            waiting.add(KEY)
        gate.set()
        await until(lambda: asyncio.sleep(0, times), lambda seen: seen == 2)
        await asyncio.sleep(0.05)

    assert (most, times) == (1, 2)


async def test_an_object_comes_again_when_it_asks_for_that_and_when_it_failed() -> None:
    seen: list[str] = []

    async def attend(key: Key) -> float | None:
        seen.append(key[1])
        if seen.count("fails") == 1 and key[1] == "fails":
            raise KubeUnavailable("once")
        return 0.01 if seen.count("asks") < 3 and key[1] == "asks" else None

    async with queue(attend) as waiting:
        for name in ("asks", "fails"):
            waiting.add(("n", name))
        await until(
            lambda: asyncio.sleep(0, seen), lambda all_: all_.count("asks") + len(all_) == 8
        )

    assert sorted(seen) == ["asks", "asks", "asks", "fails", "fails"]
