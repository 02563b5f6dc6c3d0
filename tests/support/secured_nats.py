"""NATS with the configuration that is shipped, and certificates of the tests' own."""

import shutil
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from kybernate.embedded.nats_server import NatsServer, nats_server

SHIPPED = Path(__file__).parents[2] / "deploy" / "nats"
EC_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")


class Authority:
    """A certificate authority of its own, by openssl."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self._openssl(
            *("req", "-x509", "-nodes", *EC_KEY, "-days", "2", "-subj", "/CN=test authority"),
            *("-keyout", "ca.key", "-out", "ca.pem"),
        )

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    def issue(self, name: str, common_name: str, *extensions: str) -> tuple[Path, Path]:
        """A certificate and its key."""
        self._openssl(
            *("req", "-nodes", *EC_KEY, "-subj", f"/CN={common_name}"),
            *("-keyout", f"{name}.key", "-out", f"{name}.csr"),
        )
        (self.folder / "extensions").write_text("\n".join(extensions))
        self._openssl(
            *["x509", "-req", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"],
            *("-extfile", "extensions", "-in", f"{name}.csr", "-out", f"{name}.pem"),
        )
        return self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def _openssl(self, *words: str) -> None:
        subprocess.run(["openssl", *words], cwd=self.folder, check=True, capture_output=True)


@asynccontextmanager
async def shipped_server(authority: Authority, folder: Path) -> AsyncIterator[NatsServer]:
    """A server with the shipped configuration, its files elsewhere; it is `server` to the CA."""
    config = (SHIPPED / "nats.conf").read_text()
    config = config.replace("/etc/nats/tls", str(authority.folder))
    config = config.replace('store_dir: "/var/lib/nats"', f'store_dir: "{folder}/jetstream"')
    (folder / "nats").mkdir()
    shutil.copy(SHIPPED / "users.conf", folder / "nats")
    async with nats_server(folder / "nats", config=config) as server:
        yield server
