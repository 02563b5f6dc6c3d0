"""What the OCI runtime asks the worker, one line per request, and the lines that it is answered.

    restore ID ASKER BUNDLE    ->  ok IMAGES WORK, image, or error TEXT
    running ID ASKER           ->  ok, or error TEXT
    gone ID                    ->  nothing

Tabs stand between the fields. ASKER is the pid of the asking process; the answer goes into the
FIFO `ID.ASKER`. `deploy/runtime/kybernate-runc` is the other side. Pure.
"""

import re
from pathlib import Path
from typing import Final, Protocol

from node_worker.containerd.port import RestorePaths
from schemas.base import Record

ID: Final = re.compile(r"[A-Za-z0-9_+-][A-Za-z0-9_.+-]{0,199}\Z")
PID: Final = re.compile(r"[1-9][0-9]{0,9}\Z")
CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f]+")
LONGEST_LINE: Final = 4000
"""Bytes; what is shorter than PIPE_BUF reaches a FIFO in one piece."""


class Malformed(Exception):
    """A line that is no request."""


class RestoreAsked(Record, frozen=True, kw_only=True):
    """A container is being created whose pod wants to resume from a checkpoint."""

    container: str
    asker: int
    bundle: Path


class RunningAsked(Record, frozen=True, kw_only=True):
    """A restored container is being started: it has to run before the answer."""

    container: str
    asker: int


class GoneTold(Record, frozen=True, kw_only=True):
    """A restored container was deleted, or nobody waits for its restore any more."""

    container: str


Request = RestoreAsked | RunningAsked | GoneTold


class PodRestores(Protocol):
    """Brings containers of pods back. What it raises reaches the pod's events in words."""

    async def restore(self, request: RestoreAsked) -> RestorePaths | None:
        """Stage the checkpoint for the bundle; None: the container starts from its image."""
        ...

    async def running(self, request: RunningAsked) -> None:
        """Return when the container runs, its GPU memory included."""
        ...

    async def gone(self, request: GoneTold) -> None:
        """Drop what was staged; also for a container that is not known (any more)."""
        ...


def parse(line: bytes) -> Request:
    """The request that a line holds; Malformed otherwise."""
    try:
        fields = line.decode().split("\t")
    except UnicodeDecodeError as error:
        raise Malformed("not UTF-8") from error
    match fields:
        case ["restore", container, asker, bundle]:
            return RestoreAsked(container=_id(container), asker=_pid(asker), bundle=_path(bundle))
        case ["running", container, asker]:
            return RunningAsked(container=_id(container), asker=_pid(asker))
        case ["gone", container]:
            return GoneTold(container=_id(container))
    raise Malformed(f"no request: {fields[0][:20]!r} with {len(fields) - 1} fields")


def restored(paths: RestorePaths | None) -> bytes:
    """The answer to a restore that is ready."""
    if paths is None:
        return b"image\n"
    return _line("ok", paths.image_path, paths.work_path)


def runs() -> bytes:
    return _line("ok")


def failed(words: str) -> bytes:
    """The answer of a failure: one line, whatever the words hold."""
    plain = CONTROLS.sub(" ", words).strip() or "failed without words"
    return b"error\t" + plain.encode(errors="replace")[:LONGEST_LINE] + b"\n"


def answer_name(request: RestoreAsked | RunningAsked) -> str:
    return f"{request.container}.{request.asker}"


def _line(*fields: str) -> bytes:
    if any(CONTROLS.search(field) for field in fields):
        raise Malformed("a path with control characters cannot be handed to the OCI runtime")
    return "\t".join(fields).encode() + b"\n"


def _id(text: str) -> str:
    if not ID.match(text):
        raise Malformed("not a container's id")
    return text


def _pid(text: str) -> int:
    if not PID.match(text):
        raise Malformed("not a process id")
    return int(text)


def _path(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute() or ".." in path.parts or CONTROLS.search(text):
        raise Malformed("not an absolute path")
    return path
