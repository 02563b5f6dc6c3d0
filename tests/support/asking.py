"""The command line asking a REST server of the test's own, and what that may tell."""

import msgspec
from click.testing import CliRunner, Result

from kybernate.cli.program import program
from schemas import reasons
from schemas.actions import Action, ActionState, StepProgress
from schemas.failures import Failure
from schemas.manifest import CheckpointFacts
from schemas.messages import Checkpointed
from schemas.orders import CheckpointOrder, Target, only_part
from tests.support.checkpoints import parts_of
from tests.support.rest_server import RestServer

CHECKPOINT = "3d1f9c54-6a51-4b6e-9d54-0c1f6f1f2a10"
TARGET = Target(namespace="default", container="counter")
FACTS = CheckpointFacts(
    id=CHECKPOINT,
    node="one",
    parts=parts_of(TARGET, "busybox"),
    created=1000.0,
    size=3 * 1024 * 1024,
)
RUNNING = Action(
    id="a1",
    kind="checkpoint",
    node="one",
    order=CheckpointOrder(parts=only_part(TARGET), checkpoint=CHECKPOINT),
    state=ActionState.RUNNING,
    created=1000.0,
    updated=1000.1,
    deadline=1600.0,
    steps=(StepProgress(step="dump", started=1000.0, seconds=0.25, done_bytes=2048),),
)
DONE = msgspec.structs.replace(
    RUNNING, state=ActionState.COMPLETED, updated=1001.5, result=Checkpointed(checkpoint=FACTS)
)
FAILURE = Failure(
    reason=reasons.DUMP_FAILED,
    message="CRIU cannot dump a socket",
    advice="close it",
    step="dump",
)
FAILED = msgspec.structs.replace(RUNNING, state=ActionState.FAILED, failure=FAILURE)


def call(server: RestServer | str, *arguments: str) -> Result:
    url = server if isinstance(server, str) else server.url
    environment = {"KYBERNATE_SERVER": url, "KYBERNATE_TOKEN": ""}
    return CliRunner().invoke(program, list(arguments), env=environment)
