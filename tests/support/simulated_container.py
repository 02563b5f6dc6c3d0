"""A container that counts on simulated GPUs: it obeys the simulated driver, and tells a digest of
its memory on all of them with each count.
"""

import hashlib
import shlex
from collections.abc import Mapping
from pathlib import Path

from kybernate.embedded.oci import Tmpfs, Workload
from tests.support.simulated_gpu import MARK

HOME = "/gpu"
SCRIPT = """\
home={home}/$$
mkdir -p $home
{memory}
printf running > $home/state
count=0
while :; do
  sums=$(sha256sum $home/vram-* 2>/dev/null | cut -c -64 | sort)
  if [ "$(cat $home/state)" = running ] && [ "$(echo "$sums" | wc -w)" = {gpus} ]; then
    count=$((count + 1))
    echo "Loop $count: token $(echo $sums | sha256sum | cut -c -16)"
  fi
  sleep 0.02
done
"""


def simulated_counter(
    memory: Mapping[str, int], *, env: Mapping[str, str] | None = None
) -> Workload:
    """`memory`: bytes by the GPU's UUID. The digest is the same whichever GPU holds which."""
    filled = "\n".join(
        f"head -c {size} /dev/urandom > $home/vram-{shlex.quote(uuid)}"
        for uuid, size in memory.items()
    )
    return Workload(
        args=("/bin/sh", "-c", SCRIPT.format(home=HOME, memory=filled, gpus=len(memory))),
        env={MARK: HOME, **(env or {})},
        tmpfs=(Tmpfs(target=HOME),),
    )


def digests(pid: int) -> dict[str, str]:
    """Of what the container of that first process holds on each GPU."""
    home = Path(f"/proc/{pid}/root{HOME}/1")
    return {
        path.name.removeprefix("vram-"): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in home.glob("vram-*")
    }
