"""A container of another user than root, where containerd lacks CAP_SYS_RESOURCE, which the kernel
wants of who asks for that user's limits: our CRIU does without, another is found out beforehand.
"""

import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from kybernate.embedded.oci import User
from kybernate.embedded.stack import find_stack
from node_worker.processes import look, other_users_limits_are_told
from schemas import reasons
from tests.support.counting import COUNTER, checkpoint_is_refused, counting, counts_on
from tests.support.node import Node, whole_node

WITHOUT_THE_CAPABILITY = """#!/bin/sh
exec setpriv --bounding-set=-sys_resource '{}' "$@"
"""
OUR_CRIU = """#!/bin/sh
exec '{}' "$@"
"""
ANOTHER_CRIU = """#!/bin/sh
case $* in *limits_from_proc*) echo "Unknown feature limits_from_proc" >&2; exit 1 ;; esac
exec '{}' "$@"
"""
OF_ANOTHER_USER = msgspec.structs.replace(COUNTER, user=User(uid=1000, gid=1000), capabilities=())

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def node_without_the_capability(
    monkeypatch: pytest.MonkeyPatch, criu: str
) -> AsyncIterator[Node]:
    stack = find_stack()
    with tempfile.TemporaryDirectory(prefix="ky-", dir="/tmp") as folder:
        changed = Path(folder, "stack")
        for program, script in ((stack.containerd, WITHOUT_THE_CAPABILITY), (stack.criu, criu)):
            place = changed / program.parent.relative_to(stack.root)
            place.mkdir(parents=True)
            (place / program.name).write_text(script.format(program))
            (place / program.name).chmod(0o755)
        shim = stack.containerd.with_name("containerd-shim-runc-v2")
        (changed / shim.relative_to(stack.root)).symlink_to(shim)
        for name in ("runc", "busybox"):
            (changed / name).symlink_to(stack.root / name)
        monkeypatch.setenv("KYBERNATE_STACK", str(changed))
        async with whole_node(Path(folder, "node")) as node:
            yield node


async def test_it_goes_on_with_our_criu(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        node_without_the_capability(monkeypatch, OUR_CRIU) as node,
        counting(node, "user", OF_ANOTHER_USER) as running,
    ):
        assert not other_users_limits_are_told(look([running.pid]))
        await node.restore((await node.checkpoint("user")).id)
        await counts_on(node, running)


async def test_it_is_refused_with_another_criu_which_dumps_roots_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with node_without_the_capability(monkeypatch, ANOTHER_CRIU) as node:
        async with counting(node, "user", OF_ANOTHER_USER) as running:
            why = await checkpoint_is_refused(node, running)
            assert why.reason == reasons.CANNOT_BE_CHECKPOINTED
            assert "does not run as root" in why.message
            assert "--criu" in why.advice
        async with counting(node, "root") as running:
            await node.restore((await node.checkpoint("root")).id)
            await counts_on(node, running)
