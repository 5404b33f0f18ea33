"""The service on Ray Serve: replicas answer as our own server does, come again when killed, and finish before they go.

`make clients` installs Ray; without it these tests are skipped.
"""

import concurrent.futures
import contextlib
import dataclasses
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

import openai
import psutil
import pytest
import yaml

from lorahub_edge.serve import GenerationSettings, OnnxModel, generate
from tests import tiny
from tests.clients.test_clients import own_environment
from tests.serve.conftest import running, wait_until

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [text for text, _ in tiny.ROWS]
KEY = "a-key-of-some-length"
LONG = 60  # tokens


class Ray:
    """A Ray with its own files, that obeys `serve` commands."""

    def __init__(self, python, folder):
        self.folder = folder
        environment = {**os.environ, "HOME": str(folder), "PYTHONPATH": str(ROOT), "LORAHUB_EDGE_API_KEY": KEY}
        command = [python, ROOT / "tests/serve/ray_commands.py", folder / "r"]
        with (folder / "log").open("w") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            )
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    def deploy(self, config):
        """As `serve deploy` does: what runs becomes what the file says."""
        path = self.folder / "config.yaml"
        path.write_text(yaml.safe_dump(config))
        self.process.stdin.write(f"run --non-blocking {path}\n")
        self.process.stdin.flush()
        while (line := self.process.stdout.readline()) != "done\n":
            assert line, (self.folder / "log").read_text()[-2000:]

    def replicas(self, application):
        """Process ids."""
        title = f"ray::ServeReplica:{application}:"
        children = psutil.Process(self.process.pid).children(recursive=True)
        with contextlib.suppress(psutil.NoSuchProcess):
            return [child.pid for child in children if "".join(child.cmdline()).startswith(title)]
        return self.replicas(application)

    def client(self, path="", **options):
        return connected(self.port, path, **options)

    def get(self, path, *, authorization=f"Bearer {KEY}", **headers):
        """Status, body and headers; underscores in names of headers are hyphens."""
        names = {name.replace("_", "-"): value for name, value in headers.items()} | {"authorization": authorization}
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            connection.request("GET", path, headers=names)
            response = connection.getresponse()
            return response.status, response.read().decode(), response.headers

    def logs(self):
        """What replicas have logged."""
        return "".join(path.read_text() for path in self.folder.glob("r/session_latest/logs/serve/replica_*.log"))

    def counted(self, path, name):
        """Replica -> a metric's value, summed over its other labels."""
        found = {}
        for labels, value in re.findall(rf"^lorahub_edge_{name}{{(.*)}} (\S+)$", self.get(f"{path}/metrics")[1], re.M):
            replica = re.search('replica="([^"]+)"', labels)[1]
            found[replica] = found.get(replica, 0) + float(value)
        return found

    def close(self):
        with self.process:  # ends its commands, and waits
            pass
        assert self.process.returncode == 0, (self.folder / "log").read_text()[-2000:]


def documented_config():
    """The configuration file of docs/serving.md."""
    (text,) = re.findall(r"`serve\.yaml`:\n\n((?:    .*\n|\n)+)", (ROOT / "docs/serving.md").read_text())
    return yaml.safe_load(text)


def configured(port, folder, n_slow=2):
    """The documented file, on a free port and with the tiny model; and a second application with slow answers."""
    config = documented_config()
    (application,) = config["applications"]
    config["http_options"] = {"host": "127.0.0.1", "port": port}
    application["args"] |= {"folder": str(folder), "num_cpus": 0.2}
    del application["args"]["adapters"], application["args"]["api_key_file"]
    (deployment,) = application["deployments"]
    assert deployment.pop("max_replicas_per_node") == 1  # there is but one machine here
    slow = {"name": "slow", "route_prefix": "/slow", "import_path": "tests.serve.slow_on_ray:app"}
    slow["args"] = {"folder": str(folder), "num_replicas": n_slow, "num_cpus": 0.2}
    config["applications"] += [slow] if n_slow else []
    return config


@pytest.fixture(scope="module")
def folder(export_base):
    return export_base("llama").folder


@pytest.fixture(scope="module")
def cluster(folder):
    python = own_environment("ray", "ray[serve]")
    short = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    try:
        with contextlib.closing(Ray(python, short)) as ray:
            ray.deploy(configured(ray.port, folder))
            for path in ("", "/slow"):
                wait_until(lambda path=path: len(ray.counted(path, "running")) == 2, timeout_s=120)
            yield ray
    finally:
        shutil.rmtree(short)


@pytest.fixture(scope="module")
def own(folder):
    """Text -> how our own server completes it, and answers it in a chat."""
    with running(OnnxModel(folder, n_threads=1)) as server, connected(server.port) as client:
        return {text: (completed(client, text), "".join(chatted(client, text))) for text in TEXTS}


@pytest.fixture(scope="module")
def endless(folder):
    """What the slow replicas answer to each text."""
    model = OnnxModel(folder, n_threads=1)
    model.files = dataclasses.replace(model.files, end_ids=())
    settings = GenerationSettings(max_new_tokens=LONG)
    return {text: answer.text for text, answer in zip(TEXTS, generate(model, TEXTS, settings), strict=True)}


def connected(port, path="", **options):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}{path}/v1", api_key=KEY, **options)


def completed(client, text):
    return client.completions.create(model="llama", prompt=text, max_tokens=30).choices[0].text


def chatted(client, text):
    """The texts of a chat's stream."""
    asked = [{"role": "user", "content": text}]
    stream = client.chat.completions.create(model="llama", messages=asked, max_tokens=30, stream=True)
    return [chunk.choices[0].delta.content or "" for chunk in stream]


def test_two_replicas_answer_as_our_own_server_does(cluster, own):
    with cluster.client() as client:
        for text in TEXTS * 4:
            assert completed(client, text) == own[text][0]
        for text in TEXTS:
            pieces = chatted(client, text)
            assert "".join(pieces) == own[text][1]
            assert len(pieces) > 2
    counts = cluster.counted("", "requests_total")
    assert len(counts) == 2
    assert min(counts.values()) > 0
    assert sum(counts.values()) == 5 * len(TEXTS)


def test_errors_keys_and_request_ids_are_those_of_our_own_server(cluster):
    with cluster.client() as client, pytest.raises(openai.NotFoundError, match="'nobody' is not served here"):
        client.completions.create(model="nobody", prompt=TEXTS[0])
    status, body, headers = cluster.get("/v1/models", authorization="Bearer another", x_request_id="job-7")
    assert (status, json.loads(body)["error"]["code"]) == (401, "invalid_api_key")
    assert headers.get_all("x-request-id") == ["job-7"]
    wait_until(lambda: "GET /v1/models 401 invalid_api_key" in cluster.logs())
    assert cluster.get("/readyz", host="other.example.org")[0] == 403
    for path in ("", "/slow"):  # open, below another path too
        assert cluster.get(f"{path}/livez", authorization="")[0] == 200


def test_a_client_that_hangs_up_ends_its_answer(cluster):
    with cluster.client("/slow") as client:
        next(iter(streamed := slow_stream(client)))
        assert sum(cluster.counted("/slow", "running").values()) == 1
        streamed.close()
    wait_until(lambda: sum(cluster.counted("/slow", "running").values()) == 0)
    assert 'requests_total{model="llama",replica=' in (metrics := cluster.get("/slow/metrics")[1])
    assert 'status="499"' in metrics
    assert 'status="200"' not in metrics


def slow_stream(client, text=TEXTS[0]):
    return client.completions.create(model="llama", prompt=text, max_tokens=LONG, stream=True)


def begun(client, n):
    """Streams of answers that are under way on every replica."""
    found = [slow_stream(client, text) for text in TEXTS[:n]]
    return {text: (stream, next(stream).choices[0].text) for text, stream in zip(TEXTS, found, strict=False)}


def test_requests_of_a_killed_replica_are_retried_and_it_is_replaced(cluster, endless):
    """Ray's proxy asks nobody again; the openai package does after a 500, but not amid a stream."""

    def ask(client, text):
        raw = client.completions.with_raw_response.create(model="llama", prompt=text, max_tokens=LONG)
        assert raw.parse().choices[0].text == endless[text]
        return raw.retries_taken

    def ends(stream):
        with contextlib.suppress(openai.APIConnectionError):
            return list(stream)[-1].choices[0].finish_reason

    before = cluster.replicas("slow")
    with (
        cluster.client("/slow") as client,
        cluster.client("/slow", max_retries=0) as once,
        concurrent.futures.ThreadPoolExecutor(16) as pool,
    ):
        streams = begun(once, 4)
        alone = [pool.submit(ask, once, text) for text in TEXTS]
        asked = [pool.submit(ask, client, text) for text in TEXTS * 4]
        wait_until(lambda: sum(cluster.counted("/slow", "running").values()) >= 12)
        os.kill(before[0], signal.SIGKILL)
        retries = [each.result() for each in asked]
        assert {*map(ends, (stream for stream, _ in streams.values()))} == {None, "length"}
        errors = [each.exception() for each in alone if each.exception()]
    assert 0 < sum(map(bool, retries)) < len(retries)
    assert 0 < len(errors) < len(TEXTS)
    assert {(type(error), error.response.text) for error in errors} == {
        (openai.InternalServerError, "Internal Server Error")
    }
    wait_until(lambda: len({*cluster.replicas("slow")} - {before[0]}) == 2)
    wait_until(lambda: len(cluster.counted("/slow", "running")) == 2)


@pytest.mark.parametrize("n_left", [1, 0])
def test_an_answer_under_way_is_finished_when_its_replica_is_told_to_go(cluster, folder, endless, n_left):
    with cluster.client("/slow", max_retries=0) as client:
        streams = begun(client, 4)
        assert min(cluster.counted("/slow", "running").values()) > 0
        cluster.deploy(configured(cluster.port, folder, n_slow=n_left))
        for text, (stream, first) in streams.items():
            assert first + "".join(chunk.choices[0].text for chunk in stream) == endless[text]
    wait_until(lambda: len(cluster.replicas("slow")) == n_left)
