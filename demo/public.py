"""On a public host no single visitor fills the queue: a bound for each address, on what joins it."""

import os
from collections import Counter

from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.requests import Request
from starlette.responses import JSONResponse

RATE = parse("240/minute")  # of all that joins the queue; a slider that is dragged about makes a hundred
PLACES = 5  # of the queue's 16 for one address: one for every tab that draws
JOINS = ("/queue/join", "/call/")  # the page, and programs; cheap events (queue=False) use /run/ and are not bounded


def address(scope) -> str:
    """The visitor's. A Space's proxy adds it to X-Forwarded-For as the last entry; what stands before is the visitor's own
    claim, and elsewhere all of it may be."""
    forwarded = Request(scope).headers.getlist("x-forwarded-for") if "SPACE_ID" in os.environ else []
    if forwarded:
        return forwarded[-1].split(",")[-1].strip()
    return scope["client"][0] if scope.get("client") else ""


def visitor(request) -> str:
    """Whose request this is, for budgets and for the store."""
    return address(request.request.scope) if request is not None and request.request is not None else ""


class QueueBound:
    """ASGI middleware of Gradio's app: answers 429 when an address joins too often, or holds its places already."""

    def __init__(self, app):
        self.app, self.limiter, self.joining = app, MovingWindowRateLimiter(MemoryStorage()), Counter()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["method"] != "POST" or not any(join in scope["path"] for join in JOINS):
            return await self.app(scope, receive, send)
        visitor = address(scope)
        if not self.limiter.hit(RATE, visitor):
            said = "These are too many requests in a minute: wait a little, then try again."
            return await refusal(said)(scope, receive, send)
        if self.joining[visitor] + waiting(scope["app"], visitor) >= PLACES:
            said = f"{PLACES} of your requests are waiting already: let one of them finish, or stop it, then try again."
            return await refusal(said)(scope, receive, send)
        self.joining[visitor] += 1  # those that come at the same moment count too
        try:
            await self.app(scope, receive, send)
        finally:
            self.joining[visitor] -= 1
            self.joining += Counter()  # drops the zeros


def waiting(app, visitor: str) -> int:
    """How many of the visitor's requests are in the queue of Gradio's app, not yet begun."""
    lines = app.get_blocks()._queue.event_queue_per_concurrency_id.values()
    return sum(address(event.request.scope) == visitor for line in lines for event in line.queue)


def refusal(sentence: str) -> JSONResponse:
    return JSONResponse({"detail": sentence}, 429)  # the page shows "detail"
