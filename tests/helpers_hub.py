"""A stand-in for the hub on this machine: the real client creates repositories, uploads and downloads files."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


class Hub:
    """Repositories as ``files[repo_id][path] -> bytes``; ``requests`` lists method, path and token of each request."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.refuses = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def post(self, path: str, body: bytes) -> dict[str, Any]:
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.files.setdefault(name, {})
            self.private.setdefault(name, bool(asked.get("private")) or asked.get("visibility") == "private")
            return {"url": f"{self.address}/{name}", "name": name}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        name = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return {"files": files}
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.files[name][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        return {"success": True, "commitOid": COMMIT, "commitUrl": f"{self.address}/{name}/commit/{COMMIT}"}


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

        def _begin(self) -> str:
            path = unquote(urlsplit(self.path).path)
            hub.requests.append((self.command, path, self.headers.get("Authorization", "")))
            return path

        def _answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self) -> None:
            path = self._begin()
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if hub.refuses:
                return self._answer(hub.refuses, b'{"error": "no"}', Content_Type="application/json")
            return self._answer(200, json.dumps(hub.post(path, body)).encode(), Content_Type="application/json")

        def do_GET(self) -> None:
            path = self._begin()
            if path.startswith("/api/models/"):
                name = "/".join(path.split("/")[3:5])
                own = hub.files.get(name, {})
                if "/tree/" in path:
                    tree = [{"type": "file", "path": f, "size": len(c), "oid": COMMIT} for f, c in own.items()]
                    return self._answer(200, json.dumps(tree).encode(), Content_Type="application/json")
                siblings = [{"rfilename": file} for file in own]
                known = {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
                body = json.dumps(known).encode()
                return self._answer(200 if name in hub.files else 404, body, Content_Type="application/json")
            owner, model, _, _, *rest = path.strip("/").split("/")
            content = hub.files.get(f"{owner}/{model}", {}).get("/".join(rest))
            if content is None:
                return self._answer(404, b"", X_Error_Code="EntryNotFound")
            tag = f'"{hashlib.sha1(content).hexdigest()}"'
            return self._answer(200, content, ETag=tag, X_Repo_Commit=COMMIT)

        do_HEAD = do_GET

    return Handler
