from pathlib import Path

import msgspec
import pytest

from kybernate.bus import BusSettings
from kybernate.config import SettingsError, load, settings_of


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    node: str
    """The node's name."""
    port: int = 8080
    """Where it listens,
    on every address."""
    pause: float = 1.5
    quiet: bool = False
    state: Path | None = None
    bus: BusSettings = BusSettings()


def load_with(
    *, flags: dict[str, object] | None = None, file: Path | None = None, **environment: str
) -> Settings:
    named = {f"KYBERNATE_{name}": value for name, value in environment.items()}
    return load(Settings, flags={"node": "n"} | (flags or {}), environment=named, file=file)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "kybernate.toml"
    path.write_text('port = 1\npause = 2\nstate = "/file"\n[bus]\nservers = ["nats://file"]\n')
    return path


def test_defaults_are_what_nobody_set() -> None:
    assert load_with() == Settings(node="n")


def test_flags_come_before_the_environment_and_that_before_the_file(file: Path) -> None:
    settings = load_with(flags={"port": 3}, file=file, PORT="2", PAUSE="7")
    assert (settings.port, settings.pause, settings.state) == (3, 7.0, Path("/file"))


def test_a_flag_not_given_changes_nothing() -> None:
    assert load_with(flags={"port": None}, PORT="2").port == 2


def test_text_becomes_what_the_field_is() -> None:
    settings = load_with(
        QUIET="true", STATE="/s", BUS_SERVERS="nats://a, nats://b", BUS_ACK_WAIT="3"
    )
    assert settings.quiet is True
    assert settings.state == Path("/s")
    assert settings.bus == BusSettings(servers=("nats://a", "nats://b"), ack_wait=3.0)


def test_sections_of_the_file_are_nested_settings(file: Path) -> None:
    assert load_with(file=file).bus.servers == ("nats://file",)


def test_other_variables_of_the_environment_are_nobodys_concern() -> None:
    load_with(CONTROLLER_SERVICE_HOST="10.0.0.1")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prot = 1", r"prot in .*did you mean port"),
        ("[bus]\nserver = []", r"bus\.server in .*did you mean servers"),
        ('port = "many"', r"port in .*cannot be 'many'"),
        ("bus = 3", r"unknown setting bus|bus in"),
        ("port = ", r"is not TOML"),
    ],
)
def test_a_bad_file_is_told_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(SettingsError, match=told):
        load_with(file=path)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        load_with(file=tmp_path / "none.toml")


def test_a_bad_variable_is_told_by_its_name() -> None:
    with pytest.raises(SettingsError, match="KYBERNATE_PORT cannot be 'many'"):
        load_with(PORT="many")


def test_a_bad_flag_is_told_by_its_name() -> None:
    with pytest.raises(SettingsError, match="--port cannot be 'many'"):
        load_with(flags={"port": "many"})
    with pytest.raises(SettingsError, match="unknown setting prot; did you mean port"):
        load_with(flags={"prot": 1})


def test_a_missing_setting_is_told() -> None:
    with pytest.raises(SettingsError, match="node"):
        load(Settings, environment={})


def test_every_setting_has_its_names_and_its_help() -> None:
    named = {setting.name: setting for setting in settings_of(Settings)}
    assert named["port"].help == "Where it listens,\non every address."
    servers = named["bus_servers"]
    assert (servers.flag, servers.variable) == ("--bus-servers", "KYBERNATE_BUS_SERVERS")
    assert servers.key == "bus.servers"
    assert "URLs" in servers.help
    assert all(setting.help for setting in settings_of(BusSettings))
