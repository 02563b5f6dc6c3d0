"""A daemon of the test cluster is gone only when what it held is free."""

import signal
import socket
import sys
from pathlib import Path

from kybernate.embedded.kubernetes.daemons import Daemon
from kybernate.embedded.kubernetes.waiting import until

LARGE = """
import socket, sys, threading, time
memory = bytearray(b"x") * (256 << 20)
listening = socket.create_server(("127.0.0.1", int(sys.argv[1])))
for _ in range(8):
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
print("up", flush=True)
time.sleep(600)
"""


async def test_its_port_is_free_when_it_is_gone(tmp_path: Path) -> None:
    """A killed process first lets go of its memory, which takes a while, then of its sockets."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    daemon = Daemon(name="large", home=tmp_path, command=(sys.executable, "-c", LARGE, str(port)))
    daemon.start()
    try:

        async def is_up() -> bool:
            return "up" in daemon.log.read_text()

        await until(is_up, timeout=60)
        assert daemon.pid
    finally:
        await daemon.stop(signal.SIGKILL)

    socket.create_server(("127.0.0.1", port)).close()


async def test_one_that_turns_into_another_program_runs_all_the_while(tmp_path: Path) -> None:
    chain = ("env", "nice", "env", "sh", "-c", "exec sleep 60")
    for number in range(20):
        daemon = Daemon(name=f"chain-{number}", home=tmp_path, command=chain)
        daemon.start()
        pid = int((tmp_path / f"{daemon.name}.pid").read_text())
        while not Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep"):
            assert daemon.pid == pid
        await daemon.stop(signal.SIGKILL)
