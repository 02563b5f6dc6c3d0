"""What a controller can be told from outside."""

from pathlib import Path

import msgspec

from kybernate.bus.port import BusSettings


class ControllerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one controller process."""

    listen: str = "127.0.0.1:7474"
    """Host and port of the REST API; port 0 takes a free one."""
    tokens: tuple[str, ...] = ()
    """Bearer tokens, any of which a client has to show; none: everybody may ask."""
    tls_cert: Path | None = None
    """Certificate of the REST API in PEM; without one it speaks plain HTTP."""
    tls_key: Path | None = None
    """Key of that certificate."""
    kubernetes: bool = False
    """Take custom resources of Kubernetes as requests."""
    kubeconfig: Path | None = None
    """How the API server is reached; default: as a pod of the cluster, or as kubectl does."""
    webhook_listen: str = ""
    """Host and port of the admission webhook; empty: pods of owners do not resume by themselves."""
    webhook_certificate_seconds: float = 90 * 24 * 3600.0
    """How long a certificate of the webhook is good."""
    bus: BusSettings = BusSettings()
    """Where NATS is."""
