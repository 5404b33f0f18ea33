"""The HTTP service on loopback: answers, limits, and what it does with bad requests and clients that hang up."""

import concurrent.futures
import contextlib
import json
import time

import pytest

from lorahub_edge.serve import GenerationSettings, OnnxModel, generate
from tests import tiny

TEXTS = [text for text, _ in tiny.ROWS]
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def t5(folders):
    return OnnxModel(folders["t5"], n_threads=1)


@pytest.fixture(scope="module")
def service(t5):
    from tests.serve.conftest import running

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
    import dataclasses

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
    for name in ('requests_total{status="200"}', "completion_tokens_total", "request_seconds_bucket", "waiting"):
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
        ({"prompt": 3}, 400, "prompt"),
        ({"prompt": []}, 400, "prompt: expected 1 to 16 texts, received 0"),
        ({"prompt": "a", "promt": "b"}, 400, "promt: unknown field"),
        ({"prompt": "a", "n": 2}, 400, "n: not supported"),
        ({"prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
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
    assert service.request("GET", "/v1/completions")[0] == 405


def test_many_clients_at_once_get_their_own_answers(service, t5):
    settings = GenerationSettings(max_new_tokens=8)
    expected = {text: completion.text for text, completion in zip(TEXTS, generate(t5, TEXTS, settings), strict=True)}
    texts = TEXTS * 10
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda text: service.complete(prompt=text, max_tokens=8), texts))
    assert [(status, body["choices"][0]["text"]) for status, body in answers] == [(200, expected[t]) for t in texts]


def test_a_full_queue_is_429_and_waiting_requests_share_a_batch(slow, serve):
    with serve(slow, max_batch=4, max_waiting=4) as client, concurrent.futures.ThreadPoolExecutor(12) as pool:
        first = pool.submit(client.complete, prompt=TEXTS[0], max_tokens=20)
        time.sleep(0.3)
        body = {"prompt": TEXTS[0], "max_tokens": 2}
        answers = list(pool.map(lambda _: client.request("POST", "/v1/completions", body), range(8)))
        assert first.result()[0] == 200
        assert sorted(status for status, *_ in answers) == [200] * 4 + [429] * 4
        assert {headers.get("retry-after") for status, _, headers in answers if status == 429} == {"1"}
        assert 'batch_size_bucket{le="4.0"} 2.0' in client.request("GET", "/metrics")[1]
        assert client.complete(prompt=TEXTS[0], max_tokens=1)[0] == 200


def test_a_slow_answer_is_given_up(slow, serve):
    with serve(slow, timeout_s=0.3) as client:
        status, body = client.complete(prompt=TEXTS[0], max_tokens=100)
        assert status == 504
        assert "no whole answer within 0.3 s" in body["error"]["message"]
        assert json.loads(events(client, prompt=TEXTS[0], max_tokens=100)[-1])["error"]["type"] == "timeout_error"
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
        assert 'requests_total{status="499"} 1.0' in client.request("GET", "/metrics")[1]


def test_a_model_that_fails_answers_500_and_the_next_request_works(folders, serve):
    class Failing(OnnxModel):
        fails = True

        def begin(self, prompts, prefix=None):
            if self.fails:
                raise RuntimeError("secret detail")
            return super().begin(prompts, prefix)

    model = Failing(folders["t5"], n_threads=1)
    with serve(model) as client:
        status, body = client.complete(prompt=TEXTS[0])
        assert status == 500
        assert "secret" not in body["error"]["message"]
        model.fails = False
        assert client.complete(prompt=TEXTS[0], max_tokens=1)[0] == 200


def test_stopping_finishes_the_answers_under_way(slow, serve):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        with serve(slow) as client:
            answer = pool.submit(client.complete, prompt=TEXTS[0], max_tokens=20)
            time.sleep(0.3)
        assert answer.result()[0] == 200
