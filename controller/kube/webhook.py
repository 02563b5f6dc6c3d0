"""What the API server calls before it makes a pod with the label.

Any error leaves the pod as it is, and so does no answer: the configuration says `Ignore`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec
from aiohttp import web

from controller import http
from controller.kube.admission import AdmissionRequest, AdmissionReview
from controller.kube.client import Json, KubeProblem
from kybernate.bus.port import BusProblem
from schemas.base import decoder

PATH: Final = "/admit"
MAX_BODY_BYTES: Final = 8 * 1024 * 1024
"""More than the API server lets a pod be."""
ANSWER_SECONDS: Final = 4.0
"""Less than the API server waits: nothing is promised that nobody hears of."""

log = logging.getLogger(__name__)

Answer = Callable[[AdmissionRequest], Awaitable[Json]]


def application(answer: Answer) -> web.Application:
    async def admit(request: web.Request) -> web.Response:
        try:
            review = decoder(AdmissionReview).decode(await request.read())
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return web.Response(status=400, text=f"no AdmissionReview of a pod: {error}")
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return http.answer(await answer(review.request))
        except (KubeProblem, BusProblem, TimeoutError) as error:
            words = str(error) or "no answer in time"
            log.warning("pod of %s not looked at: %s", review.request.namespace, words)
            return web.Response(status=503, text=words)

    made = web.Application(client_max_size=MAX_BODY_BYTES)
    made.router.add_post(PATH, admit)
    return made
