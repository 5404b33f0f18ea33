"""Prompt, answer and stops of chat templates of the kinds in use, beside what transformers renders itself."""

import pytest

from lorahub_edge.errors import InvalidInput
from lorahub_edge.tasks import Example, PromptFormat

BLANK_INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content.strip() }} [/INST]"
    "{% else %} {{ m.content.strip() }} {{ eos_token }}{% endif %}{% endfor %}"
)
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)
HEADERS = (
    "{% for m in messages %}{% set turn = '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim"
    " + '<|eot_id|>' %}{% if loop.first %}{% set turn = bos_token + turn %}{% endif %}{{ turn }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
CHATML = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nBe helpful.<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


def thinking(opening):
    """A template with an empty thought before the last answer, and with what opens one in its generation prompt."""
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}"
        "{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ '<|im_start|>assistant\n' }}}}{opening}{{% endif %}}"
    )


OFF = "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% else %}{{ '<think>\n' }}{% endif %}"
THINKING = {"thinking off": OFF, "a thought with answers only": "", "a thought to be closed": "{{ '<think>\n' }}"}
MODEL_TURNS = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
    "{% for m in messages %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n'"
    " + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
ALWAYS = "{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
NEVER = "{% for m in messages %}[{{ m.role }}] {{ m.content }}</s>{% endfor %}"
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content %}{{ part.text }}{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM = "<|im_start|>system\nBe helpful.<|im_end|>\n"
TABLE = {
    "blanks around": ("spiece", BLANK_INST, "<s>[INST] ", " [/INST]", " </s>", {"</s>"}),
    "blanks around, bytes": ("bytes", BLANK_INST, "<s>[INST] ", " [/INST]", " </s>", {"</s>"}),
    "blanks inside": ("bytes", INST, "<s>[INST] ", " [/INST]", "</s>", {"</s>"}),
    "headers": (
        "bytes", HEADERS, "<s><|start_header_id|>user<|end_header_id|>\n\n",
        "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>", {"<|eot_id|>", "</s>"},
    ),
    "a system turn of its own": (
        "bytes", CHATML, f"{SYSTEM}<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>",
        {"<|im_end|>", "</s>"},
    ),
    **{
        name: (
            "bytes", thinking(opening), "<|im_start|>user\n", f"<|im_end|>\n<|im_start|>assistant\n{EMPTY_THOUGHT}",
            "<|im_end|>", {"<|im_end|>", "</s>"},
        ) for name, opening in THINKING.items()
    },
    "no system turn": (
        "bytes", MODEL_TURNS, "<s><start_of_turn>user\n", "<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>",
        {"<end_of_turn>", "</s>"},
    ),
    "always a generation prompt, no end": ("bytes", ALWAYS, "[user] ", "\n[assistant] ", "</s>", {"</s>"}),
    "never a generation prompt": ("bytes", NEVER, "[user] ", "</s>[assistant]", "</s>", {"</s>"}),
    "content as parts": (
        "bytes", PARTS, "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>",
        {"<|im_end|>", "</s>"},
    ),
}  # fmt: skip
# what they show before an answer is more than their generation prompt
MORE_WITH_ANSWERS = [thinking(opening) for name, opening in THINKING.items() if name != "thinking off"]
INPUTS = ["spell {Cat} 12", "  is red a dog ?\n\nyes\n", "<b> {{ x }} {% y %} & {input}", "7"]
ANSWERS = ["12", "no", "Four five."]


@pytest.fixture(params=TABLE.values(), ids=TABLE)
def row(request, base_with):
    kind, template, *expected = request.param
    base = base_with(kind, chat=template)
    return base.tokenizer, PromptFormat.for_base(base), template, expected


def test_what_stands_around_the_input_and_ends_the_answer(row):
    tokenizer, prompt, _, (before, after, end, stops) = row
    assert (prompt.before, prompt.after) == (before, after)
    assert tokenizer.decode(prompt.end_ids).strip() == end.strip()
    assert set(tokenizer.convert_ids_to_tokens(prompt.stop_ids)) == stops


def test_tokens_are_those_that_transformers_gives_the_whole_conversation(row):
    tokenizer, prompt, template, _ = row
    for text in INPUTS:
        for answer in ANSWERS:
            turns = [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]
            if template == PARTS:
                turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
            whole = tokenizer.apply_chat_template(turns, enable_thinking=False)["input_ids"]
            encoded = prompt.encode(Example(text, answer))
            ours = [*encoded.input_ids, *encoded.target_ids]
            if template == ALWAYS:  # its prompt's last blank would become part of the answer, and it has no end
                assert tokenizer.decode(whole).startswith(tokenizer.decode(ours[:-1]))
            else:
                assert ours == whole[: len(ours)]
            start = tokenizer.apply_chat_template(turns[:1], add_generation_prompt=True, enable_thinking=False)
            n = len(start["input_ids"])
            assert list(encoded.input_ids[:n]) == start["input_ids"]
            assert (len(encoded.input_ids) == n) == (template not in (*MORE_WITH_ANSWERS, NEVER))


def test_no_stop_cuts_an_answer(row):
    _, prompt, _, _ = row
    for answer in ANSWERS:
        target = prompt.encode(Example("7", answer)).target_ids
        assert prompt.until_stop([*target, *target]) == list(target)
        assert prompt.answer_text(target) == answer
        assert prompt.given_back(answer) == answer


REFUSED = {
    "opens a thought": (
        "{% for m in messages %}<s>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<s>assistant\n<think>\n{% endif %}",
        r"opens a thought \('<think>\\n'\) where the answer should begin",
    ),
    "upper case": ("{% for m in messages %}{{ m.content | upper }}</s>{% endfor %}A:", "changes the input or leaves"),
    "lower case of one side": (
        "{% for m in messages %}{{ m.content | replace('U', 'u') }}</s>{% endfor %}A:", "changes the input .*UPPER",
    ),
    "escapes": ("{% for m in messages %}{{ m.content | e }}</s>{% endfor %}A:", "changes the input .*<b>"),
    "as JSON": ("{% for m in messages %}{{ m.content | tojson }}</s>{% endfor %}A:", "changes the input"),
    "repeats": ("{% for m in messages %}{{ m.content }} / {{ m.content }}</s>{% endfor %}A:", "repeats the input"),
    "counts": (
        "{% for m in messages %}{{ m.content | length }}:{{ m.content }}</s>{% endfor %}", "changes .*around it",
    ),
    "needs a system turn": (
        "{% if messages[0].role != 'system' %}{{ raise_exception('a system turn is required') }}{% endif %}x",
        r"fails on one user turn \(a system turn is required\)",
    ),
    "no answers": ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}A:", "changes the answer"),
    "no template": ("{% for", "fails on one user turn"),
}  # fmt: skip


@pytest.mark.parametrize(("template", "reason"), REFUSED.values(), ids=REFUSED)
def test_a_template_that_cannot_be_placed_exactly_is_refused_with_its_reason(base_with, template, reason):
    base = base_with(chat=template)
    with pytest.raises(InvalidInput, match=f"its chat template {reason}.*give --prompt plain or a text"):
        PromptFormat.for_base(base)
    assert PromptFormat.for_base(base, template="plain").after == "\n"


def test_a_template_that_never_ends_is_given_up(base_with, monkeypatch):
    """Loops within loops are enough for that: the sandbox bounds each of them, and not their product."""
    monkeypatch.setattr("lorahub_edge.tasks.chat_template.RENDER_LIMIT_S", 0.2)
    loops = "".join(f"{{% for a{k} in range(200) %}}" for k in range(3)) + "{% endfor %}" * 3
    with pytest.raises(InvalidInput, match=r"has not rendered one user turn within 0\.2 s.*--prompt plain"):
        PromptFormat.for_base(base_with(chat=loops), template="chat")
