"""The service as the openai package sees it: completions, chats, streams, models and errors."""

import json

import openai
import pytest

from lorahub_edge.serve import GenerationSettings, OnnxModel, generate, open_folder
from lorahub_edge.serve.models import Models
from tests import tiny
from tests.serve.conftest import running

TEXTS = [text for text, _ in tiny.ROWS]
TEMPLATE = """\
{% for m in messages %}{{ '<' + m['role'] + '>' + m['content'] + ' ' }}{% endfor %}\
{% if add_generation_prompt %}is red a dog ?{% endif %}"""


@pytest.fixture(scope="module")
def folder(adapted_folders, tmp_path_factory):
    """A decoder-only base with three adapters, and a chat template, which tiny tokenizers lack."""
    folder = adapted_folders["llama"]
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    yield folder
    (folder / "chat_template.jinja").unlink()


@pytest.fixture(scope="module")
def service(folder):
    with running(OnnxModel(open_folder(folder, adapter="none"), n_threads=1), models=Models(folder)) as client:
        yield client


@pytest.fixture(scope="module")
def client(service):
    with openai.OpenAI(base_url=f"http://127.0.0.1:{service.port}/v1", api_key="none", max_retries=0) as client:
        yield client


def alone(folder, adapter, text, **settings):
    model = OnnxModel(open_folder(folder, adapter=adapter), n_threads=1)
    return generate(model, [text], GenerationSettings(**settings))[0]


def test_each_model_answers_under_its_name(client, folder):
    rows = {row.id: row for row in client.models.list().data}
    assert list(rows) == ["base", "run", "second", "third"]
    assert [row.parent for row in rows.values()] == [None, "base", "base", "base"]
    for name in ("run", "second", "third"):
        found = client.completions.create(model=name, prompt=TEXTS[0], max_tokens=8)
        expected = alone(folder, name, TEXTS[0], max_new_tokens=8)
        assert (found.model, found.choices[0].text) == (name, expected.text)
        assert found.usage.completion_tokens == len(expected.token_ids)


def test_an_unknown_model_is_not_found_and_never_answered_by_the_base(client):
    for ask in (
        lambda: client.completions.create(model="nobody", prompt=TEXTS[0]),
        lambda: client.chat.completions.create(model="nobody", messages=[{"role": "user", "content": "a"}]),
    ):
        with pytest.raises(openai.NotFoundError, match="'nobody' is not served here") as caught:
            ask()
        assert caught.value.code == "model_not_found"


def test_several_answers_have_seeds_of_their_own(client):
    options = {"model": "run", "max_tokens": 8, "temperature": 1.5, "seed": 3}
    found = client.completions.create(prompt=TEXTS[:2], n=3, **options)
    assert [choice.index for choice in found.choices] == list(range(6))
    assert len({choice.text for choice in found.choices[:3]}) > 1
    for row in range(6):
        one = client.completions.create(prompt=TEXTS[row // 3], **{**options, "seed": 3 + row})
        assert one.choices[0].text == found.choices[row].text


def test_logprobs_say_which_token_was_how_likely(client):
    found = client.completions.create(model="run", prompt=TEXTS[0], max_tokens=6, logprobs=3).choices[0]
    scores = found.logprobs
    assert len(scores.tokens) == len(scores.token_logprobs) == len(scores.text_offset)
    for token, logprob, top in zip(scores.tokens, scores.token_logprobs, scores.top_logprobs, strict=True):
        assert logprob == pytest.approx(max(top.values()))  # greedy
        assert top[token] == pytest.approx(logprob)
    starts = [sum(map(len, scores.tokens[:k])) for k in range(len(scores.tokens))]
    assert scores.text_offset == starts


def test_an_echo_scores_the_prompt(client):
    """As load and evaluation tools ask: nothing is generated, every token of the prompt is scored."""
    found = client.completions.create(model="base", prompt=TEXTS[0], max_tokens=0, echo=True, logprobs=1)
    choice = found.choices[0]
    assert (choice.text, choice.finish_reason) == (TEXTS[0], "length")
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in choice.logprobs.token_logprobs[1:])
    assert len(choice.logprobs.tokens) == found.usage.prompt_tokens


def test_token_ids_are_taken_as_they_are(client, folder):
    ids = open_folder(folder, adapter="run").encode(TEXTS[0])
    found = client.completions.create(model="run", prompt=ids, max_tokens=6)
    assert (
        found.choices[0].text == client.completions.create(model="run", prompt=TEXTS[0], max_tokens=6).choices[0].text
    )
    assert found.usage.prompt_tokens == len(ids)


def test_streams_add_up_and_end_with_the_usage(client):
    options = {"model": "second", "prompt": TEXTS[:2], "max_tokens": 8, "logprobs": 0}
    whole = client.completions.create(**options)
    *chunks, last = client.completions.create(**options, stream=True, stream_options={"include_usage": True})
    assert (last.choices, last.usage) == ([], whole.usage)
    for row, choice in enumerate(whole.choices):
        own = [c.choices[0] for c in chunks if c.choices[0].index == row]
        assert "".join(c.text for c in own) == choice.text
        assert [t for c in own for t in c.logprobs.tokens] == choice.logprobs.tokens
        assert [t for c in own for t in c.logprobs.text_offset] == choice.logprobs.text_offset
        assert [c.finish_reason for c in own][-1] == choice.finish_reason


def test_usage_stands_in_every_chunk_if_that_is_asked_for(client):
    options = {"model": "second", "prompt": TEXTS[0], "max_tokens": 8}
    whole = client.completions.create(**options)
    always = {"include_usage": True, "continuous_usage_stats": True}
    *chunks, last = client.completions.create(**options, stream=True, stream_options=always)
    counts = [c.usage.completion_tokens for c in chunks]
    assert counts == sorted(counts)
    assert len(set(counts)) > 1
    assert chunks[-1].usage == last.usage == whole.usage


def test_an_answer_goes_on_behind_end_tokens_if_these_are_ignored(client):
    n_ended = 0
    for text in TEXTS:
        options = {"model": "run", "prompt": text, "max_tokens": 16}
        n_ended += client.completions.create(**options).choices[0].finish_reason == "stop"
        found = client.completions.create(**options, extra_body={"ignore_eos": True})
        assert (found.choices[0].finish_reason, found.usage.completion_tokens) == ("length", 16)
    assert n_ended > 0


def test_one_question_to_an_adapter_is_put_into_its_prompt(client, folder):
    asked = [{"role": "user", "content": [{"type": "text", "text": TEXTS[0]}]}]
    found = client.chat.completions.create(model="second", messages=asked, max_tokens=8)
    assert found.choices[0].message.content == alone(folder, "second", TEXTS[0], max_new_tokens=8).text
    assert found.choices[0].message.role == "assistant"


@pytest.mark.parametrize(
    ("model", "messages"),
    [
        ("base", [("user", "dog")]),
        ("second", [("system", "red"), ("user", "dog"), ("assistant", "no"), ("user", "cat")]),
    ],
)
def test_longer_chats_and_those_with_the_base_use_the_template(client, folder, model, messages):
    asked = [{"role": role, "content": text} for role, text in messages]
    found = client.chat.completions.create(model=model, messages=asked, max_completion_tokens=4)
    text = "".join(f"<{role}>{text} " for role, text in messages) + "is red a dog ?"
    ids = open_folder(folder).tokenizer.encode(text, add_special_tokens=False).ids
    expected = client.completions.create(model=model, prompt=ids, max_tokens=4)
    assert found.choices[0].message.content == expected.choices[0].text
    assert found.usage == expected.usage


def test_a_chat_streams_its_role_its_text_and_its_end(client):
    options = {"model": "third", "messages": [{"role": "user", "content": TEXTS[1]}], "max_tokens": 6}
    whole = client.chat.completions.create(**options, logprobs=True, top_logprobs=2)
    first, *chunks, end, last = client.chat.completions.create(
        **options, logprobs=True, stream=True, stream_options={"include_usage": True}
    )
    assert (first.choices[0].delta.role, end.choices[0].finish_reason) == ("assistant", whole.choices[0].finish_reason)
    assert "".join(c.choices[0].delta.content for c in chunks) == whole.choices[0].message.content
    scores = whole.choices[0].logprobs.content
    assert [s.token for c in chunks if c.choices[0].logprobs for s in c.choices[0].logprobs.content] == [
        s.token for s in scores
    ]
    assert all(bytes(s.bytes).decode() == s.token and len(s.top_logprobs) == 2 for s in scores)
    assert (last.choices, last.usage) == ([], whole.usage)


def test_a_number_is_an_integer_if_its_value_is_one(service):
    """As the document's schemas have it: some clients know floats only."""
    found = [service.complete(prompt=TEXTS[0], max_tokens=n)[1] for n in (2, 2.0)]
    assert found[0]["choices"] == found[1]["choices"]
    for n in (2.5, 1e300):
        assert service.complete(prompt=TEXTS[0], max_tokens=n)[0] == 400


def test_an_answer_may_be_sent_back_as_it_came(client):
    """With the fields that are null in it, as `model_dump` writes them."""
    asked = [{"role": "user", "content": TEXTS[0]}]
    said = client.chat.completions.create(model="run", messages=asked, max_tokens=2).choices[0].message.model_dump()
    assert None in said.values()
    again = [*asked, said, *asked]
    assert client.chat.completions.create(model="run", messages=again, max_tokens=2).usage.completion_tokens <= 2


def test_a_request_may_mix_adapters_by_their_scales(service, client, folder):
    """As llama-server's `lora`: those that are named count, all others not."""
    rows = service.request("GET", "/lora-adapters")[1]
    assert [(row["id"], row["name"]) for row in rows] == [(0, "run"), (1, "second"), (2, "third")]

    def ask(lora, model="second"):
        body = {"lora": lora} if lora is not None else {}
        return client.completions.create(
            model=model, prompt=TEXTS[0], max_tokens=6, logprobs=0, extra_body=body
        ).choices[0]

    assert ask([{"id": 1, "scale": 1.0}]) == ask(None)
    none, base = ask([]), ask([{"id": 0, "scale": 0}, {"id": 2, "scale": 0}])
    assert none == base
    scores = [ask(lora).logprobs.token_logprobs[0] for lora in ([{"id": 1, "scale": s}] for s in (0.5, 1.0, 2.0))]
    assert len(set(scores)) == 3
    both = ask([{"id": 1, "scale": 0.5}, {"id": 2, "scale": -1.0}])
    assert both.logprobs.token_logprobs[0] not in scores


def test_a_base_with_an_encoder_takes_one_question(adapted_folders):
    folder = adapted_folders["t5"]
    with running(OnnxModel(open_folder(folder, adapter="none"), n_threads=1), models=Models(folder)) as service:
        ask = {"model": "run", "messages": [{"role": "user", "content": TEXTS[0]}], "max_tokens": 6}
        status, body, _ = service.request("POST", "/v1/chat/completions", ask)
        assert status == 200
        assert body["choices"][0]["message"]["content"] == alone(folder, "run", TEXTS[0], max_new_tokens=6).text
        status, body, _ = service.request("POST", "/v1/chat/completions", {**ask, "messages": ask["messages"] * 2})
        assert (status, "has no chat template, so it takes one message" in body["error"]["message"]) == (400, True)
        status, body = service.complete(prompt="a", echo=True, logprobs=1)
        assert (status, "an encoder's input has no probabilities" in body["error"]["message"]) == (400, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "user"}]}, "messages.0.content: Field required"),
        ({"messages": [{"role": "nurse", "content": "a"}]}, "messages.0.role: Input should be 'system'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "expected parts of type text"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens: differs from max_completion_tokens"),
        ({"max_tokens": 0}, "max_tokens: expected at least 1"),
        ({"top_logprobs": 2}, "top_logprobs: expected logprobs true beside it"),
        ({"tools": [{"type": "function"}]}, "tools: not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format: not supported"),
        ({"lora": [{"id": 7}]}, "lora: expected ids below 3 (see /lora-adapters), received 7"),
        ({"lora": [{"id": 0, "scale": 1e9}]}, "lora.0.scale"),
        ({"lora": "run"}, "lora: Input should be a valid list"),
        ({"lora": [{"id": True}]}, "lora.0.id: Input should be a valid integer"),
        ({"lora": [{"id": 0, "scale": "1"}]}, "lora.0.scale: Input should be a valid number"),
        ({"lora": [{"id": 0, "weight": 1}]}, "lora.0: weight: unknown field"),
        ({"lora": [{"id": 1}, {"id": 1, "scale": 2}]}, "lora: id 1 stands twice"),
        ({"stream_options": {"include_usage": "yes"}}, "stream_options.include_usage: Input should be a valid boolean"),
        ({"messages": [{"role": "user", "content": "a", "audio": {}}]}, "messages.0: audio: unknown field"),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]}, "messages.0: tool_calls: not supp"),
    ],
)
def test_bad_chats_get_a_clear_error(service, change, message):
    body = {"messages": [{"role": "user", "content": "a"}], **change}
    status, answer, _ = service.request("POST", "/v1/chat/completions", json.dumps(body).encode())
    assert status == 400
    assert message in answer["error"]["message"]
