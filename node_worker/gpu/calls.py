"""One request to the driver, answered: what the helper does for each message. No I/O of its own."""

from node_worker.gpu.port import Driver, DriverError, GpuState
from node_worker.gpu.protocol import (
    AskFacts,
    AskProcesses,
    AskState,
    Checkpoint,
    Fault,
    Inventory,
    Lock,
    Reply,
    Request,
    Restore,
    Step,
    Unlock,
)

REACHED = {
    Lock: GpuState.LOCKED,
    Checkpoint: GpuState.CHECKPOINTED,
    Restore: GpuState.LOCKED,
    Unlock: GpuState.RUNNING,
}
"""The state that each step ends in."""


def answer(driver: Driver, request: Request) -> Reply:
    try:
        return _answer(driver, request)
    except DriverError as error:
        return Reply(id=request.id, fault=Fault(code=error.code))


def _answer(driver: Driver, request: Request) -> Reply:
    match request.call:
        case AskFacts():
            inventory = Inventory(gpus=driver.facts(), absence=driver.absence())
            return Reply(id=request.id, inventory=inventory)
        case AskProcesses(pids=pids):
            return Reply(id=request.id, processes=driver.processes(pids))
        case AskState(pid=pid):
            return Reply(id=request.id, state=driver.state(pid))
        case step:
            if not (request.again and driver.state(step.pid) is REACHED[type(step)]):
                _take(driver, step)
            return Reply(id=request.id)


def _take(driver: Driver, step: Step) -> None:
    match step:
        case Lock(pid=pid, timeout=timeout):
            driver.lock(pid, timeout)
        case Checkpoint(pid=pid):
            driver.checkpoint(pid)
        case Restore(pid=pid, pairs=pairs):
            driver.restore(pid, pairs)
        case Unlock(pid=pid):
            driver.unlock(pid)
