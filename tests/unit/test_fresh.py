"""Many ask, few reads are made, and nobody is given what was read before it asked."""

import asyncio

import pytest

from controller.kube.fresh import Fresh


class Source:
    def __init__(self) -> None:
        self.began = 0
        self.go_on = asyncio.Event()
        self.problem: Exception | None = None

    async def read(self) -> None:
        self.began += 1
        await self.go_on.wait()
        if self.problem:
            raise self.problem


async def some_turns() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_who_comes_during_a_read_shares_the_next_one() -> None:
    source = Source()
    fresh = Fresh(source.read)
    first = asyncio.create_task(fresh.read())
    await some_turns()
    others = [asyncio.create_task(fresh.read()) for _ in range(5)]
    await some_turns()
    assert source.began == 1

    source.go_on.set()
    await asyncio.gather(first, *others)
    assert source.began == 2


async def test_a_failure_is_told_to_who_waits_and_to_nobody_later() -> None:
    source = Source()
    source.go_on.set()
    source.problem = ValueError("no")
    fresh = Fresh(source.read)
    ends = await asyncio.gather(fresh.read(), fresh.read(), return_exceptions=True)
    assert [type(end) for end in ends] == [ValueError, ValueError]

    source.problem = None
    await fresh.read()


async def test_who_goes_away_does_not_end_it_for_the_others() -> None:
    source = Source()
    fresh = Fresh(source.read)
    impatient, patient = (asyncio.create_task(fresh.read()) for _ in range(2))
    await some_turns()
    impatient.cancel()
    source.go_on.set()

    await patient
    with pytest.raises(asyncio.CancelledError):
        await impatient
    assert source.began == 1
