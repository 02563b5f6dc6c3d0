"""The command line against a small REST server of the test's own: words, codes, formats."""

import json
import subprocess
import sys
import time
from importlib.metadata import entry_points

import msgspec
import pytest
from click.testing import CliRunner

from kybernate.cli.program import COMMANDS, program
from schemas import reasons
from schemas.actions import Action, ActionState
from schemas.checkpoints import CatalogueEntry, CheckpointState
from schemas.failures import Failure
from schemas.manifest import HostFacts
from schemas.messages import Deleted, Restored
from schemas.nodes import DeletedNode, Inventory, NodeWarning
from schemas.orders import DeleteOrder, RestoreOrder
from schemas.requests import Problem
from tests.support.asking import CHECKPOINT, DONE, FACTS, FAILED, FAILURE, RUNNING, TARGET, call
from tests.support.rest_server import RestServer


def test_a_finished_checkpoint_prints_its_id_and_its_steps(server: RestServer) -> None:
    server.accept(RUNNING, RUNNING, DONE)
    result = call(server, "checkpoint", "counter", "--leave-running", "--timeout", "30")
    assert result.exit_code == 0
    assert result.stdout == f"{CHECKPOINT}  default/counter stopped, 3.0 MiB, 1.50 s\n"
    assert result.stderr.split() == ["dump", "250", "ms", "2.0", "KiB"]
    asked, headers, body = server.asked[0]
    assert asked == "POST /api/v1/actions"
    assert json.loads(body) == {
        "kind": "checkpoint",
        "container": "counter",
        "leave_running": True,
        "timeout": 30.0,
    }
    assert len(headers["Idempotency-Key"]) == 36
    assert headers["traceparent"].startswith("00-")
    assert "Authorization" not in headers


def test_json_holds_the_whole_action_and_nothing_else(server: RestServer) -> None:
    server.accept(RUNNING, DONE)
    result = call(server, "checkpoint", "counter", "--output", "json", "--token", "secret")
    assert msgspec.json.decode(result.stdout, type=Action) == DONE
    assert {headers["Authorization"] for _, headers, _ in server.asked} == {"Bearer secret"}


def test_not_waiting_prints_the_action(server: RestServer) -> None:
    server.accept(RUNNING)
    result = call(server, "checkpoint", "counter", "--no-wait")
    assert (result.exit_code, result.stdout) == (0, "a1\n")
    assert len(server.asked) == 1


def test_a_failed_action_says_where_why_and_what_to_do(server: RestServer) -> None:
    server.accept(RUNNING, FAILED)
    result = call(server, "checkpoint", "counter")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert (
        "kybernate: checkpoint (action a1) failed in step dump: "
        "CRIU cannot dump a socket (DumpFailed)\n  what to do: close it\n"
    ) in result.stderr


def test_a_deadline_that_passed_has_its_own_code(server: RestServer) -> None:
    late = Failure(reason=reasons.DEADLINE_EXCEEDED, message="too late")
    server.accept(RUNNING, msgspec.structs.replace(FAILED, failure=late))
    assert call(server, "checkpoint", "counter").exit_code == 5


def test_a_cancelled_action_is_no_success(server: RestServer) -> None:
    server.accept(RUNNING, msgspec.structs.replace(RUNNING, state=ActionState.CANCELLED))
    result = call(server, "checkpoint", "counter")
    assert (result.exit_code, result.stdout) == (1, "a1  cancelled\n")


def test_restore_and_delete_send_what_was_asked(server: RestServer) -> None:
    order = RestoreOrder(checkpoint=CHECKPOINT, part=TARGET.container, target=TARGET)
    restored = Restored(target=TARGET, pid=42, checkpoint=CHECKPOINT)
    server.accept(
        RUNNING, msgspec.structs.replace(DONE, kind="restore", order=order, result=restored)
    )
    swap = ("--gpu", "GPU-a=GPU-b", "--gpu", "GPU-b=GPU-a")
    result = call(server, "restore", CHECKPOINT, "--name", "again", "--node", "one", *swap)
    assert result.stdout == "default/counter  runs again, pid 42, 1.50 s\n"
    assert json.loads(server.asked[0][2]) == {
        "kind": "restore",
        "checkpoint": CHECKPOINT,
        "name": "again",
        "node": "one",
        "gpu_map": {"GPU-a": "GPU-b", "GPU-b": "GPU-a"},
    }
    gone = Deleted(checkpoint=CHECKPOINT)
    removal = DeleteOrder(checkpoint=CHECKPOINT)
    server.accept(RUNNING, msgspec.structs.replace(DONE, kind="delete", order=removal, result=gone))
    assert call(server, "delete", "checkpoint", CHECKPOINT).stdout == (
        f"{CHECKPOINT}  deleted, 1.50 s\n"
    )
    assert json.loads(server.asked[2][2]) == {"kind": "delete", "checkpoint": CHECKPOINT}


@pytest.mark.parametrize(
    "arguments",
    [
        ("restore", "no-uuid"),
        ("restore", CHECKPOINT, "--gpu", "GPU-a"),
        ("checkpoint", "../etc"),
        ("checkpoint", "counter", "--timeout", "0"),
        ("checkpoint",),
        ("get", "pods"),
        ("get", "nodes", "--server", "localhost:7474"),
        ("fly",),
    ],
)
def test_wrong_usage_is_told_before_anybody_is_asked(
    server: RestServer, arguments: tuple[str, ...]
) -> None:
    result = call(server, *arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr
    assert server.asked == []


def test_nobody_there_has_its_own_code_and_advice() -> None:
    result = call("http://127.0.0.1:1 http://127.0.0.1:2", "get", "nodes")
    assert result.exit_code == 3
    for server in ("http://127.0.0.1:1", "http://127.0.0.1:2"):
        assert f"{server}: [Errno 111] Connection refused" in result.stderr
    assert "kybernate up" in result.stderr


def test_the_next_server_is_asked_when_one_is_gone_or_cut_off(server: RestServer) -> None:
    cut_off = RestServer()
    cut_off.answer("GET /api/v1/nodes", Problem(message="no NATS"), status=503)
    server.answer("GET /api/v1/nodes", [])
    result = call(f"http://127.0.0.1:1 {cut_off.url} {server.url}", "get", "nodes", "-o", "json")
    cut_off.close()
    assert (result.exit_code, result.stdout) == (0, "[]\n")


def test_a_controller_that_is_cut_off_says_so(server: RestServer) -> None:
    problem = Problem(message="NATS is gone", advice="start NATS")
    server.answer("GET /api/v1/nodes", problem, status=503)
    result = call(server, "get", "nodes")
    assert result.exit_code == 3
    assert result.stderr.splitlines() == [
        f"kybernate: no controller can serve this now: {server.url}: NATS is gone",
        "  what to do: start NATS",
    ]


def test_what_is_refused_is_told_in_the_servers_words(server: RestServer) -> None:
    problem = Problem(
        message="no node reports it", reason=reasons.UNKNOWN_CONTAINER, advice="start it"
    )
    server.answer("POST /api/v1/actions", problem, status=404)
    result = call(server, "checkpoint", "counter")
    assert result.exit_code == 4
    assert (
        result.stderr
        == "kybernate: no node reports it (UnknownContainer)\n  what to do: start it\n"
    )


def test_something_else_that_answers_is_noticed(server: RestServer) -> None:
    server.answers["GET /api/v1/nodes"] = 200, b"<html>hello</html>"
    result = call(server, "get", "nodes")
    assert result.exit_code == 1
    assert "see that --server names a Kybernate controller" in result.stderr


def test_lists_are_tables_with_the_latest_first(server: RestServer) -> None:
    older = msgspec.structs.replace(FAILED, id="a0", created=10.0)
    server.answer("GET /api/v1/actions?kind=checkpoint&state=failed", [older, FAILED])
    result = call(server, "get", "actions", "--kind", "checkpoint", "--state", "failed")
    head, first, second = result.stdout.splitlines()
    assert head.split()[:5] == ["ID", "KIND", "SUBJECT", "NODE", "STATE"]
    assert first.split()[:5] == ["a1", "checkpoint", "default/counter", "one", "failed"]
    assert second.split()[0] == "a0"
    assert second.split()[-1] == "DumpFailed"


def test_checkpoints_are_listed_and_described(server: RestServer) -> None:
    entry = CatalogueEntry(facts=FACTS, state=CheckpointState.READY, updated=1000.0)
    server.answer("GET /api/v1/checkpoints", [entry])
    server.answer(f"GET /api/v1/checkpoints/{CHECKPOINT}", entry)
    row = call(server, "get", "checkpoints").stdout.splitlines()[1].split()
    assert row[:6] == [CHECKPOINT, "default/counter", "one", "ready", "3.0", "MiB"]
    described = call(server, "describe", "checkpoint", CHECKPOINT).stdout
    assert "Image:         busybox" in described
    found = call(server, "describe", "checkpoint", CHECKPOINT, "-o", "json").stdout
    assert msgspec.json.decode(found, type=CatalogueEntry) == entry


def test_nodes_are_listed_and_described(server: RestServer) -> None:
    host = HostFacts(node="a b", architecture="x86_64", kernel="6.18", cpu_model="any")
    node = Inventory(
        node="a b",
        instance="i",
        at=time.time(),
        started=1000.0,
        worker_version="0.1.0",
        ready=True,
        host=host,
        containers=(TARGET,),
        warnings=(NodeWarning(reason="Slow", message="huge pages are off"),),
    )
    silent = msgspec.structs.replace(node, node="old", at=1000.0)
    server.answer("GET /api/v1/nodes", [silent, node])
    server.answer("GET /api/v1/nodes/a%20b", node)
    first, second = call(server, "get", "nodes").stdout.splitlines()[1:]
    assert "yes" in first
    assert "silent" in second
    described = call(server, "describe", "node", "a b").stdout
    assert "huge pages are off (Slow)" in described
    assert "default/counter" in described


def test_what_is_in_the_way_of_a_node_and_of_a_checkpoint_is_described(server: RestServer) -> None:
    host = HostFacts(node="one", architecture="x86_64", kernel="6.18", cpu_model="any")
    node = Inventory(
        node="one",
        instance="i",
        at=time.time(),
        started=1000.0,
        worker_version="0.1.0",
        ready=False,
        problem="its disk is read-only",
        host=host,
    )
    entry = CatalogueEntry(
        facts=FACTS, state=CheckpointState.MISSING, problem="no such folder", updated=1000.0
    )
    server.answer("GET /api/v1/nodes/one", node)
    server.answer(f"GET /api/v1/checkpoints/{CHECKPOINT}", entry)
    assert "its disk is read-only" in call(server, "describe", "node", "one").stdout
    described = call(server, "describe", "checkpoint", CHECKPOINT).stdout
    assert "missing" in described
    assert "no such folder" in described


def test_a_deleted_node_is_told_with_what_lay_on_it(server: RestServer) -> None:
    gone = DeletedNode(node="a b", missing=(CHECKPOINT,))
    server.answer("DELETE /api/v1/nodes/a%20b", gone)
    told = call(server, "delete", "node", "a b")
    assert told.exit_code == 0
    assert told.stdout == f"node a b is forgotten\n{CHECKPOINT}  missing with it\n"
    as_json = call(server, "delete", "node", "a b", "--output", "json").stdout
    assert msgspec.json.decode(as_json, type=DeletedNode) == gone

    problem = Problem(message="node two is at work", reason=reasons.NODE_IN_USE, advice="stop it")
    server.answer("DELETE /api/v1/nodes/two", problem, status=409)
    refused = call(server, "delete", "node", "two")
    assert refused.exit_code == 4
    assert refused.stderr.splitlines() == [
        "kybernate: node two is at work (NodeInUse)",
        "  what to do: stop it",
    ]


def test_a_described_action_shows_steps_and_every_failure(server: RestServer) -> None:
    failed = msgspec.structs.replace(FAILED, earlier_failures=(FAILURE,), attempt=2)
    server.answer("GET /api/v1/actions/a1", failed)
    described = call(server, "describe", "action", "a1").stdout
    assert described.count("CRIU cannot dump a socket") == 2
    assert "What to do:  close it" in described
    assert call(server, "describe", "action", "none").exit_code == 4


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_explains_itself(name: str) -> None:
    result = CliRunner().invoke(program, [name, "--help"])
    assert result.exit_code == 0
    assert result.stdout.startswith("Usage: ")


def test_asking_imports_nothing_that_is_slow() -> None:
    code = (
        "import sys\n"
        "from kybernate.cli.program import program\n"
        "program(['get', 'nodes', '--server', 'http://127.0.0.1:1'], standalone_mode=False)\n"
    )
    code = f"try:\n    exec({code!r})\nexcept Exception as e:\n    print(type(e).__name__)\n"
    code += "import sys\nprint(' '.join(sys.modules))\n"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    stopped, imported = run.stdout.splitlines()
    assert stopped == "Unreachable"
    slow = {"aiohttp", "asyncio", "grpc", "nats", "opentelemetry", "rich", "controller"}
    assert slow.isdisjoint(imported.split())


@pytest.mark.parametrize(
    "url",
    ["one:7474", "http://", "http://one:99999", "http://one:port", "http://[::1", "http://o ne:1"],
)
def test_what_is_no_url_is_wrong_usage(url: str) -> None:
    result = CliRunner().invoke(program, ["get", "nodes", "--server", url])
    assert result.exit_code == 2
    assert f"{url!r} is no URL: write http://HOST:PORT" in result.stderr


def test_a_host_name_that_cannot_be_one_is_told(server: RestServer) -> None:
    result = call(f"http://{'a' * 80}.example", "get", "nodes")
    assert result.exit_code == 3


def test_a_server_without_tls_is_told_as_one(server: RestServer) -> None:
    result = call(server.url.replace("http://", "https://"), "get", "nodes")
    assert result.exit_code == 3
    assert "write http:// instead of https://" in result.stderr


def test_a_token_of_two_lines_is_wrong_usage(server: RestServer) -> None:
    result = call(server, "get", "nodes", "--token", "one\ntwo")
    assert (result.exit_code, server.asked) == (2, [])
    assert "a token is one line" in result.stderr


def test_a_token_may_hold_any_sign(server: RestServer) -> None:
    server.answer("GET /api/v1/nodes", ())
    assert call(server, "get", "nodes", "--token", "schlüssel-€").exit_code == 0
    [(_, headers, _)] = server.asked
    assert headers["Authorization"].encode("latin-1").decode() == "Bearer schlüssel-€"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("restore", "the last one"), "checkpoint: Expected an id as `kybernate get checkpoints`"),
        (("checkpoint", "../x"), "container: Expected a name of letters, digits"),
    ],
)
def test_what_does_not_fit_is_told_in_words(arguments: tuple[str, ...], told: str) -> None:
    result = CliRunner().invoke(program, list(arguments))
    assert result.exit_code == 2
    assert told in result.stderr
    assert "regex" not in result.stderr
    assert "$." not in result.stderr


def test_both_names_are_the_same_program() -> None:
    names = entry_points(group="console_scripts", name="kybernate")
    others = entry_points(group="console_scripts", name="kybernate-ctl")
    assert {one.value for one in names} == {one.value for one in others} == {"kybernate.cli:main"}
