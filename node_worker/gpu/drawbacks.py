"""What about this node's GPUs costs a feature or speed: told with every heartbeat."""

import os
from pathlib import Path

from node_worker.gpu import host, hugepages
from node_worker.gpu.obstacles import node_obstacles
from node_worker.gpu.port import Gpu
from schemas import reasons
from schemas.nodes import NodeWarning


async def drawbacks(
    gpu: Gpu, *, driver: Path = host.DRIVER, pages: Path = hugepages.SETTING
) -> tuple[NodeWarning, ...]:
    gpus = await gpu.facts()
    if not gpus:
        return _absence(await gpu.absence(), host.driver_version(driver))
    found = [
        NodeWarning(reason=obstacle.reason, message=f"{obstacle.message}. {obstacle.advice}")
        for obstacle in node_obstacles(gpus)
    ]
    return (*found, *_slow(pages))


def _absence(why: str, version: str) -> tuple[NodeWarning, ...]:
    """Nothing, where there is no driver either: then the node is meant to have no GPUs."""
    if not version:
        return ()
    message = f"the NVIDIA driver {version} is loaded, but its GPUs cannot be used: {why}"
    return (NodeWarning(reason=reasons.GPU_UNAVAILABLE, message=message),)


def _slow(pages: Path) -> tuple[NodeWarning, ...]:
    now = hugepages.setting(pages)
    if now == hugepages.WANTED or os.access(pages, os.W_OK):
        return ()
    message = (
        f"transparent huge pages are {now or 'not there'} and cannot be set by the worker: "
        f"GPU checkpoints take about a third longer. Write {hugepages.WANTED} to {pages}"
    )
    return (NodeWarning(reason=reasons.GPU_SLOW, message=message),)
