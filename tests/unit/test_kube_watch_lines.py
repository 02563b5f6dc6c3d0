"""What a watch makes of what a server says, or does not say any more."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from controller.kube import client
from controller.kube.client import PODS, Change, Expired, KubeProblem, KubeUnavailable, connect

POD = {"metadata": {"namespace": "n", "name": "a", "resourceVersion": "5"}}
ADDED = {"type": "ADDED", "object": POD}


@asynccontextmanager
async def watching(
    folder: Path, *lines: Any, status: int = 200, silent: bool = False
) -> AsyncIterator[AsyncIterator[Change]]:
    """A watch of a server that says these lines, and then falls silent or ends."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        for line in lines:
            await response.write(json.dumps(line).encode() + b"\n")
        if silent:
            await asyncio.Event().wait()
        return response

    app = web.Application()
    app.router.add_get("/api/v1/pods", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    _write_kubeconfig(folder / "kubeconfig", runner.addresses[0][1])
    try:
        async with connect(folder / "kubeconfig") as kube:
            yield kube.watch(PODS, "1")
    finally:
        await runner.cleanup()


def _write_kubeconfig(file: Path, port: int) -> None:
    config = {
        "clusters": [{"name": "it", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "it", "user": {"token": "secret"}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        "current-context": "it",
    }
    file.write_text(json.dumps(config))


async def test_the_same_change_told_twice_is_handed_on_twice(folder: Path) -> None:
    async with watching(folder, ADDED, ADDED) as watch:
        assert [change.object for change in [one async for one in watch]] == [POD, POD]


async def test_a_connection_that_falls_silent_is_given_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "WATCH_SILENCE_SECONDS", 0.3)
    async with watching(folder, ADDED, silent=True) as watch:
        assert (await anext(watch)).object == POD
        with pytest.raises(KubeUnavailable, match="does not answer"):
            await anext(watch)


@pytest.mark.parametrize(
    ("code", "problem"), [(410, Expired), (500, KubeUnavailable), (403, KubeProblem)]
)
async def test_an_error_is_the_same_as_an_answer_and_as_a_line(
    folder: Path, code: int, problem: type[KubeProblem]
) -> None:
    said = {"kind": "Status", "code": code, "message": "in words"}
    async with watching(folder, said, status=code) as watch:
        with pytest.raises(problem, match="in words"):
            await anext(watch)
    async with watching(folder, ADDED, {"type": "ERROR", "object": said}) as watch:
        await anext(watch)
        with pytest.raises(problem, match="in words"):
            await anext(watch)
