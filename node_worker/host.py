"""What a restore depends on, as this host has it, and whether a checkpoint fits."""

import platform
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import msgspec

from node_worker.faults import Refused
from schemas import reasons
from schemas.manifest import HostFacts

CPUINFO: Final = Path("/proc/cpuinfo")
_INSTRUCTIONS: Final = re.compile(
    r"(?:sse|ssse|avx|amx|fma|bmi|aes|vaes|sha|xsave|adx|f16c|gfni|movbe|popcnt|pclmul|vpclmul"
    r"|rdrand|rdseed|abm|lahf|cx16|rdpid|movdir|clwb|clflushopt|serialize|waitpkg"
    r"|asimd|fp|sve|sme|atomics|crc32|pmull|lse|dotprod|bf16|i8mm)"
)
"""The flags that tell of instructions which a program may have decided to use at its start."""


def host_facts(node: str, *, containerd: str = "", cpuinfo: Path = CPUINFO) -> HostFacts:
    text = cpuinfo.read_text(errors="replace")
    return HostFacts(
        node=node,
        architecture=platform.machine(),
        kernel=platform.release(),
        cpu_model=_field(text, "model name") or _field(text, "CPU part") or "unknown",
        cpu_flags=tuple(sorted(_instructions(_field(text, "flags") or _field(text, "Features")))),
        containerd=containerd,
    )


def check_fits(then: HostFacts, now: HostFacts) -> None:
    """Refuse processes that this host's CPU could not go on with."""
    if then.architecture != now.architecture:
        raise Refused(
            reasons.HOST_MISFIT,
            f"the checkpoint is of a node with {then.architecture}, "
            f"this one has {now.architecture}",
            advice="Restore on a node of the same architecture.",
        )
    if missing := sorted(set(then.cpu_flags) - set(now.cpu_flags)):
        raise Refused(
            reasons.HOST_MISFIT,
            f"this node's CPU ({now.cpu_model}) lacks what the one of the checkpoint "
            f"({then.cpu_model}) has: {', '.join(missing)}",
            advice="Restore on a node with the same or a newer CPU model.",
        )


def with_criu(facts: HostFacts, log: str) -> HostFacts:
    """The facts with CRIU's version, as it writes it into its log."""
    found = re.search(r"Version: (\S+)", log)
    return msgspec.structs.replace(facts, criu=found[1]) if found else facts


def _field(cpuinfo: str, name: str) -> str:
    found = re.search(rf"^{name}\s*:\s*(.*)$", cpuinfo, re.MULTILINE)
    return found[1].strip() if found else ""


def _instructions(flags: str) -> Iterable[str]:
    return (flag for flag in flags.split() if _INSTRUCTIONS.match(flag))
