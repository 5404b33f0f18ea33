"""An exported tiny T5 and a decoder-only model, and a running service."""

import contextlib
import http.client
import json
import socket
import threading
import time

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import lorahub_edge
from lorahub_edge.integrity import sealed
from lorahub_edge.serve import OnnxModel, guard
from lorahub_edge.serve.adapter import tensors_sha256
from lorahub_edge.serve.server import make_server
from lorahub_edge.serve.server_settings import ServerSettings
from tests import tiny


@pytest.fixture(scope="session")
def folders(export_base):
    """Kind -> exported folder."""
    return {kind: export_base(kind).folder for kind in ("t5", "llama")}


@pytest.fixture(params=["t5", "llama"])
def model(request, folders):
    return OnnxModel(folders[request.param], n_threads=1)


@pytest.fixture(autouse=True)
def _short_linger(monkeypatch):
    monkeypatch.setattr(guard, "_LINGER_S", 0.1)


class Client:
    """Requests to a service on loopback."""

    def __init__(self, port, server):
        self.port = port
        self._server = server

    def stop(self):
        """As a signal to stop does; returns at once."""
        self._server.should_exit = True

    def open(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def request(self, method, path, body=None, **headers):
        """Status, body and headers of an answer; underscores in names of headers are hyphens."""
        with contextlib.closing(self.open()) as connection:
            raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            names = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, raw, {"Content-Type": "application/json"} | names)
            response = connection.getresponse()
            data = response.read()
            is_json = data and response.headers["Content-Type"].startswith("application/json")
            return response.status, json.loads(data) if is_json else data.decode(), response.headers

    def complete(self, **body):
        return self.request("POST", "/v1/completions", body)[:2]


def wait_until(condition, *, timeout_s=30):
    """Until it holds, but not for ever."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@contextlib.contextmanager
def running(model, models=None, **settings):
    """A service in a thread, on a free port."""
    server = make_server(model, ServerSettings(**settings), models)
    listening = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield Client(listening.getsockname()[1], server)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def serve():
    return running


def random_adapter(like, path, *, seed, rank=3):
    """An adapter file for the same base as another one, with random factors of some rank and a prompt of its own."""
    with safe_open(like, framework="np") as file:
        record = json.loads(file.metadata()["lorahub_edge"])
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, (first, second) in shapes.items():
        shape = (rank, second) if name.endswith("lora_A") else (first, rank)
        tensors[name] = (0.3 * rng.standard_normal(shape)).astype(np.float32)
    record["prompt"] = {**record["prompt"], "before": "dog " * (seed % 3)}
    record |= {"tensors_sha256": tensors_sha256(tensors), "onnx_adapters_sha256": {}}
    path.parent.mkdir(exist_ok=True, parents=True)
    save_file(tensors, path, {"lorahub_edge": json.dumps(sealed(record))})
    return path


@pytest.fixture(scope="session")
def adapted_folders(bases, module_folders, tmp_path_factory):
    """Kind -> exported folder with three adapters of different rank: "run", "second" and "third"."""
    root, found = tmp_path_factory.mktemp("adapted"), {}
    for kind in ("t5", "llama"):
        run = root / kind / "run"
        lorahub_edge.adapt(
            str(bases[kind]), [str(module_folders[kind])], list(tiny.ROWS), n_examples=4, budget=4, device="cpu",
            null_control=False, out=run,
        )  # fmt: skip
        folder = root / kind / "base"
        lorahub_edge.export(run, folder, with_adapter=True)
        for rank, name in ((2, "second"), (5, "third")):
            like = folder / "adapters" / "run.safetensors"
            random_adapter(like, like.with_name(f"{name}.safetensors"), seed=rank, rank=rank)
        found[kind] = folder
    return found
