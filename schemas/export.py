"""Write the JSON Schemas of everything on a wire to `schemas/json/`, or check them.

python -m schemas.export [--check]
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from schemas.actions import Action
from schemas.checkpoints import CatalogueEntry
from schemas.manifest import Manifest
from schemas.messages import Cancel, Claim, Job, JobEvent
from schemas.nodes import Inventory
from schemas.requests import Problem, Request

FOLDER = Path(__file__).parent / "json"
EXPORTED = {
    "action": Action,
    "cancel": Cancel,
    "checkpoint": CatalogueEntry,
    "claim": Claim,
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


def stale() -> list[str]:
    known = {path.name for path, _ in exported()}
    extra = [path.name for path in FOLDER.glob("*.json") if path.name not in known]
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
    FOLDER.mkdir(exist_ok=True)
    for path, text in exported():
        path.write_bytes(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
