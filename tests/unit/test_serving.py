"""Where and how the REST API listens, and what is said when it cannot."""

import subprocess
from pathlib import Path

import aiohttp
import pytest

from controller.app import serving
from controller.settings import ControllerSettings
from kybernate.bus.memory import MemoryBroker
from kybernate.problems import CannotServe


async def test_a_port_that_is_taken_is_named() -> None:
    bus = MemoryBroker().bus()
    async with serving(ControllerSettings(listen="127.0.0.1:0"), bus) as url:
        taken = ControllerSettings(listen=url.removeprefix("http://"))
        with pytest.raises(CannotServe, match=r"in use.*--listen"):
            async with serving(taken, bus):
                pass


@pytest.mark.parametrize("listen", ["7474", "here:there", "", "[::1]"])
async def test_what_is_no_address_is_explained(listen: str) -> None:
    with pytest.raises(CannotServe, match="HOST:PORT"):
        async with serving(ControllerSettings(listen=listen), MemoryBroker().bus()):
            pass


async def test_it_serves_over_tls(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    request = ["openssl", "req", "-x509", "-nodes", "-newkey", "ec", "-subj", "/CN=localhost"]
    curve = ["-pkeyopt", "ec_paramgen_curve:prime256v1"]
    subprocess.run(  # noqa: ASYNC221 - a moment, before anything else runs
        [*request, *curve, "-keyout", str(key), "-out", str(cert)], check=True, capture_output=True
    )
    settings = ControllerSettings(listen="127.0.0.1:0", tls_cert=cert, tls_key=key)
    async with (
        serving(settings, MemoryBroker().bus()) as url,
        aiohttp.ClientSession() as session,
        session.get(f"{url}/healthz", ssl=False) as answer,
    ):
        assert url.startswith("https://")
        assert answer.status == 200


async def test_a_certificate_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    cert = tmp_path / "cert.pem"
    cert.write_text("no certificate")
    settings = ControllerSettings(listen="127.0.0.1:0", tls_cert=cert)
    with pytest.raises(CannotServe, match="--tls-cert"):
        async with serving(settings, MemoryBroker().bus()):
            pass
