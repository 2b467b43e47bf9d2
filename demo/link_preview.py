"""What a messenger shows of a link to the page (Open Graph, ogp.me): the link's prompt and a picture, not Gradio's own."""

import html
import re
from pathlib import Path
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import FileResponse

PICTURE = Path(__file__).parent / "static" / "preview.jpg"
TITLE, SAID = "DALL·E, ranked", "Type a prompt, watch a grid of pictures being drawn, ranked by CLIP."
GRADIO_S = re.compile(rb'<meta\s+(?:property="og:|name="twitter:)[^>]*>\s*')
HOST = re.compile(r"[\w.\-]+(:\d+)?|\[[\da-fA-F:]+\](:\d+)?")
LONGEST = 200  # characters of a prompt; a messenger shows fewer


class LinkPreview:
    """ASGI middleware of Gradio's app: writes the tags into the page as it is asked for, and serves their picture. Gradio
    has no place for either, and the tags need the page's full address, which only a request knows."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        path = scope.get("path", "").removeprefix(scope.get("root_path", "")) or "/"
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD") or path not in ("/", "/preview.jpg"):
            return await self.app(scope, receive, send)
        if path == "/preview.jpg":
            return await FileResponse(PICTURE)(scope, receive, send)
        start, body = None, b""

        async def send_tagged(message):
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message  # it says how long the body is
                return
            body += message.get("body", b"")
            if message.get("more_body"):
                return
            headers = MutableHeaders(raw=start["headers"])
            if headers.get("content-type", "").startswith("text/html") and body:
                body = GRADIO_S.sub(b"", body).replace(b"<head>", b"<head>" + tags(scope).encode(), 1)
                headers["content-length"] = str(len(body))
            await send(start)
            await send({"type": "http.response.body", "body": body})

        await self.app(scope, receive, send_tagged)


def tags(scope) -> str:
    """The tags of the page that an ASGI request asks for."""
    asked = parse_qs(scope.get("query_string", b"").decode("latin-1"))
    prompt = asked.get("prompt", [""])[0].strip()
    title = f"“{prompt[:LONGEST]}”" if prompt else TITLE
    values = {"og:type": "website", "og:title": title, "og:description": SAID, "twitter:card": "summary_large_image"}
    headers = Headers(scope=scope)
    host = headers.get("host", "")
    if HOST.fullmatch(host):
        scheme = headers.get("x-forwarded-proto", scope["scheme"]).split(",")[0].strip()
        address = f"{'https' if scheme == 'https' else 'http'}://{host}{scope.get('root_path', '')}/preview.jpg"
        values |= {"og:image": address, "twitter:image": address}
    return "".join(
        f'<meta {"name" if name.startswith("twitter") else "property"}="{name}" content="{html.escape(value)}">'
        for name, value in values.items()
    )
