"""The demo on a terminal: each step with its time as it happens, and what it has shown."""

import asyncio
import time

import click
import msgspec

from kybernate import tasks, telemetry
from kybernate.cli.exits import Interrupted
from kybernate.embedded import demo
from kybernate.embedded.counting import Counter, gpu_counter, shell_counter


def show(*, gpu: bool, json: bool) -> bool:
    """Run the demo; whether it showed what it has to show."""
    counter = gpu_counter() if gpu else shell_counter()
    telemetry.log_to(level="CRITICAL", json=False)
    began = time.monotonic()

    def say(line: str) -> None:
        if not json:
            click.echo(f"{time.monotonic() - began:6.2f} s  {line}")

    report = asyncio.run(_played(say, counter))
    if report is None:
        raise Interrupted("interrupted; everything of the demo is removed")
    lines = [msgspec.json.encode(report).decode()] if json else [*report.timeline, report.summary]
    click.echo("\n".join(lines))
    return report.ok


async def _played(say: demo.Say, counter: Counter) -> demo.Report | None:
    """What the demo has shown; None when a signal ended it."""
    shown: list[demo.Report] = []

    async def play() -> None:
        shown.append(await demo.run(say, counter))

    await tasks.run_until_signalled(play())
    return shown[0] if shown else None
