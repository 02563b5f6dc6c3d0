"""Settings of the way to NATS that can never work end a service with words."""

from pathlib import Path

import pytest

from kybernate.bus import BusSettings
from kybernate.bus.nats import connect
from kybernate.problems import CannotServe


async def refusal(settings: BusSettings) -> str:
    with pytest.raises(CannotServe) as told:
        async with connect(settings, name="test"):
            raise AssertionError("it was taken")
    return str(told.value)


@pytest.mark.parametrize(
    "server",
    [
        "",
        "nats://",
        "http://127.0.0.1:4222",
        "nats://127.0.0.1:99999",
        "nats://127.0.0.1:port",
        "nats://one:4222,nats://two:4222",
        "nats://[::1",
        "nats://two words:4222",
    ],
)
async def test_what_is_no_server_is_told(server: str) -> None:
    words = await refusal(BusSettings(servers=("nats://127.0.0.1:4222", server)))
    assert f"{server!r} is no NATS server; write nats://HOST:PORT" in words


async def test_a_password_in_a_bad_url_is_not_told() -> None:
    words = await refusal(BusSettings(servers=("nats://me:secret@host:port",)))
    assert "'nats://…@host:port' is no NATS server" in words


async def test_no_server_at_all_is_told() -> None:
    assert "name one with --nats" in await refusal(BusSettings(servers=()))


async def test_a_certificate_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    file = tmp_path / "certificate.pem"
    file.write_text("nothing of the kind")
    for settings in (BusSettings(tls_ca=file), BusSettings(tls_cert=file)):
        words = await refusal(settings)
        assert str(file) in words
        assert "see --nats-ca, --nats-cert and --nats-key" in words


async def test_a_key_without_its_certificate_is_told(tmp_path: Path) -> None:
    assert "--nats-cert" in await refusal(BusSettings(tls_key=tmp_path / "key.pem"))
