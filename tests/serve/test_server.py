"""The HTTP service on loopback: answers, limits, and what it does with bad requests and clients that hang up."""

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import json
import logging
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lorahub_edge.serve import GenerationSettings, OnnxModel, answer, generate
from tests import tiny
from tests.serve.conftest import running, wait_until

TEXTS = [text for text, _ in tiny.ROWS]
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def t5(folders):
    return OnnxModel(folders["t5"], n_threads=1)


@pytest.fixture(scope="module")
def service(t5):
    with running(t5, max_body_bytes=20_000) as client:
        yield client


class SlowModel(OnnxModel):
    """A model that takes its time for every token."""

    delay_s = 0.05

    def step(self, state, tokens):
        time.sleep(self.delay_s)
        return super().step(state, tokens)


def endless(model):
    """The same model without tokens that end an answer."""
    model.files = dataclasses.replace(model.files, end_ids=())
    return model


@pytest.fixture
def slow(folders):
    return endless(SlowModel(folders["t5"], n_threads=1))


def test_completions_have_openais_shape(service, t5):
    status, body = service.complete(prompt=TEXTS[:2], max_tokens=8)
    expected = generate(t5, TEXTS[:2], GenerationSettings(max_new_tokens=8))
    assert status == 200
    assert body["object"] == "text_completion"
    assert [c["text"] for c in body["choices"]] == [c.text for c in expected]
    assert [c["finish_reason"] for c in body["choices"]] == [c.finish_reason for c in expected]
    assert body["usage"]["completion_tokens"] == sum(len(c.token_ids) for c in expected)


def test_texts_of_one_request_sample_from_seeds_of_their_own(service):
    body = {"max_tokens": 8, "temperature": 3.0}
    together = service.complete(prompt=TEXTS[:1] * 3, seed=5, **body)[1]["choices"]
    alone = [service.complete(prompt=TEXTS[0], seed=5 + row, **body)[1]["choices"][0] for row in range(3)]
    assert [choice["text"] for choice in together] == [choice["text"] for choice in alone]
    assert len({choice["text"] for choice in together}) > 1


def test_without_a_seed_each_request_draws_its_own(service):
    body = {"prompt": [TEXTS[0]] * 2, "max_tokens": 16, "temperature": 50.0}
    drawn = [choice["text"] for _ in range(3) for choice in service.complete(**body)[1]["choices"]]
    assert len(set(drawn)) == 6
    assert service.complete(**body, seed=7)[1]["choices"] == service.complete(**body, seed=7)[1]["choices"]


@pytest.mark.parametrize(
    ("most", "default", "asked"),
    [
        (4, 9, {None: 4, 10**30: 4, 2: 2}),  # leaving max_tokens out is no way around the service's limit
        (9, 4, {None: 4, 8: 8}),
        (None, 4, {None: 4, 5: 4}),
    ],
)
def test_an_answer_is_as_long_as_is_allowed(folders, serve, most, default, asked):
    model = endless(OnnxModel(folders["t5"], n_threads=1))
    model.files = dataclasses.replace(model.files, max_new_tokens=default)
    with serve(model, max_new_tokens=most) as client:
        for max_tokens, n_tokens in asked.items():
            body = {} if max_tokens is None else {"max_tokens": max_tokens}
            status, found = client.complete(prompt=TEXTS[0], **body)
            assert (status, found["usage"]["completion_tokens"]) == (200, n_tokens)
            assert found["choices"][0]["finish_reason"] == "length"


def test_numbers_at_the_edge_are_answered(service):
    greedy = service.complete(prompt=TEXTS[0], max_tokens=4)[1]["choices"]
    for edge in (
        {"temperature": 1e-300},
        {"temperature": 5e-324, "top_k": 10**30},
        {"temperature": 3, "top_p": 1e-300},
    ):
        assert service.complete(prompt=TEXTS[0], max_tokens=4, seed=10**30, **edge)[1]["choices"] == greedy


def test_null_is_what_was_left_out(service):
    nothing = dict.fromkeys(["temperature", "top_p", "seed", "stop", "stream", "n", "logprobs", "suffix"])
    plain = service.complete(prompt=TEXTS[0], max_tokens=4)[1]["choices"]
    assert service.complete(prompt=TEXTS[0], max_tokens=4, **nothing)[1]["choices"] == plain


class HeldTokenizer:
    """A tokenizer that takes all the time of the world, until it is let go."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self.decode = tokenizer.decode
        self.go = threading.Event()

    def encode_batch(self, texts, **options):
        assert self.go.wait(60)
        return self._tokenizer.encode_batch(texts, **options)


def test_the_images_health_check_tells_a_service_from_none(t5):
    dockerfile = (Path(__file__).resolve().parents[2] / "Dockerfile").read_text()
    (command,) = re.findall(r"^  CMD (\[.*\])$", dockerfile, re.MULTILINE)
    program, *arguments = json.loads(command)
    assert program == "python"

    def health(port):
        code = [argument.replace("8000", str(port)) for argument in arguments]
        return subprocess.run([sys.executable, *code], capture_output=True, text=True, check=False)

    with running(t5, api_keys=("another", "a-key-of-some-length")) as client:
        assert health(client.port).returncode == 0, health(client.port).stderr
    assert health(client.port).returncode == 1


def test_health_answers_while_prompts_are_tokenised(folders, serve):
    model = OnnxModel(folders["t5"], n_threads=1)
    held = HeldTokenizer(model.files.tokenizer)
    model.files = dataclasses.replace(model.files, tokenizer=held)
    with serve(model) as client, concurrent.futures.ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(client.complete, prompt=TEXTS[0], max_tokens=1) for _ in range(3)]
        wait_until(lambda: client.request("GET", "/health")[1]["waiting"] == 3)
        assert not any(each.done() for each in answers)
        held.go.set()
        assert [each.result()[0] for each in answers] == [200] * 3
        assert client.request("GET", "/health")[1]["waiting"] == 0


def test_a_timeout_is_one_before_python_3_11_too(monkeypatch):
    """There asyncio's is another class than the built-in one."""

    class Older(Exception):
        pass

    async def too_late(work, _):
        work.close()
        raise Older

    async def wait():
        model, exchange = answer.Served("m", None, ""), answer.Exchange("", "", "", {})
        waiting = answer.Answer(model, (), [], None, mix=(), timeout_s=1, exchange=exchange, metrics=None)
        await waiting._next()

    monkeypatch.setattr(asyncio, "TimeoutError", Older)
    monkeypatch.setattr(asyncio, "wait_for", too_late)
    with pytest.raises(answer.Refused, match="no whole answer within 1 s"):
        asyncio.run(wait())


def events(client, **body):
    with contextlib.closing(client.open()) as connection:
        connection.request("POST", "/v1/completions", json.dumps({**body, "stream": True}), JSON)
        response = connection.getresponse()
        assert response.headers["Content-Type"].startswith("text/event-stream")
        return [line[6:] for line in response.read().decode().split("\n\n") if line]


def test_a_stream_ends_with_done_and_adds_up(service, t5):
    *parts, last = events(service, prompt=TEXTS[1], max_tokens=8)
    assert last == "[DONE]"
    text = "".join(json.loads(part)["choices"][0]["text"] for part in parts)
    assert text == generate(t5, TEXTS[1:2], GenerationSettings(max_new_tokens=8))[0].text


def test_health_models_metrics_and_the_page(service):
    service.complete(prompt=TEXTS[0], max_tokens=2)
    assert service.request("GET", "/health")[1]["status"] == "ok"
    assert service.request("GET", "/v1/models")[1]["data"][0]["id"] == "t5"
    metrics = service.request("GET", "/metrics")[1]
    for name in (
        'requests_total{model="t5",status="200"}',
        "completion_tokens_total",
        "request_seconds_bucket",
        "waiting",
    ):
        assert f"lorahub_edge_{name}" in metrics
    assert "<form" in service.request("GET", "/")[1]


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "body: expected JSON"),
        (b"[1]", 400, "body: expected a JSON object, received list"),
        (b"[" * 15_000, 400, "body: expected JSON"),
        (b"\xff\xfe", 400, "body: expected JSON"),
        ({}, 400, "prompt: Field required"),
        ({"prompt": 3}, 400, "prompt: expected a text, a list of token ids, or a list of either"),
        ({"prompt": [3, "a"]}, 400, "prompt: expected texts or lists of token ids"),
        ({"prompt": [3, -4]}, 400, "prompt: expected texts or lists of token ids"),
        ({"prompt": [[3], []]}, 400, "prompt: expected texts or lists of token ids"),
        ({"prompt": [3, 10**9]}, 400, "prompt: expected token ids below "),
        ({"prompt": None}, 400, "prompt: Field required"),
        ({"prompt": ["a"] * 17}, 400, "prompt: expected 1 to 16 texts, received 17"),
        ({"prompt": "a", "stop": ["a"] * 17}, 400, "stop: expected 1 to 16 texts, received 17"),
        ({"prompt": "a", "stop": "a" * 1001}, 400, "stop: expected at most 16 texts of 1 to 1000 characters"),
        ({"prompt": "a", "f" * 9000: 1}, 400, "f" * 1000 + "..."),
        ({"prompt": "a\ud800"}, 400, "body: expected Unicode text, received a lone surrogate"),
        ({"prompt": "a", "stop": ["\udfff"]}, 400, "body: expected Unicode text, received a lone surrogate"),
        ({"prompt": "a", "user": "\ud800"}, 400, "body: expected Unicode text, received a lone surrogate"),
        ({"prompt": "a", "\ud800": 1}, 400, "body: expected Unicode text, received a lone surrogate"),
        (b'{"prompt": "\xed\xa0\x80"}', 400, "body: expected Unicode text, received a lone surrogate"),
        (b'{"prompt": "a", "prompt": "b"}', 400, "prompt: stands twice"),
        (b'{"prompt": "a", "seed": 1' + b"0" * 100 + b"}", 400, "expected integers of at most 100 digits"),
        (b'{"prompt": "a", "temperature": 1e999}', 400, "temperature"),
        (b'{"prompt": "a", "top_p": NaN}', 400, "top_p"),
        ({"prompt": []}, 400, "prompt: expected 1 to 16 texts, received 0"),
        ({"prompt": "a", "promt": "b"}, 400, "promt: unknown field"),
        ({"prompt": "a", "n": 17}, 400, "n: Input should be less than or equal to 16"),
        ({"prompt": ["a", "b"], "n": 9}, 400, "n: expected at most 16 answers, received 2 prompts times 9"),
        ({"prompt": "a", "best_of": 2}, 400, "best_of: not supported; expected n, 1, or nothing"),
        ({"prompt": "a", "max_tokens": -1}, 400, "max_tokens"),
        ({"prompt": "a", "logprobs": 6}, 400, "logprobs"),
        ({"prompt": "a", "logprobs": 1, "n_beams": 2}, 400, "beam search notes no log-probabilities"),
        ({"prompt": "a", "lora": [{"id": 0}]}, 400, "lora: expected ids below 0 (see /lora-adapters), received 0"),
        ({"prompt": "a", "temperature": "hot"}, 400, "temperature"),
        (b'{"prompt": "a", "temperature": NaN}', 400, "temperature"),
        ({"prompt": "a", "stop": [""]}, 400, "stop: expected"),
        ({"prompt": "a", "n_beams": 2, "temperature": 1}, 400, "beam search does not sample"),
        ({"prompt": "dog " * 3000}, 400, "prompt: expected 1 to 2048 tokens"),
        ({"prompt": "x" * 30_000}, 413, "body: expected at most 20000 bytes"),
    ],
)
def test_bad_requests_get_a_clear_error_and_the_service_goes_on(service, body, status, message):
    found, answer, _ = service.request("POST", "/v1/completions", body)
    assert found == status
    assert message in answer["error"]["message"]
    assert service.complete(prompt=TEXTS[0], max_tokens=1)[0] == 200


def test_unknown_paths_and_methods_have_the_same_shape(service):
    assert service.request("GET", "/nothing")[:2] == (
        404, {"error": {"message": "Not Found", "type": "invalid_request_error", "param": None, "code": None}},
    )  # fmt: skip
    status, body, headers = service.request("GET", "/v1/completions")
    assert (status, body["error"]["message"], headers["allow"]) == (405, "Method Not Allowed", "POST")
    assert service.request("GET", "/health/")[0] == 404
    assert service.request("HEAD", "/health")[:2] == (200, "")


def test_many_clients_at_once_get_their_own_answers(service, t5):
    settings = GenerationSettings(max_new_tokens=8)
    expected = {text: completion.text for text, completion in zip(TEXTS, generate(t5, TEXTS, settings), strict=True)}
    texts = TEXTS * 10
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda text: service.complete(prompt=text, max_tokens=8), texts))
    assert [(status, body["choices"][0]["text"]) for status, body in answers] == [(200, expected[t]) for t in texts]


def test_a_full_queue_is_429(slow, serve):
    with serve(slow, max_batch=1, max_waiting=4) as client, concurrent.futures.ThreadPoolExecutor(12) as pool:
        first = pool.submit(client.complete, prompt=TEXTS[0], max_tokens=20)
        time.sleep(0.3)
        body = {"prompt": TEXTS[0], "max_tokens": 2}
        answers = list(pool.map(lambda _: client.request("POST", "/v1/completions", body), range(8)))
        assert first.result()[0] == 200
        assert sorted(status for status, *_ in answers) == [200] * 4 + [429] * 4
        assert {headers.get("retry-after") for status, _, headers in answers if status == 429} == {"1"}
        assert client.complete(prompt=TEXTS[0], max_tokens=1)[0] == 200


def test_a_slow_answer_is_given_up(slow, serve):
    with serve(slow, timeout_s=0.3) as client:
        status, body = client.complete(prompt=TEXTS[0], max_tokens=100)
        assert status == 504
        assert "no whole answer within 0.3 s" in body["error"]["message"]
        assert json.loads(events(client, prompt=TEXTS[0], max_tokens=100)[-1])["error"]["type"] == "timeout_error"
        counted = client.request("GET", "/metrics")[1]
        assert 'requests_total{model="t5",status="504"} 2.0' in counted
        assert 'requests_total{model="t5",status="200"}' not in counted
        assert client.complete(prompt=TEXTS[0], max_tokens=1)[0] == 200


@pytest.mark.parametrize("is_stream", [True, False])
def test_a_client_that_hangs_up_frees_its_place(slow, serve, is_stream):
    with serve(slow, timeout_s=30) as client:
        connection = client.open()
        body = {"prompt": TEXTS[0], "max_tokens": 200, "stream": is_stream}
        connection.request("POST", "/v1/completions", json.dumps(body), JSON)
        if is_stream:
            with connection.getresponse() as response:
                assert response.readline().startswith(b"data: ")
        else:
            time.sleep(0.3)
        connection.close()
        started = time.monotonic()
        assert client.complete(prompt=TEXTS[0], max_tokens=1)[0] == 200
        # 200 tokens would take ten seconds
        assert time.monotonic() - started < 5
        assert 'requests_total{model="t5",status="499"} 1.0' in client.request("GET", "/metrics")[1]


def test_a_model_that_fails_answers_500_and_the_next_request_works(folders, serve):
    class Failing(OnnxModel):
        fails = True

        def read(self, *arguments, **how):
            if self.fails:
                raise RuntimeError("secret detail")
            return super().read(*arguments, **how)

    model = Failing(folders["t5"], n_threads=1)
    with serve(model) as client:
        status, body = client.complete(prompt=TEXTS[0])
        assert status == 500
        assert "secret" not in body["error"]["message"]
        assert client.complete(prompt=TEXTS[0], stream=True)[0] == 500  # nothing of the stream was sent yet
        model.fails = False
        assert client.complete(prompt=TEXTS[0], max_tokens=1)[0] == 200


def test_stopping_finishes_the_answers_under_way(slow, serve):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with serve(slow) as client:
            answer = pool.submit(client.complete, prompt=TEXTS[0], max_tokens=20)
            time.sleep(0.3)
        assert answer.result()[0] == 200


def test_a_stop_that_comes_too_soon_is_an_answer_to_everyone(slow, serve):
    """Those in a batch, those who wait, and those who have had a part."""
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        with serve(slow, max_batch=1, shutdown_s=0.1) as client:
            body = {"prompt": TEXTS[0], "max_tokens": 250}
            streamed = pool.submit(events, client, **body)
            wait_until(lambda: 'first_text_seconds_count{model="t5"} 1.0' in client.request("GET", "/metrics")[1])
            others = [pool.submit(client.complete, **body) for _ in range(2)]
            wait_until(lambda: client.request("GET", "/health")[1]["waiting"] == 2)
        assert [other.result()[0] for other in others] == [503, 503]
        assert json.loads(streamed.result()[-1])["error"]["type"] == "unavailable_error"


def test_requests_are_logged_with_their_tokens_and_faults_with_their_traceback(t5, serve, caplog):
    caplog.set_level(logging.INFO, "lorahub_edge.serve")
    with serve(t5) as client:
        _, body, headers = client.request("POST", "/v1/completions", {"prompt": TEXTS[0], "max_tokens": 3})
        assert events(client, prompt=TEXTS[0], max_tokens=3)[-1] == "[DONE]"
        client.request("POST", "/v1/completions", b"{")
    whole, streamed, refused = caplog.messages
    assert body["id"] == f"cmpl-{headers['x-request-id']}"
    tokens = f"{body['usage']['prompt_tokens']}+{body['usage']['completion_tokens']} tokens"
    for line in (whole, streamed):
        assert line.startswith("127.0.0.1 POST /v1/completions t5 200 ")
        assert f" ms {tokens} " in line
    assert whole.endswith(headers["x-request-id"])
    assert refused.startswith("127.0.0.1 POST /v1/completions 400 ")
    assert TEXTS[0] not in caplog.text


def test_a_key_an_origin_and_a_host_over_http(t5, serve):
    settings = {"api_keys": ("secret",), "allowed_hosts": ("my.example",), "allowed_origins": ("https://good.example",)}
    body = {"prompt": TEXTS[0], "max_tokens": 1}
    good = {"Origin": "https://good.example"}
    with serve(t5, **settings) as client:
        assert client.request("POST", "/v1/completions", body)[0] == 401
        key = {"Authorization": "Bearer secret"}
        assert client.request("POST", "/v1/completions", body, **key)[0] == 200
        assert client.request("POST", "/v1/completions", body, **key, Host="evil.example")[0] == 403
        assert client.request("POST", "/v1/completions", body, **key, Host="my.example")[0] == 200
        assert client.request("POST", "/v1/completions", body, **key, Origin="https://evil.example")[0] == 403
        own = {"Origin": f"http://127.0.0.1:{client.port}"}
        assert client.request("POST", "/v1/completions", body, **key, **own)[0] == 200
        status, _, headers = client.request("POST", "/v1/completions", body, **key, **good)
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, "https://good.example")
        asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization"}
        status, _, headers = client.request("OPTIONS", "/v1/completions", **good, **asked)
        assert (status, headers["Access-Control-Allow-Origin"]) == (200, "https://good.example")
        assert client.request("GET", "/")[0] == 200
