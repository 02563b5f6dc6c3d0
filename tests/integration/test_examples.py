"""The examples run as they stand."""

import asyncio
import os
import re
import signal
from asyncio.subprocess import PIPE, STDOUT
from pathlib import Path

from tests.support.processes import service, url_of

ROOT = Path(__file__).parents[2]


async def test_the_cycle_by_hand(folder: Path) -> None:
    state = folder / "up"
    arguments = ("up", "--state", str(state), "--listen", "127.0.0.1:0")
    async with service(folder / "up.log", *arguments) as host:
        env = {**os.environ, "KYBERNATE_SERVER": await url_of(host)}
        script = ROOT / "examples/one_host/cycle.sh"
        process = await asyncio.create_subprocess_exec(
            script, state, env=env, stdout=PIPE, stderr=STDOUT
        )
        output = (await process.communicate())[0].decode()
        assert process.returncode == 0, output
        counts = re.findall(r"(?:checkpointed at|counted on to): +Loop (\d+): token (\w+)", output)
        (first, token), (last, again) = counts
        assert int(last) > int(first)
        assert again == token
        assert await host.end(signal.SIGINT) == 0
