"""Settings of the services: flags before environment before file before default."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from controller import app as controller_app
from controller.settings import ControllerSettings
from kybernate.bus import BusSettings, BusUnavailable
from kybernate.cli.program import program
from node_worker import app as worker_app
from node_worker.settings import WorkerSettings


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", root.handlers)
    monkeypatch.setattr(root, "level", root.level)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[ControllerSettings]:
    """The settings of controllers that were to be run."""
    seen: list[ControllerSettings] = []

    async def run(settings: ControllerSettings, **_: Any) -> None:
        seen.append(settings)
        await asyncio.sleep(0)

    monkeypatch.setattr(controller_app, "run", run)
    return seen


def controller(*arguments: str, **environment: str) -> Result:
    env = {f"KYBERNATE_{name}": value for name, value in environment.items()}
    return CliRunner().invoke(program, ["controller", *arguments], env=env)


def test_without_settings_there_are_defaults(started: list[ControllerSettings]) -> None:
    assert controller().exit_code == 0
    assert started == [ControllerSettings()]


def test_flags_go_before_environment_before_file(
    started: list[ControllerSettings], tmp_path: Path
) -> None:
    file = tmp_path / "kybernate.toml"
    file.write_text(
        'nats = ["nats://file:4222"]\ntoken = ["file"]\nlisten = "file:1"\nnode = "a worker\'s"\n'
        '[controller]\ntoken = ["own table"]\n'
        '[worker]\nstate = "/nowhere"\n'
    )
    result = controller("--config", str(file), "--listen", "flag:3", LISTEN="environment:2")
    assert result.exit_code == 0
    result = controller(CONFIG=str(file), LISTEN="environment:2", NATS="nats://a:1 nats://b:2")
    assert result.exit_code == 0
    from_file = BusSettings(servers=("nats://file:4222",))
    from_environment = BusSettings(servers=("nats://a:1", "nats://b:2"))
    assert started == [
        ControllerSettings(listen="flag:3", tokens=("own table",), bus=from_file),
        ControllerSettings(listen="environment:2", tokens=("own table",), bus=from_environment),
    ]


def test_files_of_keys_are_handed_on(started: list[ControllerSettings], tmp_path: Path) -> None:
    paths = {name: tmp_path / name for name in ("creds", "ca", "cert", "key")}
    for path in paths.values():
        path.touch()
    result = controller(
        *("--nats-ca", str(paths["ca"])),
        *("--nats-cert", str(paths["cert"])),
        *("--tls-cert", str(paths["cert"])),
        *("--tls-key", str(paths["key"])),
        NATS_CREDENTIALS=str(paths["creds"]),
        NATS_KEY=str(paths["key"]),
    )
    assert result.exit_code == 0
    bus = BusSettings(
        credentials=paths["creds"],
        tls_ca=paths["ca"],
        tls_cert=paths["cert"],
        tls_key=paths["key"],
    )
    settings = ControllerSettings(tls_cert=paths["cert"], tls_key=paths["key"], bus=bus)
    assert started == [settings]


def test_one_value_in_the_file_stands_for_a_list(
    started: list[ControllerSettings], tmp_path: Path
) -> None:
    file = tmp_path / "kybernate.toml"
    file.write_text('nats = "nats://file:4222"\ntoken = "secret"\n')
    assert controller("--config", str(file)).exit_code == 0
    bus = BusSettings(servers=("nats://file:4222",))
    assert started == [ControllerSettings(tokens=("secret",), bus=bus)]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--listen", ""), "is no HOST:PORT"),
        (("--listen", "127.0.0.1"), "is no HOST:PORT"),
        (("--listen", "127.0.0.1:99999"), "is no HOST:PORT"),
        (("--webhook-listen", "nowhere"), "is no HOST:PORT"),
        (("--token", ""), "a token is one line"),
        (("--token", " padded "), "a token is one line"),
        (("--tls-key", __file__), "--tls-cert"),
    ],
)
def test_what_cannot_be_meant_is_told_at_once(
    arguments: tuple[str, ...], told: str, started: list[ControllerSettings]
) -> None:
    result = controller(*arguments)
    assert (result.exit_code, started) == (2, [])
    assert told in result.stderr


def no_toml(file: Path) -> None:
    file.write_text("= 1")


def unknown_setting(file: Path) -> None:
    file.write_text("[controller]\nlisten = 'a:1'\nlissen = 'b:2'\n")


def unknown_anywhere(file: Path) -> None:
    file.write_text("nots = 'nats://a:1'\nhelp = true\n[wroker]\nnode = 'a'\n")


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (no_toml, "is not TOML"),
        (unknown_setting, "unknown settings: lissen"),
        (unknown_anywhere, "unknown settings: [wroker], help, nots"),
    ],
)
def test_a_bad_file_is_told(
    spoil: Callable[[Path], None], told: str, started: list[ControllerSettings], tmp_path: Path
) -> None:
    spoil(tmp_path / "bad.toml")
    result = controller("--config", str(tmp_path / "bad.toml"))
    assert result.exit_code == 2
    assert told in result.stderr
    assert started == []


def test_no_nats_has_its_own_code(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run(_settings: ControllerSettings, **_: Any) -> None:
        await asyncio.sleep(0)
        raise BusUnavailable("connection refused")

    monkeypatch.setattr(controller_app, "run", run)
    result = controller("--nats", "nats://127.0.0.1:1")
    assert result.exit_code == 3
    assert "kybernate: connection refused\n  what to do: see that NATS runs" in result.stderr


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[WorkerSettings]:
    """The settings of workers that were to be run."""
    seen: list[WorkerSettings] = []

    async def run(settings: WorkerSettings, **_: Any) -> None:
        seen.append(settings)
        await asyncio.sleep(0)

    monkeypatch.setattr(worker_app, "run", run)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return seen


def test_folders_are_told_to_other_programs_from_the_root_on(
    served: list[WorkerSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(
        program,
        ["worker", "--state", "here", "--checkpoints", "there", "--containerd", "./a.sock"],
    )
    assert result.exit_code == 0, result.output
    [settings] = served
    assert settings.state == tmp_path / "here"
    assert settings.checkpoints == tmp_path / "there"
    assert settings.containerd == tmp_path / "a.sock"


@pytest.mark.parametrize("name", ["", "two\nlines", "x" * 300])
def test_what_is_no_name_of_a_node_is_wrong_usage(served: list[WorkerSettings], name: str) -> None:
    result = CliRunner().invoke(program, ["worker", "--node", name])
    assert (result.exit_code, served) == (2, [])
    assert "a node's name has 1 to 253 signs" in result.stderr
