"""Which GPU becomes which on a restore. Pure.

The driver wants every GPU that the process could see named, each with a GPU of the same model.
"""

from collections.abc import Collection, Mapping, Sequence

from node_worker.gpu.port import GpuProblem
from schemas import reasons
from schemas.gpus import GpuFacts, GpuProcess


class NoFittingGpu(GpuProblem):
    """The GPUs of this node cannot take over from those of the checkpoint."""

    reason = reasons.GPU_MISFIT
    advice = "Restore on a node with as many GPUs of the same model (see `kybernate get nodes`)."


def pair(
    then: Sequence[GpuFacts],
    now: Sequence[GpuFacts],
    *,
    processes: Sequence[GpuProcess] = (),
    wanted: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """UUID at the checkpoint → UUID now; empty where every GPU in use is still the same one.

    `wanted` are pairs that the order prescribes; the rest is paired so that GPUs that are still
    there keep their data. A GPU of the checkpoint that no process used needs no successor.
    """
    pairs = _prescribed(then, now, wanted or {})
    used = {uuid for process in processes for uuid in process.usage}
    needed = [gpu for gpu in then if gpu.uuid in used or not used]
    spare = [gpu for gpu in then if gpu not in needed]
    for old in _unless_paired(needed, now, pairs):
        raise NoFittingGpu(_misfit(old, now, pairs))
    _unless_paired(spare, now, pairs)
    return {} if all(old == new for old, new in pairs.items()) else pairs


def mappings_to_try(pairs: Mapping[str, str], host: Collection[str]) -> list[dict[str, str]]:
    """The pairs as the driver may want them: completed over the host's GPUs, then as given.

    A process sees all GPUs of its host unless its devices are restricted, also when the worker
    looks after only some of them; so a move from one GPU of a host to another needs all named.
    """
    given = dict(pairs)
    if not given.keys() <= set(host):
        return [given]
    completed = dict(given)
    free = [uuid for uuid in host if uuid not in given.values()]
    unnamed = [uuid for uuid in host if uuid not in given]
    for uuid in [uuid for uuid in unnamed if uuid in free]:
        completed[uuid] = uuid
        free.remove(uuid)
    completed.update(zip([uuid for uuid in unnamed if uuid not in completed], free, strict=False))
    return [completed, given] if completed != given else [given]


def _prescribed(
    then: Sequence[GpuFacts], now: Sequence[GpuFacts], wanted: Mapping[str, str]
) -> dict[str, str]:
    olds = {gpu.uuid: gpu for gpu in then}
    news = {gpu.uuid: gpu for gpu in now}
    if len(set(wanted.values())) < len(wanted):
        raise NoFittingGpu("two GPUs of the checkpoint are mapped to the same one")
    for old, new in wanted.items():
        if old not in olds:
            raise NoFittingGpu(f"{old} is mapped, but it is no GPU of the checkpoint")
        if new not in news:
            raise NoFittingGpu(f"{old} is mapped to {new}, which this node does not have")
        if not _fits(olds[old], news[new]):
            raise NoFittingGpu(
                f"{old} ({olds[old].model}) cannot become {new} ({news[new].model}): "
                "the model must be the same and its memory not smaller"
            )
    return dict(wanted)


def _unless_paired(
    olds: Sequence[GpuFacts], now: Sequence[GpuFacts], pairs: dict[str, str]
) -> list[GpuFacts]:
    """Add the pairs of the old GPUs, first of those that are still there; who is left alone."""
    present = {gpu.uuid: gpu for gpu in now}
    for old in olds:
        free = old.uuid not in pairs and old.uuid not in pairs.values()
        if free and old.uuid in present and _fits(old, present[old.uuid]):
            pairs[old.uuid] = old.uuid
    alone = []
    for old in olds:
        if old.uuid in pairs:
            continue
        if successor := _successor(old, now, pairs):
            pairs[old.uuid] = successor.uuid
        else:
            alone.append(old)
    return alone


def _successor(old: GpuFacts, now: Sequence[GpuFacts], pairs: Mapping[str, str]) -> GpuFacts | None:
    free = (gpu for gpu in now if gpu.uuid not in pairs.values())
    return next((gpu for gpu in free if _fits(old, gpu)), None)


def _fits(old: GpuFacts, new: GpuFacts) -> bool:
    return new.model == old.model and new.memory_bytes >= old.memory_bytes and not new.mig


def _misfit(old: GpuFacts, now: Sequence[GpuFacts], pairs: Mapping[str, str]) -> str:
    if not now:
        return f"the checkpoint needs a {old.model}, and this node has no GPU"
    others = [gpu for gpu in now if gpu.uuid not in pairs.values()]
    why = "; ".join(f"{gpu.uuid} {_unfit(old, gpu)}" for gpu in others) or "all others are taken"
    return (
        f"no GPU of this node can take over from {old.uuid} "
        f"({old.model}, {old.memory_bytes >> 20} MiB): {why}"
    )


def _unfit(old: GpuFacts, new: GpuFacts) -> str:
    if new.model != old.model:
        return f"is a {new.model}"
    return "has MIG on" if new.mig else f"has only {new.memory_bytes >> 20} MiB"
