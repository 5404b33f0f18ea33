"""Greedy answers of exported folders by optimum-onnx; runs in the peers' own environment and imports nothing of ours.

Reads JSON: [{"folder", "is_seq2seq", "max_new_tokens", "texts"}]; prints, for each, the token ids of each answer.
"""

import json
import sys
from pathlib import Path

from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM
from transformers import PreTrainedTokenizerFast


def answers(folder, is_seq2seq, max_new_tokens, texts):
    """Token ids of the answers to texts."""
    # by its file: tokenizer_config.json names the class of the transformers that saved it, which may be newer than this
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(folder, "tokenizer.json")))
    model = (ORTModelForSeq2SeqLM if is_seq2seq else ORTModelForCausalLM).from_pretrained(folder)
    rows = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        output = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)[0].tolist()
        rows.append(output[1 if is_seq2seq else inputs["input_ids"].shape[1] :])
    return rows


if __name__ == "__main__":
    sys.stdout.write(json.dumps([answers(**request) for request in json.load(sys.stdin)]))
