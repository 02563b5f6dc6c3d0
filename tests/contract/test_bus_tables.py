"""What every bus promises of its tables, shown on the in-memory twin and on a real NATS server."""

import asyncio

import pytest

from kybernate.bus import Bus, Change, Conflict, Mark, Row, TopologyMissing
from schemas.names import ACTIONS_BUCKET
from tests.support.buses import Note, Place


async def test_rows_come_back(bus: Bus) -> None:
    table = bus.table(ACTIONS_BUCKET, Note)
    assert await table.get("k") is None
    revision = await table.create("k", Note("a"))
    row = await table.get("k")
    assert row is not None
    assert (row.key, row.value, row.revision) == ("k", Note("a"), revision)


async def test_of_two_creations_one_wins(bus: Bus) -> None:
    table = bus.table(ACTIONS_BUCKET, Note)
    results = await asyncio.gather(
        *(table.create("k", Note(text)) for text in "ab"), return_exceptions=True
    )
    assert sum(isinstance(result, Conflict) for result in results) == 1


async def test_an_update_needs_the_current_revision(bus: Bus) -> None:
    table = bus.table(ACTIONS_BUCKET, Note)
    first = await table.create("k", Note("a"))
    second = await table.update("k", Note("b"), first)
    assert second > first
    with pytest.raises(Conflict):
        await table.update("k", Note("c"), first)
    with pytest.raises(Conflict):
        await table.update("missing", Note("c"), second)
    row = await table.get("k")
    assert row is not None
    assert row.value == Note("b")


async def test_put_overwrites(bus: Bus) -> None:
    table = bus.table(ACTIONS_BUCKET, Note)
    await table.put("k", Note("a"))
    revision = await table.put("k", Note("b"))
    row = await table.get("k")
    assert row is not None
    assert (row.value, row.revision) == (Note("b"), revision)


async def test_a_deleted_row_can_be_created_again(bus: Bus) -> None:
    table = bus.table(ACTIONS_BUCKET, Note)
    await table.delete("k")
    first = await table.create("k", Note("a"))
    await table.delete("k")
    assert await table.get("k") is None
    assert await table.all() == {}
    assert await table.create("k", Note("b")) > first


async def test_all_is_all(bus: Bus) -> None:
    table = bus.table(ACTIONS_BUCKET, Note)
    assert await table.all() == {}
    wanted = {f"k{number}": Note(str(number)) for number in range(2500)}
    await asyncio.gather(*(table.create(key, value) for key, value in wanted.items()))
    assert {key: row.value for key, row in (await table.all()).items()} == wanted


async def test_all_misses_nothing_while_others_write(bus: Bus) -> None:
    table = bus.table(ACTIONS_BUCKET, Note)
    keys = {f"k{number}" for number in range(1200)}
    await asyncio.gather(*(table.put(key, Note("0")) for key in keys))
    stop = asyncio.Event()

    async def write() -> None:
        while not stop.is_set():
            await asyncio.gather(*(table.put(f"k{n}", Note("1")) for n in range(0, 1200, 40)))

    writing = asyncio.create_task(write())
    for _ in range(10):
        assert set(await table.all()) == keys
    stop.set()
    await writing


async def test_what_was_written_since_is_told_once(bus: Bus) -> None:
    table = bus.table(ACTIONS_BUCKET, Note)
    await asyncio.gather(*(table.put(f"k{number}", Note()) for number in range(1200)))
    rows, mark = await table.since(Mark())
    assert set(rows) == {f"k{number}" for number in range(1200)}
    assert await table.since(mark) == ({}, mark)

    revision = await table.put("k7", Note("again"))
    await table.delete("k8")
    rows, later = await table.since(mark)
    assert rows == {"k7": Row(key="k7", value=Note("again"), revision=revision)}
    assert await table.since(later) == ({}, later)


async def test_all_of_a_bucket_that_was_made_anew_was_written_since(place: Place, bus: Bus) -> None:
    table = bus.table(ACTIONS_BUCKET, Note)
    for number in range(5):
        await table.put(f"old{number}", Note())
    _, mark = await table.since(Mark())
    await place.wipe(ACTIONS_BUCKET)
    with pytest.raises(TopologyMissing):
        await table.since(mark)
    await bus.ensure_topology()
    for number in range(7):
        await table.put(f"new{number}", Note())
    rows, _ = await table.since(mark)
    assert set(rows) == {f"new{number}" for number in range(7)}


async def test_rows_that_do_not_decode_are_left_out(place: Place, bus: Bus) -> None:
    table = bus.table(ACTIONS_BUCKET, Note)
    await table.create("good", Note("a"))
    await place.put_raw(ACTIONS_BUCKET, "bad", b"\xff{")
    assert set(await table.all()) == {"good"}


@pytest.mark.parametrize("key", ["", ".a", "a.", "a..b", "a b", "a*", "a>", "ä"])
async def test_a_key_no_server_takes_is_refused(bus: Bus, key: str) -> None:
    table = bus.table(ACTIONS_BUCKET, Note)
    for operation in (table.get(key), table.put(key, Note()), table.delete(key)):
        with pytest.raises(ValueError, match="cannot be a key"):
            await operation


async def test_changes_hint_at_written_and_deleted_rows(bus: Bus) -> None:
    table = bus.table(ACTIONS_BUCKET, Note)
    async with table.changes() as changes:
        revision = await table.put("a.b", Note())
        assert await anext(changes) == Change(key="a.b", revision=revision)
        await table.delete("a.b")
        assert await anext(changes) == Change(key="a.b")
