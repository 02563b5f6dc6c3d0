"""Where the container stack is that `scripts/stack.sh` installs: containerd, runc, CRIU, busybox.

<stack>/runc/bin/runc   <stack>/criu/bin/criu   <stack>/busybox/bin/busybox
<stack>/containerd-<line>/bin/containerd containerd-shim-runc-v2 ctr      (line: 1.6, 1.7, 2)
"""

import os
from pathlib import Path

import msgspec

LINES = ("1.6", "1.7", "2")
DEFAULT_LINE = "2"


class StackMissing(Exception):
    """The private container stack is not installed."""


class Stack(msgspec.Struct, frozen=True, kw_only=True):
    """One containerd of the stack, and the tools that it uses."""

    root: Path
    line: str

    @property
    def containerd(self) -> Path:
        return self._program(f"containerd-{self.line}", "containerd")

    @property
    def runc(self) -> Path:
        return self._program("runc", "runc")

    @property
    def criu(self) -> Path:
        return self._program("criu", "criu")

    @property
    def busybox(self) -> Path:
        return self._program("busybox", "busybox")

    @property
    def path(self) -> str:
        """The PATH under which containerd finds its shim, runc, CRIU and the host's own tools."""
        ours = (self.containerd.parent, self.runc.parent, self.criu.parent)
        return ":".join((*map(str, ours), os.environ.get("PATH", os.defpath)))

    def _program(self, component: str, name: str) -> Path:
        return self.root / component / "bin" / name


def stack_root() -> Path:
    if configured := os.environ.get("KYBERNATE_STACK"):
        return Path(configured)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "kybernate" / "stack"


def find_stack(line: str = DEFAULT_LINE) -> Stack:
    """The installed stack with containerd of that release line."""
    stack = Stack(root=stack_root(), line=line)
    needed = (stack.containerd, stack.runc, stack.criu, stack.busybox)
    if missing := [str(path) for path in needed if not os.access(path, os.X_OK)]:
        raise StackMissing(
            f"not installed: {', '.join(missing)}; run scripts/stack.sh, "
            "or name the folder of an installed one in KYBERNATE_STACK"
        )
    return stack
