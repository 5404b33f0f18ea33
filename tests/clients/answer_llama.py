"""Greedy answers of GGUF files with LoRA files by llama.cpp; runs in an environment of its own and imports nothing of ours.

Reads JSON: [{"base", "adapter", "prompts", "n_tokens"}], prompts as token ids; prints, for each prompt, the token ids of the
answer and, for each of them, {token id: log-probability} of as many tokens as "n_likeliest" says.
"""

import json
import sys

import xllamacpp as llama


def start(base, adapter):
    """llama.cpp's server, all in float32 on one thread."""
    settings = llama.CommonParams()
    settings.model.path = base
    settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = 512, 1, 0
    settings.cpuparams.n_threads = 1
    settings.warmup = settings.fit_params = False
    settings.cache_type_k = settings.cache_type_v = llama.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    if adapter is not None:
        lora = llama.CommonAdapterLoraInfo()
        lora.path, lora.scale = adapter, 1.0
        settings.lora_adapters = [lora]
    return llama.Server(settings)


def answers(base, adapter, prompts, n_tokens, n_likeliest):
    """Token ids and log-probabilities for each prompt."""
    server = start(base, adapter)
    rows = []
    for prompt in prompts:
        request = {"prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "logprobs": n_likeliest}
        [choice] = server.handle_completions({**request, "cache_prompt": False})["choices"]
        tokens = choice["logprobs"]["content"]
        likeliest = [{t["id"]: t["logprob"] for t in token["top_logprobs"]} for token in tokens]
        rows.append({"ids": [token["id"] for token in tokens], "likeliest": likeliest})
    return rows


if __name__ == "__main__":
    sys.stdout.write(json.dumps([answers(**request) for request in json.load(sys.stdin)]))
