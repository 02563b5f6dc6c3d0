"""Which GPU takes over from which."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_worker.gpu.pairing import NoFittingGpu, mappings_to_try, pair
from schemas.gpus import GpuFacts, GpuProcess


def gpu(uuid: str, model: str = "NVIDIA H200", gib: int = 141, *, mig: bool = False) -> GpuFacts:
    return GpuFacts(
        index=0, uuid=uuid, model=model, memory_bytes=gib << 30, driver="580.159.04", mig=mig
    )


A, B, C = gpu("A"), gpu("B"), gpu("C")


def using(*uuids: str) -> list[GpuProcess]:
    return [GpuProcess(pid=1, usage=dict.fromkeys(uuids, 1))]


def test_the_same_gpus_need_no_mapping() -> None:
    assert pair([A, B], [B, A]) == {}


def test_another_gpu_of_the_model_takes_over() -> None:
    assert pair([A], [B]) == {"A": "B"}


def test_gpus_that_are_still_there_keep_their_data() -> None:
    assert pair([A, B], [C, B]) == {"A": "C", "B": "B"}


def test_a_swap_can_be_prescribed() -> None:
    assert pair([A, B], [A, B], wanted={"A": "B", "B": "A"}) == {"A": "B", "B": "A"}


def test_the_rest_of_a_prescribed_pair_is_filled_in() -> None:
    assert pair([A, B], [A, B], wanted={"A": "B"}) == {"A": "B", "B": "A"}


def test_a_gpu_that_nobody_used_gives_way() -> None:
    assert pair([A, B], [B], processes=using("A")) == {"A": "B"}


def test_a_gpu_in_use_needs_a_successor() -> None:
    with pytest.raises(NoFittingGpu, match="B"):
        pair([A, B], [A], processes=using("A", "B"))


@pytest.mark.parametrize(
    ("now", "told"),
    [
        ([], "no GPU"),
        ([gpu("B", "NVIDIA H100")], "NVIDIA H100"),
        ([gpu("B", gib=80)], f"only {80 << 10} MiB"),
        ([gpu("B", mig=True)], "B has MIG on$"),
        ([gpu("B", "NVIDIA H100"), gpu("C", gib=80)], "B is a NVIDIA H100; C has only"),
    ],
)
def test_what_does_not_fit_is_named(now: list[GpuFacts], told: str) -> None:
    with pytest.raises(NoFittingGpu, match=told):
        pair([A], now)


@pytest.mark.parametrize(
    "wanted",
    [{"X": "A"}, {"A": "X"}, {"A": "B", "B": "B"}, {"A": "H100"}],
    ids=["unknown old", "unknown new", "two onto one", "another model"],
)
def test_a_prescription_that_cannot_be_kept_is_refused(wanted: dict[str, str]) -> None:
    with pytest.raises(NoFittingGpu):
        pair([A, B], [A, B, gpu("H100", "NVIDIA H100")], wanted=wanted)


def test_a_move_within_a_host_names_all_its_gpus() -> None:
    assert mappings_to_try({"A": "B"}, ["A", "B", "C"]) == [
        {"A": "B", "B": "A", "C": "C"},
        {"A": "B"},
    ]


def test_a_move_between_hosts_is_taken_as_given() -> None:
    assert mappings_to_try({"X": "A"}, ["A", "B"]) == [{"X": "A"}]


@given(
    pairs=st.dictionaries(st.sampled_from("ABCDE"), st.sampled_from("ABCDE")),
    host=st.sets(st.sampled_from("ABCDE"), min_size=5),
)
def test_a_completed_mapping_is_a_permutation(pairs: dict[str, str], host: set[str]) -> None:
    injective = {old: new for new, old in {new: old for old, new in pairs.items()}.items()}

    completed, *_ = mappings_to_try(injective, sorted(host))

    assert sorted(completed) == sorted(completed.values()) == sorted(host)
    assert injective.items() <= completed.items()


@given(then=st.permutations([A, B, C]), now=st.permutations([A, B, C, gpu("D"), gpu("E")]))
def test_no_gpu_takes_over_twice(then: list[GpuFacts], now: list[GpuFacts]) -> None:
    pairs = pair(then, now[:3])

    assert len(set(pairs.values())) == len(pairs)
    assert set(pairs.values()) <= {gpu.uuid for gpu in now[:3]}
