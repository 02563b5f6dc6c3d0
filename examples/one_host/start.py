"""Start a container in the private containerd of a running `kybernate up`.

    python examples/one_host/start.py [--state /var/lib/kybernate] NAME [PROGRAM ARGUMENT…]

Without a program it is a shell that counts and holds a random token in its memory. Its root
filesystem is busybox. Prints the file that its output goes to.
"""

import argparse
import asyncio
from pathlib import Path

from kybernate.embedded.containerd import PrivateContainerd
from kybernate.embedded.counting import shell_counter
from kybernate.embedded.oci import Workload
from kybernate.embedded.stack import find_stack
from kybernate.embedded.workload import Workloads
from node_worker.containerd.client import connect
from node_worker.containerd.port import RuntimeProblem


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--state", type=Path, default=Path("/var/lib/kybernate"))
    parser.add_argument("name")
    parser.add_argument("program", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    workload = Workload(args=tuple(given.program)) if given.program else shell_counter().workload
    print(asyncio.run(start(given.state, given.name, workload)))


async def start(state: Path, name: str, workload: Workload) -> Path:
    daemon = PrivateContainerd(find_stack(), state.absolute() / "containerd")
    if not daemon.socket.exists():
        raise SystemExit(f"there is no containerd in {state}: start `kybernate up`, see --state")
    async with connect(daemon.socket) as runtime:
        try:
            return (await Workloads(daemon, runtime).start_container(name, workload)).log
        except RuntimeProblem as error:
            raise SystemExit(f"{name} was not started: {error}") from error


if __name__ == "__main__":
    main()
