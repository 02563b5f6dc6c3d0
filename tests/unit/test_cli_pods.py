"""`kybernate checkpoint --pod` against a server that answers as an API server would."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from kybernate.cli import pods
from kybernate.cli.program import program
from tests.support.rest_server import RestServer

ALL = "/apis/kybernate.io/v1alpha1/namespaces/ml/kybernatecheckpoints"
ONE = f"{ALL}/trainer-x7k2p"
CHECKPOINT = "3d1f9c54-6a51-4b6e-9d54-0c1f6f1f2a10"
MADE: dict[str, Any] = {
    "metadata": {"name": "trainer-x7k2p", "namespace": "ml", "uid": "u-1"},
    "spec": {"podName": "trainer"},
}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RestServer]:
    monkeypatch.setattr(pods, "POLL_SECONDS", 0.01)
    running = RestServer()
    running.answer(f"POST {ALL}", MADE, status=201)
    yield running
    running.close()


def call(server: RestServer | str, folder: Path, *more: str) -> Result:
    url = server if isinstance(server, str) else server.url
    kubeconfig = folder / "kubeconfig"
    config = {
        "clusters": [{"name": "it", "cluster": {"server": url}}],
        "users": [{"name": "it", "user": {"token": "secret"}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it"}}],
        "current-context": "it",
    }
    kubeconfig.write_text(json.dumps(config))
    words = ("checkpoint", "--pod", "trainer", "--namespace", "ml", "--kubeconfig", str(kubeconfig))
    return CliRunner().invoke(program, [*words, *more])


def ended(phase: str, *, action: str | None = "a-1", **condition: str) -> dict[str, Any]:
    when = "2026-01-01T00:00:00Z"
    conditions = [{"status": "True", "lastTransitionTime": when} | condition]
    status = {"phase": phase, "conditions": conditions if condition else []}
    if action:
        status |= {"action": action, "checkpointRef": CHECKPOINT, "checkpointSize": "4Ki"}
        status |= {"nodeName": "gpu-7", "duration": "1.2s"}
    return MADE | {"status": status}


def test_a_pods_checkpoint_is_asked_for_and_its_id_comes_first(
    server: RestServer, folder: Path
) -> None:
    server.answer(f"GET {ONE}", ended("Completed"))

    said = call(server, folder, "--timeout", "30")

    assert said.exit_code == 0, said.output
    goes = "ml/trainer is deleted, 4Ki on gpu-7, 1.2s, kyc trainer-x7k2p"
    assert said.stdout == f"{CHECKPOINT}  {goes}\n"
    asked, headers, body = server.asked[0]
    assert asked == f"POST {ALL}"
    assert headers["authorization"] == "Bearer secret"
    sent = json.loads(body)
    assert sent["metadata"] == {"generateName": "trainer-"}
    assert (
        sent["spec"] | {"podName": "trainer", "leaveRunning": False, "timeout": 30} == sent["spec"]
    )


def test_json_is_the_resource(server: RestServer, folder: Path) -> None:
    server.answer(f"GET {ONE}", ended("Completed"))

    said = call(server, folder, "--leave-running", "--output", "json")

    assert json.loads(said.stdout)["status"]["checkpointRef"] == CHECKPOINT
    assert json.loads(server.asked[0][2])["spec"]["leaveRunning"] is True


def test_not_waiting_prints_the_resources_name(server: RestServer, folder: Path) -> None:
    said = call(server, folder, "--no-wait")

    assert (said.exit_code, said.stdout) == (0, "trainer-x7k2p\n")
    assert len(server.asked) == 1


def test_a_refusal_leaves_no_resource(server: RestServer, folder: Path) -> None:
    refusal = {"type": "Stalled", "reason": "SourcePodNotFound", "message": "there is no pod"}
    server.answer(f"GET {ONE}", ended("Failed", action=None, **refusal))
    server.answer(f"DELETE {ONE}", {})

    said = call(server, folder)

    assert said.exit_code == 4
    assert said.stderr == "kybernate: there is no pod (SourcePodNotFound)\n"
    assert json.loads(server.asked[-1][2]) == {"preconditions": {"uid": "u-1"}}


@pytest.mark.parametrize(("reason", "code"), [("DumpFailed", 1), ("DeadlineExceeded", 5)])
def test_a_failure_says_why_and_where_to_look(
    server: RestServer, folder: Path, reason: str, code: int
) -> None:
    why = {"type": "Stalled", "reason": reason, "message": "a socket"}
    server.answer(f"GET {ONE}", ended("Failed", **why))

    said = call(server, folder)

    assert said.exit_code == code
    assert f"checkpoint of pod trainer failed: a socket ({reason})" in said.stderr
    assert "kubectl describe kyc trainer-x7k2p --namespace ml" in said.stderr


def test_what_it_waits_for_is_told_once(
    server: RestServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pods, "GRACE_SECONDS", -0.7)
    waits = {"type": "Ready", "reason": "NodeNotReady", "message": "node gpu-7 is silent"}
    server.answer(f"GET {ONE}", ended("Pending", **waits))

    said = call(server, folder, "--timeout", "1")

    assert said.exit_code == 5
    assert said.stderr.count("node gpu-7 is silent") == 1
    assert "no controller runs with --kubernetes" in said.stderr


def test_a_resource_that_vanishes_is_a_failure(server: RestServer, folder: Path) -> None:
    said = call(server, folder)

    assert said.exit_code == 1
    assert "was deleted by somebody" in said.stderr


def test_a_cluster_without_kybernate_is_told(server: RestServer, folder: Path) -> None:
    del server.answers[f"POST {ALL}"]

    said = call(server, folder)

    assert said.exit_code == 4
    assert "install deploy/crds" in said.stderr


def test_an_api_server_that_does_not_answer_is_told(folder: Path) -> None:
    said = call("http://127.0.0.1:1", folder)

    assert said.exit_code == 3
    assert "--kubeconfig or KUBECONFIG" in said.stderr


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("checkpoint",), 2, "name either a CONTAINER or, with --pod, a pod"),
        (("checkpoint", "one", "--pod", "two"), 2, "name either"),
        (("checkpoint", "--pod", "one", "--place", "memory"), 2, "--place does not go with --pod"),
        (("checkpoint", "one", "--kubeconfig", "/dev/null"), 2, "goes only with --pod"),
        (("checkpoint", "--pod", "one", "--dest", "/tmp/one"), 4, "--dest is not served"),
    ],
)
def test_what_does_not_go_together_is_refused(words: tuple[str, ...], code: int, told: str) -> None:
    said = CliRunner().invoke(program, list(words))

    assert said.exit_code == code
    assert told in said.stderr


def test_a_file_that_is_no_kubeconfig_is_told(tmp_path: Path) -> None:
    file = tmp_path / "notes"
    file.write_text("nothing of the kind\n")

    said = CliRunner().invoke(program, ["checkpoint", "--pod", "one", "--kubeconfig", str(file)])

    assert said.exit_code == 3
    assert "name a kubeconfig with --kubeconfig" in said.stderr
