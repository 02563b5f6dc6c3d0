"""Everything behind TLS, each program with the permissions that are shipped, and no more."""

from contextlib import AsyncExitStack
from pathlib import Path

from kybernate.embedded.containerd import PrivateContainerd
from kybernate.embedded.counting import counted, problem_with, shell_counter
from kybernate.embedded.workload import NAMESPACE, Workloads
from tests.support.processes import Service, kybernate, service, url_of
from tests.support.secured_nats import Authority, shipped_server

NODE = "gpu-7"
"""The node in the shipped list of users."""
COUNTS = 3


async def test_the_whole_way_round_behind_tls(
    folder: Path, daemon: PrivateContainerd, workloads: Workloads
) -> None:
    authority = Authority(folder / "ca")
    authority.issue("server", "nats", "subjectAltName=IP:127.0.0.1")
    programs = {"controller": "kybernate-controller", "worker": f"kybernate-worker-{NODE}"}
    async with AsyncExitStack() as stack:
        nats = await stack.enter_async_context(shipped_server(authority, folder))

        async def start(name: str, *more: str) -> Service:
            cert, key = authority.issue(name, programs[name])
            arguments = [name, "--nats", nats.url, "--nats-ca", str(authority.ca)]
            arguments += ["--nats-cert", str(cert), "--nats-key", str(key), *more]
            return await stack.enter_async_context(service(folder / f"{name}.log", *arguments))

        tls = [
            f"--tls-cert={authority.folder}/server.pem",
            f"--tls-key={authority.folder}/server.key",
        ]
        controller = await start("controller", "--listen", "127.0.0.1:0", *tls)
        url = await url_of(controller)
        assert url.startswith("https://")
        place = [f"--containerd={daemon.socket}", f"--state={folder}/state"]
        worker = await start("worker", "--node", NODE, *place)

        running = await workloads.start_container("counter", shell_counter().workload)
        await running.wait_for(lambda lines: len(lines) >= COUNTS)
        env = {"KYBERNATE_SERVER": url, "SSL_CERT_FILE": str(authority.ca)}
        output = await kybernate("checkpoint", "counter", "-n", NAMESPACE, env=env)
        while "no node is known yet" in output.stderr or "not ready" in output.stderr:
            output = await kybernate("checkpoint", "counter", "-n", NAMESPACE, env=env)
        assert output.code == 0, output.stderr
        told = running.lines()
        restored = await kybernate("restore", output.stdout.split()[0], env=env)
        assert restored.code == 0, restored.stderr
        lines = await running.wait_for(lambda lines: len(lines) >= len(told) + COUNTS)
        assert problem_with(counted(told), counted(lines[len(told) :])) == ""
        log = [*controller.messages(), *worker.messages()]
        assert [said for said in log if "refuses" in said or "Violation" in said] == []

        stranger = await kybernate("get", "nodes", env={"KYBERNATE_SERVER": url})
        assert stranger.code == 3
        assert "certificate" in stranger.stderr
