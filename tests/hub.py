"""A Hub on this machine: as much of the real one's HTTP interface as huggingface_hub needs to list and download."""

import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from huggingface_hub import constants, hf_api

SHA = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """`repos`: owner/name -> {file name: content}. `broken`: file names whose connection is cut half-way, or at the byte
    `stops_at`. `refused`: owner/name -> the X-Error-Code that the Hub answers with."""

    def __init__(self):
        self.repos: dict[str, dict[str, bytes]] = {}
        self.broken: set[str] = set()
        self.refused: dict[str, str] = {}
        self.requests: list[str] = []
        self.ranges: list[str] = []
        self.corrupt: set[str] = set()
        self.stops_at: int | None = None

    def add(self, repo: str, folder: Path) -> None:
        self.repos[repo] = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def use(url: str, monkeypatch) -> None:
    """Makes huggingface_hub ask the Hub at this address, for one test."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hf_api.api, "endpoint", url)


@contextmanager
def serve():
    """(the hub, its address)"""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.do_GET()

        def answer(self, code, content=b"", **headers):
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), str(value))
            if "Content_Length" not in headers:
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def do_GET(self):
            path = self.path.partition("?")[0].strip("/")
            hub.requests.append(path)
            parts = path.removeprefix("api/models/").split("/")
            repo = "/".join(parts[:2])
            if repo in hub.refused:
                code = 403 if hub.refused[repo] == "GatedRepo" else 401
                return self.answer(code, X_Error_Code=hub.refused[repo])
            if repo not in hub.repos:
                return self.answer(404, X_Error_Code="RepoNotFound")
            files = hub.repos[repo]
            if path.startswith("api/"):
                if "tree" in parts:
                    listing = [
                        {
                            "type": "file",
                            "path": name,
                            "size": len(data),
                            "oid": hashlib.sha1(data).hexdigest(),
                            "lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 100},
                        }
                        for name, data in files.items()
                    ]
                    return self.answer(200, json.dumps(listing).encode(), Content_Type="application/json")
                info = {"id": repo, "sha": SHA, "siblings": [{"rfilename": name} for name in files], "private": False}
                return self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
            name = "/".join(parts[4:])
            if name not in files:
                return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=SHA)
            data = files[name]
            headers = {"X_Repo_Commit": SHA, "ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept_Ranges": "bytes"}
            start = int(self.headers.get("Range", "bytes=0-").split("=")[1].split("-")[0] or 0)
            if self.command == "GET" and start:
                hub.ranges.append(self.headers["Range"])
            if name in hub.corrupt:
                data = bytes(reversed(data))
            body, code = data[start:], 206 if start else 200
            if start:
                headers["Content_Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            if self.command == "GET" and name in hub.broken:
                self.close_connection = True
                stop = len(body) // 2 if hub.stops_at is None else max(hub.stops_at - start, 0)
                return self.answer(code, body[:stop], Content_Length=len(body), **headers)
            return self.answer(code, body, Content_Length=len(body), **headers)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
