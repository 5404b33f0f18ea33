"""Greedy answers of exported folders by onnxruntime-genai; runs in an environment of its own, imports nothing of ours.

Reads JSON: [{"folder", "adapter", "max_new_tokens", "texts", "prompts"}]; prints token ids of each prompt and answer.
Prompts are token ids, or texts for its own tokenizer: then the prompt of the record is put around them.
"""

import json
import sys
from pathlib import Path

import onnxruntime_genai as og


def encoded(model, folder, texts):
    """Token ids of the prompts around texts, as docs/serving.md has it."""
    tokenizer = og.Tokenizer(model)
    prompt = json.loads(Path(folder, "lorahub_edge.json").read_text())["prompt"]
    for text in texts:
        ids = tokenizer.encode(prompt["before"] + text + prompt["after"])
        yield [*prompt["opening_ids"], *map(int, ids), *prompt["closing_ids"]]


def answers(folder, adapter, max_new_tokens, texts, prompts):
    """Token ids of prompts and answers, an end token among them."""
    model = og.Model(folder)
    adapters = og.Adapters(model)
    if adapter is not None:
        adapters.load(adapter, "adapter")
    prompts = list(encoded(model, folder, texts)) if texts else prompts
    rows = []
    for prompt in prompts:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(prompt) + max_new_tokens)
        generator = og.Generator(model, params)
        if adapter is not None:
            generator.set_active_adapter(adapters, "adapter")
        generator.append_tokens(prompt)
        rows.append(list(prompt))
        while not generator.is_done():
            generator.generate_next_token()
            rows[-1].append(int(generator.get_next_tokens()[0]))
    return rows


if __name__ == "__main__":
    sys.stdout.write(json.dumps([answers(**request) for request in json.load(sys.stdin)]))
