"""What reports of steps add up to, in whatever order they come."""

import msgspec

from schemas.actions import StepProgress
from schemas.messages import EventKind, JobEvent


def steps_with(
    steps: tuple[StepProgress, ...], event: JobEvent, *, newer: bool
) -> tuple[StepProgress, ...]:
    """The steps with what the report says; it may come late, so nothing known is taken back."""
    if not event.step or (event.kind is EventKind.PROGRESS and not newer):
        return steps
    known = next((step for step in steps if step.step == event.step), None)
    if known is None:
        started = event.at - (event.seconds or 0.0)
        known = StepProgress(step=event.step, started=started)
        steps = (*steps, known)
    told = _step_told(known, event)
    merged = [told if step is known else step for step in steps]
    return tuple(sorted(merged, key=lambda step: step.started))


def _step_told(step: StepProgress, event: JobEvent) -> StepProgress:
    started = event.at if event.kind is EventKind.STEP_STARTED else step.started
    if event.kind is EventKind.STEP_STARTED and step.seconds is not None:
        return msgspec.structs.replace(step, started=started)
    return StepProgress(
        step=step.step,
        started=started,
        seconds=_seconds_told(step, event),
        done_bytes=step.done_bytes if event.done_bytes is None else event.done_bytes,
        total_bytes=step.total_bytes if event.total_bytes is None else event.total_bytes,
        note=event.note or step.note,
    )


def _seconds_told(step: StepProgress, event: JobEvent) -> float | None:
    """A second end of a step, with a note, is about its way back: it does not hide the first."""
    if event.seconds is None or (event.note and step.seconds is not None):
        return step.seconds
    return event.seconds
