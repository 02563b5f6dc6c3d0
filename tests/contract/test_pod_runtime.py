"""The OCI runtime of pods, `kybernate-runc`, with real runc and CRIU, in dash and in busybox."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from kybernate.embedded.stack import find_stack
from node_worker.containerd.port import RestorePaths
from node_worker.faults import Refused
from node_worker.pods.doorway import doorway
from node_worker.pods.requests import GoneTold, RestoreAsked, RunningAsked
from tests.support.bundles import Host, Pipe, bundle_host, until

CHECKPOINT = "0b54f2a6-4d2c-4d5e-9f86-1a7c2f0f3c11"
CONTAINER = {"io.kubernetes.cri.container-type": "container"}
RESUMED = {**CONTAINER, "kybernate.io/restore-from": CHECKPOINT}


class Restores:
    """Hands out what the test has dumped, or fails as the test says."""

    def __init__(self, images: Path) -> None:
        self.images = images
        self.asked: list[RestoreAsked | RunningAsked | GoneTold] = []
        self.problem: Exception | None = None
        self.from_image = False
        self.wait = asyncio.Event()
        self.wait.set()

    async def restore(self, request: RestoreAsked) -> RestorePaths | None:
        self.asked.append(request)
        await self.wait.wait()
        if self.problem:
            raise self.problem
        work = self.images.with_name("work")
        work.mkdir(exist_ok=True)
        if self.from_image:
            return None
        return RestorePaths(image_path=str(self.images), work_path=str(work))

    async def running(self, request: RunningAsked) -> None:
        self.asked.append(request)
        await self.wait.wait()
        if self.problem:
            raise self.problem

    async def gone(self, request: GoneTold) -> None:
        self.asked.append(request)

    async def heard(self, number: int) -> None:
        await until(lambda: len(self.asked) >= number)


@pytest.fixture(params=["dash", "busybox"])
def host(request: pytest.FixtureRequest, folder: Path) -> Iterator[Host]:
    busybox = [str(find_stack().busybox), "sh"]
    with bundle_host(folder, {"dash": ["dash"], "busybox": busybox}[request.param]) as made:
        yield made


@pytest.fixture
def output() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def restores(folder: Path) -> Restores:
    return Restores(folder / "images")


@pytest.fixture
async def worker(host: Host, restores: Restores) -> AsyncIterator[Restores]:
    async with doorway(host.state, restores):
        yield restores


def errors(host: Host) -> list[str]:
    """The messages in the log from which containerd reads them."""
    lines = [msgspec.json.decode(line) for line in host.log.read_text().splitlines()]
    return [line["msg"] for line in lines if line["level"] == "error"]


async def test_an_ordinary_container_needs_no_worker(host: Host, output: Pipe) -> None:
    host.bundle("plain", CONTAINER)
    await goes_its_way(host, output, "plain")


async def test_the_sandbox_of_a_pod_that_resumes_starts_as_usual(host: Host, output: Pipe) -> None:
    host.bundle("pause", {**RESUMED, "io.kubernetes.cri.container-type": "sandbox"})
    await goes_its_way(host, output, "pause")


async def goes_its_way(host: Host, output: Pipe, id: str) -> None:
    said = await host.create(id, output)
    assert said.code == 0, host.log.read_text()
    assert int((host.home / f"{id}.pid").read_text()) > 0
    assert await host.status(id) == "created"
    assert (await host.call("start", id)).code == 0
    assert (await output.counted(3))[:3] == [1, 2, 3]
    assert (await host.call("kill", id, "KILL")).code == 0
    assert (await host.call("delete", "--force", id)).code == 0
    assert (await host.call("state", id)).code == 1


async def test_a_container_resumes_where_it_was(host: Host, output: Pipe, worker: Restores) -> None:
    was_at = await count_and_dump(host, output, worker)
    host.bundle("again", RESUMED, memory=64 << 20)
    said = await host.create("again", output)
    assert said.code == 0, host.log.read_text()
    assert int((host.home / "again.pid").read_text()) > 0
    assert host.memory_limit("again") == 64 << 20
    said = await host.call("start", "again")
    assert said.code == 0, said.stderr
    numbers = await output.counted(was_at + 5)
    assert numbers == list(range(1, len(numbers) + 1))
    assert await host.status("again") == "running"
    assert (await host.call("delete", "--force", "again")).code == 0
    await worker.heard(3)
    assert [type(each) for each in worker.asked] == [RestoreAsked, RunningAsked, GoneTold]
    first = worker.asked[0]
    assert isinstance(first, RestoreAsked)
    assert first.bundle == host.home / "bundles/again"
    assert {each.container for each in worker.asked} == {"again"}
    assert [list((host.state / name).iterdir()) for name in ("answers", "restored")] == [[], []]


async def count_and_dump(host: Host, output: Pipe, worker: Restores) -> int:
    host.bundle("first", CONTAINER)
    assert (await host.create("first", output)).code == 0, host.log.read_text()
    assert (await host.call("start", "first")).code == 0
    await output.counted(5)
    await host.dumped("first", worker.images)
    return max(output.numbers())


async def test_what_the_worker_lets_start_from_its_image_does(
    host: Host, output: Pipe, worker: Restores
) -> None:
    worker.from_image = True
    host.bundle("anew", RESUMED)
    await goes_its_way(host, output, "anew")
    assert len(worker.asked) == 1


async def test_the_words_of_the_worker_reach_the_log_and_stderr(
    host: Host, worker: Restores
) -> None:
    worker.problem = Refused("IsOdd", 'a "quoted" C:\\path\nand\ttabs', advice="Look elsewhere.")
    host.bundle("refused", RESUMED)
    said = await host.create("refused")
    assert said.code == 1
    assert 'a "quoted" C:\\path and tabs (IsOdd). Look elsewhere.' in said.stderr
    assert errors(host)[-1] == said.stderr.removesuffix("\n")


async def test_a_start_that_fails_says_why(host: Host, output: Pipe, worker: Restores) -> None:
    await count_and_dump(host, output, worker)
    host.bundle("again", RESUMED)
    assert (await host.create("again", output)).code == 0
    worker.problem = Refused("GpuGone", "the GPU is gone")
    said = await host.call("start", "again")
    assert said.code == 1
    assert "the GPU is gone (GpuGone)" in errors(host)[-1]


async def test_what_runc_and_criu_say_of_a_failed_restore_is_told(
    host: Host, worker: Restores
) -> None:
    worker.images.mkdir()
    (worker.images / "descriptors.json").write_text('["/dev/null","/dev/null","/dev/null"]')
    host.bundle("empty", RESUMED)
    said = await host.create("empty")
    assert said.code == 1
    assert "could not be restored from" in errors(host)[-1]
    assert "criu failed" in errors(host)[-1]
    assert "Unexpected EOF" in errors(host)[-1]
    assert (await host.call("delete", "--force", "empty")).code == 0
    await worker.heard(2)


async def test_without_a_worker_nothing_resumes_and_the_rest_goes_on(
    host: Host, output: Pipe
) -> None:
    host.bundle("plain", CONTAINER)
    host.bundle("resumed", RESUMED)
    said = await host.create("resumed")
    assert said.code == 1
    assert "no Kybernate worker runs on this node" in errors(host)[-1]
    await goes_its_way(host, output, "plain")


async def test_a_worker_that_is_being_restarted_is_waited_for(
    host: Host, restores: Restores
) -> None:
    host.configure(WORKER_WAIT=60)
    restores.problem = Refused("IsOdd", "it came back and found that odd")
    host.bundle("resumed", RESUMED)
    asking = asyncio.create_task(host.create("resumed"))
    assert not (await asyncio.wait({asking}, timeout=1.5))[0]
    async with doorway(host.state, restores):
        await asking
    assert "it came back and found that odd" in errors(host)[-1]


async def test_a_dead_workers_number_deceives_nobody(host: Host, restores: Restores) -> None:
    async with doorway(host.state, restores):
        signed = (host.state / "worker.pid").read_text()
    pid, started = signed.split()
    assert int(pid) == os.getpid()
    (host.state / "worker.pid").write_text(f"{pid} {int(started) - 1}\n")
    host.bundle("resumed", RESUMED)
    said = await host.create("resumed")
    assert said.code == 1
    assert "no Kybernate worker runs" in said.stderr


async def test_a_worker_that_takes_too_long_is_given_up(host: Host, worker: Restores) -> None:
    host.configure(TIMEOUT=1)
    worker.wait.clear()
    host.bundle("late", RESUMED)
    said = await host.create("late")
    assert said.code == 1
    assert "gave no answer within 1 s" in errors(host)[-1]
    worker.wait.set()
    await worker.heard(2)
    assert worker.asked[-1] == GoneTold(container="late")


STUCK_WORKER = """
import os, pathlib, sys
state = pathlib.Path(sys.argv[1])
(state / "answers").mkdir(parents=True)
(state / "restored").mkdir()
os.mkfifo(state / "requests")
fifo = os.open(state / "requests", os.O_RDWR)
started = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
(state / "worker.pid").write_text(f"{os.getpid()} {started}\\n")
os.read(fifo, 1)
print("read", flush=True)
os.read(fifo, 1 << 20)
os.read(fifo, 1)
"""


async def test_a_worker_that_dies_meanwhile_is_noticed(host: Host) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", STUCK_WORKER, str(host.state), stdout=asyncio.subprocess.PIPE
    )
    try:
        await until((host.state / "worker.pid").exists)
        host.bundle("waiting", RESUMED)
        creating = asyncio.create_task(host.create("waiting"))
        assert process.stdout is not None
        assert await process.stdout.readline() == b"read\n"
    finally:
        process.kill()
        await process.wait()
    said = await creating
    assert said.code == 1
    assert "the worker of this node ended meanwhile" in errors(host)[-1]
    assert list((host.state / "answers").iterdir()) == []


async def test_the_next_worker_serves_on(host: Host, worker: Restores, output: Pipe) -> None:
    worker.from_image = True
    host.bundle("one", RESUMED)
    host.bundle("two", RESUMED)
    assert (await host.create("one", output)).code == 0
    async with doorway(host.state, worker):
        assert (await host.create("two", output)).code == 0


async def test_who_waits_while_the_worker_stops_is_told(host: Host, restores: Restores) -> None:
    restores.wait.clear()
    host.bundle("waiting", RESUMED)
    async with doorway(host.state, restores):
        creating = asyncio.create_task(host.create("waiting"))
        await restores.heard(1)
    said = await creating
    assert said.code == 1
    assert "is being stopped" in said.stderr


async def test_a_line_that_is_no_request_harms_nobody(
    host: Host, worker: Restores, output: Pipe
) -> None:
    worker.from_image = True
    with (host.state / "requests").open("wb", buffering=0) as fifo:
        fifo.write(b"\xff\n\nrestore\nrestore\t../x\t1\t/b\n" + b"x" * 3000 + b"\n")
    host.bundle("fine", RESUMED)
    assert (await host.create("fine", output)).code == 0
    assert len(worker.asked) == 1


HOSTILE = [
    "two words",
    "/has a/blank",
    "line\nbreak",
    f"{CHECKPOINT}\n/etc",
    'a"quote',
    "back\\slash",
    "$(touch made)",
    "`touch made`",
    "; touch made",
    "/checkpoints/../../etc",
    "/checkpoints/..",
    "/checkpoints/./a",
    "//checkpoints",
    "relative/path",
    "..",
    "/",
    "*",
    "/*",
    "é",
    "/\x01",
    "\u2028",
    "<script>",
    CHECKPOINT.upper(),
    f"{CHECKPOINT}0",
    "",
    '","kybernate.io/restore-from":"/etc',
]


async def test_values_that_are_not_plain_are_refused(host: Host, worker: Restores) -> None:
    config = host.bundle("hostile", RESUMED) / "config.json"
    good = config.read_text()
    for number, value in enumerate(HOSTILE, 1):
        config.write_text(good.replace(f'"{CHECKPOINT}"', msgspec.json.encode(value).decode()))
        said = await host.create("hostile")
        assert said.code == 1, value
        assert "has to be a checkpoint's id" in said.stderr, value
        assert len(errors(host)) == number
    assert worker.asked == []
    assert not (Path.cwd() / "made").exists()


async def test_plain_values_are_the_workers_to_judge(host: Host, worker: Restores) -> None:
    worker.problem = Refused("NotYours", "no")
    config = host.bundle("plain", RESUMED) / "config.json"
    good = config.read_text()
    for value in (CHECKPOINT, "/tmp/checkpoint-01", "/a/b.c/..d/e_f@1:2+3=4"):
        config.write_text(good.replace(CHECKPOINT, value))
        assert (await host.create("plain")).code == 1
    assert len(worker.asked) == 3


@pytest.mark.parametrize(
    ("before", "after"),
    [("/restore-from", "/restore\\u002dfrom"), (CHECKPOINT, f"\\u002f{CHECKPOINT}")],
)
async def test_escapes_that_containerd_never_writes_start_nothing_from_elsewhere(
    host: Host, worker: Restores, output: Pipe, before: str, after: str
) -> None:
    config = host.bundle("escaped", RESUMED) / "config.json"
    config.write_text(config.read_text().replace(before, after))
    await host.create("escaped", output)
    assert worker.asked == []


async def test_the_annotations_name_inside_another_value_means_nothing(
    host: Host, worker: Restores, output: Pipe
) -> None:
    text = '{"kybernate.io/restore-from":"/etc","a":"kybernate.io/restore-from"'
    host.bundle("quoting", {**CONTAINER, "kybernate.io/note": text})
    worker.from_image = True
    said = await host.create("quoting", output)
    assert (said.code, worker.asked) == (0, [])


async def test_an_indented_config_is_read_as_well(host: Host, worker: Restores) -> None:
    worker.problem = Refused("NotYours", "no")
    config = host.bundle("indented", RESUMED) / "config.json"
    config.write_bytes(msgspec.json.format(config.read_bytes(), indent=4))
    assert (await host.create("indented")).code == 1
    assert len(worker.asked) == 1


async def test_an_asker_that_is_killed_leaves_nothing(host: Host, worker: Restores) -> None:
    worker.wait.clear()
    host.bundle("killed", RESUMED)
    creating = asyncio.create_task(host.create("killed"))
    await worker.heard(1)
    asked = worker.asked[0]
    assert isinstance(asked, RestoreAsked)
    os.kill(asked.asker, signal.SIGKILL)
    assert (await creating).code == -signal.SIGKILL
    await until(lambda: not list((host.state / "answers").iterdir()))
    worker.wait.set()
    await worker.heard(2)
    assert worker.asked[-1] == GoneTold(container="killed")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--version",),
        ("--systemd-cgroup", "state", "nothing"),
        ("--log-format=text", "--debug", "list", "-q"),
        ("delete", "nothing"),
        ("start", "nothing"),
        ("create", "nothing"),
        ("unheard-of",),
        ("create",),
        (),
    ],
)
async def test_every_other_call_is_runcs(host: Host, arguments: tuple[str, ...]) -> None:
    through, bare = await host.call(*arguments), await host.bare(*arguments)
    assert (through.code, through.stdout) == (bare.code, bare.stdout)


async def test_a_text_log_gets_a_text_line(host: Host) -> None:
    bundle = host.bundle("text", RESUMED)
    log = host.home / "log.text"
    started = time.strftime("%Y")
    said = await host.call(
        f"--log={log}", "--log-format=text", "create", f"--bundle={bundle}", "text"
    )
    assert said.code == 1
    assert log.read_text().startswith(f'time="{started}')
    assert "level=error" in log.read_text()
