"""Greedy answers of GGUF files with LoRA files by llama.cpp, through llama.h; runs in an environment of its own.

Reads JSON: [{"base", "adapter", "prompts", "n_tokens", "n_vocabulary"}], prompts as token ids; prints, for each prompt,
the token ids of the answer, and the logits before each of them. The wheel's own interface is llama.cpp's server, which
runs no model with an encoder, so its library is called as a C program calls it.
"""

import ctypes
import json
import sys
from pathlib import Path

import xllamacpp

LIBRARY = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))))


class Settings(ctypes.Structure):
    """llama.cpp's default settings, of a model or of a context. Passed on as they came, so that room will do."""

    _fields_ = [("bytes", ctypes.c_uint64 * 64)]


class Batch(ctypes.Structure):
    """llama_batch."""

    _fields_ = [("n_tokens", ctypes.c_int32), ("pointers", ctypes.c_void_p * 6)]


def function(name, result, *arguments):
    """One of llama.h."""
    found = LIBRARY[name]
    found.restype, found.argtypes = result, arguments
    return found


POINTER, TOKENS = ctypes.c_void_p, ctypes.POINTER(ctypes.c_int32)
model_settings = function("llama_model_default_params", Settings)
context_settings = function("llama_context_default_params", Settings)
load_model = function("llama_model_load_from_file", POINTER, ctypes.c_char_p, Settings)
new_context = function("llama_init_from_model", POINTER, POINTER, Settings)
free_context = function("llama_free", None, POINTER)
load_adapter = function("llama_adapter_lora_init", POINTER, POINTER, ctypes.c_char_p)
set_adapters = function(
    "llama_set_adapters_lora", ctypes.c_int32, POINTER, ctypes.POINTER(POINTER), ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_float),
)  # fmt: skip
has_encoder = function("llama_model_has_encoder", ctypes.c_bool, POINTER)
batch_of = function("llama_batch_get_one", Batch, TOKENS, ctypes.c_int32)
encode = function("llama_encode", ctypes.c_int32, POINTER, Batch)
decode = function("llama_decode", ctypes.c_int32, POINTER, Batch)
logits_at = function("llama_get_logits_ith", ctypes.POINTER(ctypes.c_float), POINTER, ctypes.c_int32)


def fed(step, context, ids):
    """Give tokens to llama_encode or llama_decode."""
    tokens = (ctypes.c_int32 * len(ids))(*ids)
    if code := step(context, batch_of(tokens, len(ids))):
        raise SystemExit(f"llama.cpp returns {code}")


def answer(model, adapter, prompt, n_tokens, n_vocabulary):
    """Token ids, and the logits before each."""
    context = new_context(model, context_settings())
    if adapter is not None:
        set_adapters(context, (POINTER * 1)(adapter), 1, (ctypes.c_float * 1)(1.0))
    if has_encoder(model):
        fed(encode, context, prompt)
        prompt = [0]
    ids, logits = [], []
    for _ in range(n_tokens):
        fed(decode, context, ids[-1:] or prompt)
        logits.append(logits_at(context, -1)[:n_vocabulary])
        ids.append(max(range(n_vocabulary), key=logits[-1].__getitem__))
    free_context(context)
    return {"ids": ids, "logits": logits}


def answers(base, adapter, prompts, n_tokens, n_vocabulary):
    """To each prompt; null if llama.cpp does not take the adapter, after it has said why."""
    model = load_model(base.encode(), model_settings())
    loaded = adapter and load_adapter(model, adapter.encode())
    if adapter and not loaded:
        return None
    return [answer(model, loaded, prompt, n_tokens, n_vocabulary) for prompt in prompts]


if __name__ == "__main__":
    function("llama_backend_init", None)()
    sys.stdout.write(json.dumps([answers(**request) for request in json.load(sys.stdin)]))
