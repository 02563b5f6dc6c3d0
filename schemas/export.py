"""Write what is made from the structs, or check it: `schemas/json/` for everything on a wire, and
`deploy/crds/` for the custom resources of Kubernetes.

python -m schemas.export [--check]
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from schemas.actions import Action
from schemas.checkpoints import CatalogueEntry
from schemas.crds import crds
from schemas.manifest import Manifest
from schemas.messages import Cancel, Claim, Job, JobEvent
from schemas.nodes import DeletedNode, Inventory
from schemas.requests import Problem, Request

FOLDER = Path(__file__).parent / "json"
CRDS = Path(__file__).parent.parent / "deploy" / "crds"
EXPORTED = {
    "action": Action,
    "cancel": Cancel,
    "checkpoint": CatalogueEntry,
    "claim": Claim,
    "deleted-node": DeletedNode,
    "inventory": Inventory,
    "job": Job,
    "job-event": JobEvent,
    "manifest": Manifest,
    "problem": Problem,
    "request": Request,
}


def exported() -> Iterator[tuple[Path, bytes]]:
    for name, of in EXPORTED.items():
        schema = msgspec.json.encode(msgspec.json.schema(of), order="sorted")
        yield FOLDER / f"{name}.json", msgspec.json.format(schema, indent=2) + b"\n"
    for name, text in crds():
        yield CRDS / name, text.encode()


def stale() -> list[str]:
    known = {path for path, _ in exported()}
    written = (*FOLDER.glob("*.json"), *CRDS.glob("*.yaml"))
    extra = [path.name for path in written if path not in known]
    return extra + [
        path.name for path, text in exported() if not path.is_file() or path.read_bytes() != text
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail when stale")
    if parser.parse_args().check:
        if names := stale():
            sys.stderr.write(
                f"not current: {', '.join(sorted(names))}; run `python -m schemas.export`\n"
            )
        return 1 if names else 0
    for path, text in exported():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
