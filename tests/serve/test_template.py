"""ChatTemplate: a stranger's program, rendered as transformers renders it, and stopped where it does not end."""

import json
import sys
import time
from pathlib import Path

import pytest

from lorahub_edge.errors import InvalidInput, UnsupportedFormat
from lorahub_edge.serve.template import ChatTemplate

MESSAGES = [{"role": "user", "content": " a <b>\n"}, {"role": "assistant", "content": "ü"}]
DOUBLING = "{% set n = namespace(x='aa') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def render(source, marks=()):
    return ChatTemplate(source, dict(marks)).render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{{ bos_token }}{% for m in messages %}\n  {{- m['role'] + ': ' + m.content | trim }}\n{% endfor %}\n",
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}\n{{ m | tojson }}{% endfor %}",
        "{% if add_generation_prompt %}go{% endif %}{% set ns = namespace(n=0) %}{% set ns.n = 3 * 4 %}{{ ns.n }}",
        "{{ messages | map(attribute='content') | join('|') }}{{ messages[0] | tojson(indent=2) }}",
        "{{ messages[0] | tojson(separators=(',', ':'), sort_keys=true) }}{{ '%3d' % 7 }}{{ 'a\nb' | indent(3) }}",
        "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}",
    ],
)
def test_it_renders_as_transformers_does(source):
    from transformers.utils.chat_template_utils import render_jinja_template

    rendered, _ = render_jinja_template(
        [MESSAGES], chat_template=source, add_generation_prompt=True, bos_token="<s>"
    )  # fmt: skip
    assert render(source, {"bos_token": "<s>"}) == rendered[0]


@pytest.mark.parametrize(
    "source",
    [
        LOOP,
        "{{ 'a' * 999999999 }}", "{{ [0] * 999999999 }}", "{{ (7 + messages | length) ** 99999999 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ 'a'.ljust(2**32) }}", "{{ ('a' * 99999).join(('b' * 99999) | list) }}", "{{ '{:>4294967296}'.format(1) }}",
        "{{ 'a' | center(2**32 + messages | length) }}", DOUBLING, "{{ 'a' * 5000000 }}",
        "{{ ().__class__.__base__.__subclasses__() }}", "{{ messages.append(1) }}", "{{ raise_exception('no') }}",
        "{{ nobody.name }}", "{{ 1 / 0 }}", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    ],
)  # fmt: skip
def test_what_it_may_not_do_is_a_refusal_in_time(source, monkeypatch):
    monkeypatch.setattr("lorahub_edge.serve.template.LIMIT_S", 0.5)
    started = time.monotonic()
    with pytest.raises(InvalidInput, match="messages: the model's chat template"):
        render(source)
    assert time.monotonic() - started < 10


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps the limit of address space")
@pytest.mark.parametrize("source", ["{{ 'a'.ljust(2**32 + messages | length) }}", DOUBLING])
def test_it_cannot_fill_the_memory(source):
    template = ChatTemplate(source, {})
    with pytest.raises(InvalidInput, match="MemoryError"):
        template.render(MESSAGES)
    status = Path(f"/proc/{template._process.pid}/status").read_text()  # of this process, which lives on
    peak_kib = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    assert peak_kib << 10 < 1 << 30


def test_after_one_that_did_not_end_the_next_chat_is_answered(monkeypatch):
    monkeypatch.setattr("lorahub_edge.serve.template.LIMIT_S", 0.5)
    template = ChatTemplate(f"{{% if messages | length > 1 %}}{LOOP}{{% endif %}}{{{{ messages[0].content }}}}", {})
    for _ in range(2):
        with pytest.raises(InvalidInput, match="has not ended in time"):
            template.render(MESSAGES)
        assert template.render(MESSAGES[:1]) == MESSAGES[0]["content"]


def test_a_template_that_cannot_be_read_says_so(monkeypatch):
    for source in ("{% for %}", "{{ 'a' | nobody }}", "{% if a %}" * 3000, "{{ 9 ** 99999999 }}"):
        monkeypatch.setattr("lorahub_edge.serve.template.LIMIT_S", 0.5)
        with pytest.raises(UnsupportedFormat, match="chat template: jinja2 cannot read it"):
            ChatTemplate(source, {})


def test_it_is_found_where_transformers_puts_it(tmp_path):
    assert ChatTemplate.of_folder(tmp_path) is None
    config = {"bos_token": {"content": "<s>"}, "chat_template": [{"name": "default", "template": "{{ bos_token }}1"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.of_folder(tmp_path).render(MESSAGES) == "<s>1"
    (tmp_path / "chat_template.jinja").write_text("2")
    assert ChatTemplate.of_folder(tmp_path).render(MESSAGES) == "2"
