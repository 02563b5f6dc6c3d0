"""Containers that count, and how to tell that one process did all of the counting.

Each prints `Loop N: …` and, with it, something random that was drawn at its start, so that it is
nowhere but in the memory of the process or of its GPU.
"""

import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from kybernate.embedded.oci import Bind, Workload

SCRIPT = """\
token=$(od -An -N8 -tx1 /dev/urandom | tr -d ' \\n')
count=0
while :; do
  count=$((count + 1))
  echo "Loop $count: token $token"
  sleep 0.1
done
"""
GPU_EXAMPLE = Path(__file__).parents[2] / "examples/gpu_workload.py"
_NUMBER = re.compile(r"Loop (\d+):")
_TOKEN = re.compile(r"(?:token|Digest at loop \d+:) ([0-9a-f]+)")


class CannotCount(Exception):
    """This counter cannot run here; the message says why."""


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """What a counter has printed: its numbers, and what it holds in memory."""

    numbers: tuple[int, ...]
    tokens: tuple[str, ...]
    last: str = ""
    """The last line with a number."""


class Counter(msgspec.Struct, frozen=True, kw_only=True):
    """A workload that counts."""

    workload: Workload
    python: bool = False
    """The host's Python runs the workload's arguments."""


def shell_counter() -> Counter:
    return Counter(workload=Workload(args=("/bin/sh", "-c", SCRIPT)))


def gpu_counter() -> Counter:
    """The example with about 2 GiB of GPU memory; the digest over it is its token."""
    devices = tuple(sorted(path for path in Path("/dev").glob("nvidia*") if path.is_char_device()))
    if not devices:
        raise CannotCount("there is no NVIDIA GPU on this host (no /dev/nvidia…)")
    if importlib.util.find_spec("torch") is None:
        raise CannotCount(f"{sys.executable} has no PyTorch: run the demo with a Python that has")
    if not GPU_EXAMPLE.is_file():
        raise CannotCount(f"{GPU_EXAMPLE} is missing: run the demo from a checkout")
    inside = "/counter.py"
    workload = Workload(
        args=(inside, "--digest-every", "1", "--interval", "0.2"),
        binds=(Bind(source=GPU_EXAMPLE, target=inside),),
        devices=devices,
    )
    return Counter(workload=workload, python=True)


def counted(lines: Sequence[str]) -> Counted:
    numbered = [(hit, line) for line in lines if (hit := _NUMBER.match(line))]
    tokens = (hit[1] for line in lines if (hit := _TOKEN.search(line)))
    return Counted(
        numbers=tuple(int(hit[1]) for hit, _ in numbered),
        tokens=tuple(tokens),
        last=numbered[-1][1] if numbered else "",
    )


def problem_with(before: Counted, after: Counted) -> str:
    """Why this is not one process counting on; empty when it is."""
    if not (before.numbers and before.tokens and after.numbers and after.tokens):
        return "the counter did not count"
    if len({*before.tokens, *after.tokens}) > 1:
        return "what it held in memory has changed: this is not the same process"
    numbers = before.numbers + after.numbers
    if numbers != tuple(range(numbers[0], numbers[0] + len(numbers))):
        return "a number was left out or said twice"
    return ""
