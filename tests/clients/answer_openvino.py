"""Logits of exported folders by OpenVINO; runs in an environment of its own and imports nothing of ours.

Reads JSON: {"requests": [{"graphs", "prompt", "start_id"}], "adapter": a PEFT file}; prints {"logits", "is_adapter"}:
for each request those behind the prompt, and whether openvino_genai loads the adapter.
"""

import json
import sys

import numpy as np
import openvino
import openvino_genai

CORE = openvino.Core()


def run(path, feeds, output):
    """One output of a graph; caches that are not fed are empty."""
    # the default is bfloat16 where the CPU has it
    model = CORE.compile_model(CORE.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    shapes = {i.get_any_name(): i.partial_shape for i in model.inputs if "past_key_values" in i.get_any_name()}
    empty = {n: np.zeros((1, s[1].get_length(), 0, s[3].get_length()), np.float32) for n, s in shapes.items()}
    names = {i.get_any_name() for i in model.inputs}
    return model({name: value for name, value in (feeds | empty).items() if name in names})[output]


def logits(graphs, prompt, start_id):
    """Behind a prompt: (vocabulary,)."""
    ids = np.array([prompt])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(len(prompt))[None]}
    if "encoder" not in graphs:
        return run(graphs["model"], feeds, "logits")[0, -1]
    decoder = {
        "input_ids": np.array([[start_id]]),
        "encoder_hidden_states": run(graphs["encoder"], feeds, "last_hidden_state"),
        "encoder_attention_mask": feeds["attention_mask"],
        "use_cache_branch": np.array([False]),
    }
    return run(graphs["decoder"], decoder, "logits")[0, -1]


if __name__ == "__main__":
    task = json.load(sys.stdin)
    found = [logits(**request).tolist() for request in task["requests"]]
    is_adapter = bool(openvino_genai.Adapter(task["adapter"]))
    sys.stdout.write(json.dumps({"logits": found, "is_adapter": is_adapter}))
