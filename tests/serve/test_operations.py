"""What runs a service: readiness, metrics, loading by request, keys, and a document that a fuzzer can read."""

import asyncio
import concurrent.futures
import logging
import time

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings

from lorahub_edge.errors import InvalidInput
from lorahub_edge.serve import OnnxModel, open_folder
from lorahub_edge.serve.batching import ShuttingDown
from lorahub_edge.serve.models import Models
from lorahub_edge.serve.server_settings import ServerSettings, read_api_keys
from lorahub_edge.serve.service import Service
from lorahub_edge.serve.template import ChatTemplate
from tests import tiny
from tests.serve.conftest import random_adapter, running, wait_until
from tests.serve.test_server import SlowModel, endless

TEXT = tiny.ROWS[0][0]


@pytest.fixture
def folder(adapted_folders):
    return adapted_folders["llama"]


@pytest.fixture
def model(folder):
    return OnnxModel(open_folder(folder, adapter="none"), n_threads=1)


def test_a_model_is_shown_by_its_name(model, folder):
    with running(model, models=Models(folder)) as client:
        status, row, _ = client.request("GET", "/v1/models/second")
        assert (status, row["id"], row["parent"]) == (200, "second", "base")
        assert row["root"].endswith("adapters/second.safetensors")
        status, body, _ = client.request("GET", "/v1/models/a/b")
        assert (status, body["error"]["code"]) == (404, "model_not_found")


def test_adapters_are_loaded_and_unloaded_by_request(model, folder, tmp_path):
    path = random_adapter(folder / "adapters" / "run.safetensors", tmp_path / "x.safetensors", seed=9)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(path.read_bytes()[:-1])
    with running(model, models=Models(folder), allow_loading=True) as client:
        assert client.complete(model="mine", prompt=TEXT)[0] == 404
        load = {"lora_name": "mine", "lora_path": str(path)}
        status, row, _ = client.request("POST", "/v1/load_lora_adapter", load)
        assert (status, row["id"], row["parent"]) == (200, "mine", "base")
        assert client.complete(model="mine", prompt=TEXT, max_tokens=2)[0] == 200
        for body, message in (
            (load, "the name 'mine' is taken"),
            ({**load, "lora_name": "b", "lora_path": str(broken)}, "expected a file that lorahub-edge export"),
            ({**load, "lora_name": "b", "lora_path": "/dev/zero"}, "no such file"),
            ({**load, "lora_name": ""}, "lora_name: String should have at least 1 character"),
            ({**load, "more": 1}, "more: unknown field; leave it out"),
        ):
            status, answer, _ = client.request("POST", "/v1/load_lora_adapter", body)
            assert (status, message in answer["error"]["message"]) == (400, True), answer
        assert client.complete(model="second", prompt=TEXT, max_tokens=2)[0] == 200
        assert client.request("POST", "/v1/unload_lora_adapter", {"lora_name": "mine"})[0] == 200
        assert client.complete(model="mine", prompt=TEXT)[0] == 404
        assert client.request("POST", "/v1/unload_lora_adapter", {"lora_name": "mine"})[0] == 404


def test_loading_is_off_unless_it_is_allowed(model, folder):
    with running(model, models=Models(folder)) as client:
        body = {"lora_name": "x", "lora_path": str(folder / "adapters" / "run.safetensors")}
        status, answer, _ = client.request("POST", "/v1/load_lora_adapter", body)
        assert (status, answer["error"]["code"]) == (403, "loading_off")
        assert client.request("POST", "/v1/unload_lora_adapter", {"lora_name": "run"})[0] == 403


def test_a_watched_folder_is_looked_at_while_the_service_runs(model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("lorahub_edge.serve.loading.WATCH_S", 0.02)
    like = folder / "adapters" / "run.safetensors"
    random_adapter(like, tmp_path / "a.safetensors", seed=1)
    with running(model, models=Models(folder, [tmp_path])) as client:
        random_adapter(like, tmp_path / "b.safetensors", seed=2)
        wait_until(lambda: client.request("GET", "/v1/models/b")[0] == 200)


def test_nothing_is_taken_before_the_start(model, folder):
    service = Service(model, ServerSettings(), Models(folder))
    for answer in (service.is_ready, service.health):
        with pytest.raises(ShuttingDown, match="has not started"):
            asyncio.run(answer())


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_service_whose_engine_has_ended_says_so(model, folder, monkeypatch):
    """Otherwise questions would wait for nobody, and whatever supervises the service would not start it again."""
    with running(model, models=Models(folder), timeout_s=1) as client:
        monkeypatch.setattr("lorahub_edge.serve.engine.Engine.step", lambda self: 1 / 0)
        assert client.complete(prompt=TEXT, model="base")[0] == 504
        for path in ("/readyz", "/health"):
            status, body, _ = client.request("GET", path)
            assert (status, body["error"]["code"]) == (500, "model_failed")
        assert client.complete(prompt=TEXT, model="base")[0] == 500
        assert client.request("GET", "/livez")[0] == 200


def test_while_answers_are_finished_probes_are_told_that_nothing_more_is_taken(folder):
    """A load balancer asks another machine, and a supervisor need not kill this one."""
    slow = endless(SlowModel(open_folder(folder, adapter="none"), n_threads=1))
    with concurrent.futures.ThreadPoolExecutor(1) as pool, running(slow, models=Models(slow.files)) as client:
        probes = ("/livez", "/readyz", "/health")
        assert [client.request("GET", path)[0] for path in probes] == [200] * 3
        answer = pool.submit(client.complete, prompt=TEXT, model="base", max_tokens=30)
        wait_until(lambda: "lorahub_edge_running 1.0" in client.request("GET", "/metrics")[1])
        client.stop()
        wait_until(lambda: client.request("GET", "/readyz")[0] == 503)
        assert [client.request("GET", path)[0] for path in probes] == [200, 503, 503]
        status, refused = client.complete(prompt=TEXT)
        assert (status, refused["error"]["message"]) == (503, "the service is shutting down; ask another one")
        status, whole = answer.result()
        assert (status, whole["usage"]["completion_tokens"]) == (200, 30)


def test_metrics_are_counted_by_model(model, folder):
    with running(model, models=Models(folder)) as client:
        for name in ("run", "second", "second"):
            assert client.complete(model=name, prompt=TEXT, max_tokens=3)[0] == 200
        assert client.complete(model="nobody", prompt=TEXT)[0] == 404
        text = client.request("GET", "/metrics")[1]
    assert 'lorahub_edge_requests_total{model="second",status="200"} 2.0' in text
    assert 'lorahub_edge_requests_total{model="",status="404"} 1.0' in text  # a name that a client made up is no label
    for name in ("prompt_tokens_total", "completion_tokens_total", "first_text_seconds_count", "request_seconds_count"):
        assert f'lorahub_edge_{name}{{model="run"}}' in text
    for name in ("step_seconds_count", "batch_size_bucket", "waiting", "running 0.0"):
        assert f"lorahub_edge_{name}" in text


def test_an_answer_whose_first_text_is_its_last_tells_nothing_of_further_tokens(model):
    with running(model) as client:
        for stop, n in ((["x" * 1000], 0), (None, 1)):  # so much is held back until the end
            assert client.complete(prompt=TEXT, max_tokens=4, stop=stop)[0] == 200
            text = client.request("GET", "/metrics")[1]
            assert text.count("lorahub_edge_token_seconds_count{") == n


def test_a_clients_own_request_id_is_kept_if_it_is_a_name(model, caplog):
    with running(model) as client, caplog.at_level(logging.INFO, "lorahub_edge.serve"):
        for given, is_kept in (("job-7.a", True), ("x" * 65, False), ("a b", False)):
            headers = client.request("GET", "/livez", x_request_id=given)[2]
            assert (headers["x-request-id"] == given) == is_kept
        client.complete(model="run", prompt=TEXT, max_tokens=1)
        wait_until(lambda: any("/v1/completions run 200" in record.message for record in caplog.records))


def test_keys_come_from_options_a_file_or_the_environment(monkeypatch, tmp_path):
    file = tmp_path / "keys"
    file.write_text("one\n\n two \n")
    monkeypatch.setenv("LORAHUB_EDGE_API_KEY", "three")
    assert read_api_keys((), None) == ("three",)
    assert read_api_keys(["a", "b"], file) == ("a", "b", "one", "two")
    monkeypatch.setenv("LORAHUB_EDGE_API_KEY", "")
    with pytest.raises(InvalidInput, match="api_key: expected printable ASCII"):
        ServerSettings(api_keys=read_api_keys((), None))
    monkeypatch.delenv("LORAHUB_EDGE_API_KEY")
    assert read_api_keys((), None) == ()
    file.write_text("\n")
    for path, message in ((file, "expected at least one key"), (tmp_path / "no", "cannot be read")):
        with pytest.raises(InvalidInput, match=message):
            read_api_keys((), path)


def test_requests_made_from_the_document_never_end_in_a_fault_of_the_service(model, folder, monkeypatch):
    """Schemathesis draws bodies that fit the schemas and bodies that do not."""
    monkeypatch.setattr("lorahub_edge.serve.service.ChatTemplate.of_folder", lambda _: ChatTemplate("red a dog ?", {}))
    with running(model, models=Models(folder), max_new_tokens=2, allow_loading=True) as client:
        url = f"http://127.0.0.1:{client.port}"
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        seen, started = set(), time.monotonic()
        for result in schema.get_all_operations():
            operation = result.ok()

            @settings(
                max_examples=25, deadline=None, derandomize=True, database=None, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @given(case=operation.as_strategy())
            def ask(case):
                if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
                    case.body |= {"model": "run", "lora": None}  # a drawn name is served by nobody
                response = case.call(base_url=url, headers={"Content-Type": "application/json"})
                seen.add((case.path, response.status_code))
                assert response.status_code < 500, (case, response.text)

            ask()
        for path in ("/v1/completions", "/v1/chat/completions"):
            assert {status for asked, status in seen if asked == path} >= {200, 400}, sorted(seen)
        assert time.monotonic() - started < 120
