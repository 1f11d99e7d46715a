"""Error responses, without any text of the request in them or in a log."""

from __future__ import annotations

import logging
import traceback

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("examples.serving")


class ContainErrors:
    """Middleware inside the instrumentation: an error's message may quote the request, so it is not passed on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 500 for an error, and log its location."""
        started = False

        async def note(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, note)
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            logger.error("%s at %s:%s", type(error).__name__, place.filename, place.lineno)  # noqa: TRY400
            if started:
                raise Interrupted(type(error).__name__) from None
            await refuse(500, "the service failed", scope, receive, send)


class Interrupted(Exception):
    """A response that had begun could not be completed."""


async def refuse(status: int, detail: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer in one line."""
    # The rest of the request is not read, so the connection cannot be used again.
    await JSONResponse({"detail": detail}, status, {"connection": "close"})(scope, receive, send)
