"""An exported tiny T5 and a decoder-only model, and a running service."""

import contextlib
import http.client
import json
import threading
import time

import pytest
import uvicorn

from lorahub_edge.serve import OnnxModel
from lorahub_edge.serve.server import ServerSettings, make_app


@pytest.fixture(scope="session")
def folders(export_base):
    """Kind -> exported folder."""
    return {kind: export_base(kind).folder for kind in ("t5", "llama")}


@pytest.fixture(params=["t5", "llama"])
def model(request, folders):
    return OnnxModel(folders[request.param], n_threads=1)


class Client:
    """Requests to a service on loopback."""

    def __init__(self, port):
        self.port = port

    def open(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def request(self, method, path, body=None):
        with contextlib.closing(self.open()) as connection:
            raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, raw)
            response = connection.getresponse()
            data = response.read()
            is_json = response.headers["Content-Type"].startswith("application/json")
            return response.status, json.loads(data) if is_json else data.decode(), response.headers

    def complete(self, **body):
        return self.request("POST", "/v1/completions", body)[:2]


@contextlib.contextmanager
def running(model, **settings):
    """A service in a thread, on a free port."""
    config = uvicorn.Config(make_app(model, ServerSettings(**settings)), port=0, log_level="error")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Client(server.servers[0].sockets[0].getsockname()[1])
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def serve():
    return running
