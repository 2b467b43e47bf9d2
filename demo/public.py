"""Whose a request is, and what one visitor may ask of the server at a time."""

import hmac
import ipaddress
import logging
import secrets
from collections import Counter

import anyio
import gradio as gr
from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import SlidingWindowCounterRateLimiter
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from dalle_core.studio.budgets import Budgets, Busy

RATE = parse("240/minute")  # of requests of one kind; a slider that is dragged about makes a hundred
LARGEST = 16 * 2**20  # bytes of a request that is not an upload; the largest picture as a data: URL fits
STAMP = "x-dalle-visitor"  # on what Gradio's MCP server asks of Gradio itself: a secret, and whose it is
# What of Gradio's the page does not use: it writes to the disk, starts programs, or fetches other sites' files.
UNUSED = (
    "/deep_link",
    "/process_recording",
    "/component_server",
    "/vibe-",
    "/proxy=",
    "/stream/",
    "/file=http:",
    "/file=https:",
)
NOT_HERE = "There is nothing here."
UNCLEAR = "This request could not be understood. The page says under “Use via API” what it takes."
TOO_MANY = "These are too many requests in a minute: wait a little, then try again."
TOO_LARGE = f"This is too large: a request has up to {LARGEST // 2**20} MB. Upload pictures as files."
log = logging.getLogger(__name__)


def visitor(request: gr.Request | Request | dict) -> str:
    """Whose request (a handler's, or an ASGI scope) it is: an IPv4 address, or the first half of an IPv6 one, which is
    what a household has; "" outside a launched page."""
    state = request.get("state") if isinstance(request, dict) else getattr(request, "state", None)
    return (state.get("visitor") if isinstance(state, dict) else getattr(state, "visitor", None)) or ""


def counted(host: str) -> str | None:
    """An address as visitors are told apart by it, perhaps with a port; None: it is none."""
    host = host.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


class Bounds:
    """ASGI middleware of Gradio's app. It finds out whose each request is, and answers 429 when that visitor's budget, or
    a place, is used up.

    proxies: how many proxies that are trusted to add to X-Forwarded-For stand before the server. The visitor is the entry
    that the first of them added, so many from the right; what stands left of it is the visitor's own claim. With fewer
    entries the request came past them, and the connection's address counts.
    """

    def __init__(self, app, budgets: Budgets, proxies: int = 0):
        self.app, self.budgets, self.proxies = app, budgets, proxies
        self.secret = secrets.token_urlsafe(32)
        self.limiter, self.under_way = SlidingWindowCounterRateLimiter(MemoryStorage()), Counter()

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        who, kind, places = self.whose(scope), kind_of(scope), self.budgets.budget.places
        scope["state"] = {**scope.get("state", {}), "visitor": who}
        if kind == "mcp":
            scope["headers"] = self.stamped(scope, who)
        if kind == "unused":
            return await refusal(404, NOT_HERE)(scope, receive, send)
        if kind == "other" or places is None or (kind == "upload" and self.is_mcp_s(scope)):
            return await self.answer(scope, receive, send)
        if not self.limiter.hit(RATE, kind, who):
            return await refusal(429, TOO_MANY)(scope, receive, send)
        there = self.under_way[kind, who] + (queued(scope["app"], who) if kind == "queue" else 0)
        if there >= places:
            said = (
                f"{places} of your requests are waiting or running already: let one of them finish, or stop it, then try again."
            )
            return await refusal(429, said)(scope, receive, send)
        try:
            receive = self.bounded(scope, receive, who, kind)
        except HTTPException as refused:
            return await refusal(refused.status_code, refused.detail)(scope, receive, send)
        self.under_way[kind, who] += 1  # those that come at the same moment count too
        try:
            await self.answer(scope, receive, send)
        finally:
            self.under_way[kind, who] -= 1
            self.under_way += Counter()  # drops the zeros
        if kind == "upload" and (store := getattr(scope["app"].get_blocks(), "store", None)):
            await anyio.to_thread.run_sync(store.sweep)

    def whose(self, scope) -> str:
        headers = Headers(scope=scope)
        secret, _, who = headers.get(STAMP, "").partition(" ")
        if who and self.is_secret(secret):
            return who
        host = scope["client"][0] if scope.get("client") else ""
        entries = ",".join(headers.getlist("x-forwarded-for")).split(",")
        named = counted(entries[-self.proxies]) if 0 < self.proxies <= len(entries) else None
        return named or counted(host) or host

    def is_secret(self, text: str) -> bool:
        return hmac.compare_digest(text.encode(), self.secret.encode())

    def stamped(self, scope, who: str) -> list[tuple[bytes, bytes]]:
        """The headers of a request to the MCP server, which passes them on when it asks Gradio for what it takes to answer:
        from there that comes from the server's own address."""
        server = getattr(scope["app"].get_blocks(), "mcp_server_obj", None)
        if client := getattr(server, "_client_instance", None):
            client.headers[f"{STAMP}-upload"] = self.secret  # its uploads come without the visitor's headers
        others = [(name, value) for name, value in scope["headers"] if name.lower() != STAMP.encode()]
        return [*others, (STAMP.encode(), f"{self.secret} {who}".encode())]

    def is_mcp_s(self, scope) -> bool:
        """An upload of the MCP server's; its bytes were counted when the visitor sent them."""
        return self.is_secret(Headers(scope=scope).get(f"{STAMP}-upload", ""))

    def bounded(self, scope, receive, who: str, kind: str):
        """`receive`, which raises HTTPException as this does when the body is too large, or when it is files and the
        visitor's bytes are used up."""
        files, length, total = kind in ("upload", "mcp"), Headers(scope=scope).get("content-length", ""), 0

        def take(size: int):
            if kind != "upload" and total > LARGEST:
                raise HTTPException(413, TOO_LARGE)
            try:
                self.budgets.spend(who, upload_bytes=size if files else 0)
            except Busy as busy:
                raise HTTPException(429, str(busy)) from None

        if length.isdecimal():
            total = int(length)
            take(total)
            return receive

        async def receive_some():
            nonlocal total
            message = await receive()
            size = len(message.get("body", b""))
            total += size
            take(size)
            return message

        return receive_some

    async def answer(self, scope, receive, send):
        """Gradio's answer; a sentence where it has none, as for a function that is not there."""
        begun = False

        async def send_on(message):
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self.app(scope, receive, send_on)
        except Exception:
            log.exception("a request failed")
            if begun:
                raise
            await refusal(400, UNCLEAR)(scope, receive, send)


def kind_of(scope) -> str:
    path = scope["path"]
    if any(part in path for part in UNUSED):
        return "unused"
    if scope["method"] != "POST":
        return "other"
    kinds = {"/queue/join": "queue", "/call/": "queue", "/run/": "run", "/api/": "run", "/upload": "upload", "/mcp": "mcp"}
    return next((kind for part, kind in kinds.items() if part in path), "other")


def queued(app, who: str) -> int:
    """How many of a visitor's requests wait in the queue of Gradio's app, or are worked on."""
    queue = app.get_blocks()._queue
    waiting = [event for line in queue.event_queue_per_concurrency_id.values() for event in line.queue]
    running = [event for job in queue.active_jobs if job for event in job]
    return sum(visitor(event.request.scope) == who for event in waiting + running)


def refusal(code: int, sentence: str) -> JSONResponse:
    return JSONResponse({"detail": sentence}, code)  # the page shows "detail"
