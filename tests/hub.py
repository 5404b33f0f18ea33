"""A stand-in for the Hub: the few routes that huggingface_hub asks, served from local folders on the loopback."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = "a" * 39 + "1"


@dataclass
class Weather:
    """How the Hub is today; a test may change it while the Hub serves.

    Attributes:
        commit: what "main" is.
        n_busy: so many requests for a repository are answered by 503.
        n_cut: so many files end half way.
    """

    commit: str = COMMIT
    n_busy: int = 0
    n_cut: int = 0


class _Handler(BaseHTTPRequestHandler):
    repositories: dict[str, Path]
    requested: list[str]
    weather: Weather

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        parts = unquote(urlparse(self.path).path).strip("/").split("/")
        self.requested.append("/".join(parts))
        commit = self.weather.commit
        if self.weather.n_busy:
            self.weather.n_busy -= 1
            return self._send(503, b"busy", {}, with_body)
        if parts[:2] == ["api", "models"]:
            name, rest = "/".join(parts[2:4]), parts[4:]
            revision = rest[1] if len(rest) > 1 else "main"
            if name not in self.repositories or revision not in ("main", "v1", COMMIT, commit):
                missing = "RepoNotFound" if name not in self.repositories else "RevisionNotFound"
                return self._send(404, b'{"error": "not found"}', {"X-Error-Code": missing}, with_body)
            files = sorted(p for p in self.repositories[name].iterdir())
            info: object = {
                "id": name,
                "sha": COMMIT if revision == COMMIT else commit,
                "siblings": [{"rfilename": f.name} for f in files],
                "tags": [],
            }
            if rest[:1] == ["tree"]:
                info = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": COMMIT} for f in files]
            return self._send(200, json.dumps(info).encode(), {"Content-Type": "application/json"}, with_body)
        path = self.repositories.get("/".join(parts[:2]), Path("none")) / parts[-1]
        if parts[2:3] != ["resolve"] or not path.is_file():
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound"}, with_body)
        content = path.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha1(content).hexdigest()}"',
            "X-Repo-Commit": parts[3] if parts[3] in (COMMIT, commit) else commit,
        }
        return self._send(200, content, headers, with_body)

    def _send(self, status: int, body: bytes, headers: dict[str, str], with_body: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body and self.weather.n_cut and "resolve" in self.path:
            self.weather.n_cut -= 1
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif with_body:
            self.wfile.write(body)


@contextmanager
def hub(repositories: dict[str, Path], weather: Weather | None = None) -> Iterator[tuple[str, list[str]]]:
    """Serve name -> folder; yields the endpoint's address and the list of paths asked for so far."""
    requested: list[str] = []
    handler = type(
        "Handler", (_Handler,), {"repositories": repositories, "requested": requested, "weather": weather or Weather()}
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requested
    finally:
        server.shutdown()
        server.server_close()
