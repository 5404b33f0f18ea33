"""genai: what onnxruntime-genai must be told about a decoder-only graph, so that it runs the folder as it is.

Its own loop reads `genai_config.json`: the graph, the names of its inputs and outputs, the cache's sizes, and where
answers end. The format is that of its model builder (microsoft/onnxruntime-genai, `make_genai_config`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorahub_edge.exporting.graphs import cache_shape
from lorahub_edge.json_text import to_json
from lorahub_edge.tasks import PromptFormat

GENAI_CONFIG = "genai_config.json"


def write_genai_config(folder: Path, graph: str, config: Any, prompt: PromptFormat, max_new_tokens: int) -> None:
    """Write genai_config.json.

    Args:
        folder: of the export.
        graph: the graph's file within the folder.
        config: of the base, a decoder-only model.
        prompt: says how answers end, and how long a prompt may be.
        max_new_tokens: where answers are cut.
    """
    shape = cache_shape(config)
    inputs = {name: name for name in ("input_ids", "attention_mask", "position_ids")}
    inputs |= {f"past_{kind}_names": f"past_key_values.%d.{kind}" for kind in ("key", "value")}
    outputs = {f"present_{kind}_names": f"present.%d.{kind}" for kind in ("key", "value")}
    model = {
        "type": config.model_type,
        "context_length": config.max_position_embeddings,
        "vocab_size": config.vocab_size,
        "eos_token_id": list(prompt.stop_ids),
        "pad_token_id": prompt.pad_id,
        **({} if config.bos_token_id is None else {"bos_token_id": config.bos_token_id}),
        "decoder": {
            "filename": graph,
            "session_options": {"log_severity_level": 3, "provider_options": []},
            "hidden_size": config.hidden_size,
            "head_size": shape.head_width,
            "num_attention_heads": config.num_attention_heads,
            "num_key_value_heads": shape.n_heads,
            "num_hidden_layers": shape.n_layers,
            "inputs": inputs,
            "outputs": {"logits": "logits", **outputs},
        },
    }
    search = {
        "do_sample": False,
        "max_length": min(config.max_position_embeddings, prompt.max_input_tokens + max_new_tokens),
        "past_present_share_buffer": False,  # the graph returns a longer cache than it was given
    }
    (folder / GENAI_CONFIG).write_text(to_json({"model": model, "search": search}) + "\n", encoding="utf-8")
