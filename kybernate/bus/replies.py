"""Who waits for which reply, and for how long.

Every wait has a token, the last one of the reply's subject. One timer looks after all of them, as
a timer for each would cost more than the rest of a request.
"""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from nats.aio.msg import Msg

from kybernate.bus.port import BusProblem, BusUnavailable

Handler = Callable[[Msg], None]

_LOOK_SECONDS = 0.1


class Wait:
    """One who waits for something about a subject."""

    __slots__ = ("answered", "deadline", "handler", "reply", "seconds", "subject")

    def __init__(
        self,
        subject: str,
        *,
        reply: str,
        answered: "asyncio.Future[Msg]",
        seconds: float,
        deadline: float,
        handler: Handler | None,
    ) -> None:
        self.subject = subject
        self.reply = reply
        self.answered = answered
        self.seconds = seconds
        self.deadline = deadline
        self.handler = handler

    def take(self, message: Msg) -> None:
        if self.handler is not None:
            self.handler(message)
        else:
            self.end(message)

    def end(self, message: Msg) -> None:
        if not self.answered.done():
            self.answered.set_result(message)

    def fail(self, problem: BusProblem) -> None:
        if not self.answered.done():
            self.answered.set_exception(fresh(problem))


class Replies:
    def __init__(self, inbox: str) -> None:
        self._inbox = inbox
        self._tokens = itertools.count()
        self._waits: dict[str, Wait] = {}
        self._timer: asyncio.TimerHandle | None = None

    @contextmanager
    def waiting(
        self, subject: str, seconds: float, handler: Handler | None = None
    ) -> Iterator[Wait]:
        """Wait while the block runs. With a handler, messages go to it, and it ends the wait."""
        token, wait = self.begin(subject, seconds, handler)
        try:
            yield wait
        finally:
            self.finish(token, wait)

    def begin(
        self, subject: str, seconds: float, handler: Handler | None = None
    ) -> tuple[str, Wait]:
        """`waiting` by hand, for the one path that is walked thousands of times a second."""
        loop = asyncio.get_running_loop()
        token = str(next(self._tokens))
        wait = self._waits[token] = Wait(
            subject,
            reply=f"{self._inbox}.{token}",
            answered=loop.create_future(),
            seconds=seconds,
            deadline=loop.time() + seconds,
            handler=handler,
        )
        if self._timer is None:
            self._timer = loop.call_later(_LOOK_SECONDS, self._look)
        return token, wait

    def finish(self, token: str, wait: Wait) -> None:
        del self._waits[token]
        if wait.answered.done() and not wait.answered.cancelled():
            wait.answered.exception()  # seen: nobody may wait for it any more

    def take(self, message: Msg) -> None:
        """A message in the inbox."""
        wait = self._waits.get(message.subject.rpartition(".")[2])
        if wait is not None:  # whoever waited may have given up
            wait.take(message)

    def fail(self, problem: BusProblem, *, subject: str | None = None) -> None:
        """Tell everybody who waits, or those who wait for the subject (case does not matter)."""
        for wait in self._waits.values():
            if subject is None or wait.subject.lower() == subject.lower():
                wait.fail(problem)

    def _look(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for wait in self._waits.values():
            if wait.deadline <= now:
                said = f"NATS did not answer on {wait.subject} within {wait.seconds:.1f} s"
                wait.fail(BusUnavailable(said))
        self._timer = loop.call_later(_LOOK_SECONDS, self._look) if self._waits else None


def fresh(problem: BusProblem) -> BusProblem:
    """The same problem as an exception of its own, as several tasks may raise it."""
    return type(problem)(*problem.args)
