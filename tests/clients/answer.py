"""Greedy answers of an exported folder by optimum-onnx; runs in the peers' own environment and imports nothing of ours.

python answer.py EXPORT_FOLDER is_seq2seq MAX_NEW_TOKENS TEXT...   -> JSON: token ids of each answer
"""

import json
import sys
from pathlib import Path

from optimum.onnxruntime import ORTModelForCausalLM, ORTModelForSeq2SeqLM
from transformers import PreTrainedTokenizerFast


def main() -> None:
    """Print the answers."""
    folder, is_seq2seq, max_new_tokens, *texts = sys.argv[1:]
    # by its file: tokenizer_config.json names the class of the transformers that saved it, which may be newer than this
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(Path(folder, "tokenizer.json")))
    config = json.loads(Path(folder, "config.json").read_text())["transformers.js_config"]
    suffix = {"fp32": "", "fp16": "_fp16", "int8": "_int8"}[config["dtype"]]
    if is_seq2seq == "true":
        model = ORTModelForSeq2SeqLM.from_pretrained(
            folder,
            subfolder="onnx",
            encoder_file_name=f"encoder_model{suffix}.onnx",
            decoder_file_name=f"decoder_model_merged{suffix}.onnx",
        )
    else:
        model = ORTModelForCausalLM.from_pretrained(folder, subfolder="onnx", file_name=f"model{suffix}.onnx")
    answers = []
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt")
        inputs.pop("token_type_ids", None)
        output = model.generate(**inputs, max_new_tokens=int(max_new_tokens), do_sample=False, num_beams=1)[0].tolist()
        answers.append(output[1 if is_seq2seq == "true" else inputs["input_ids"].shape[1] :])
    sys.stdout.write(json.dumps(answers))


if __name__ == "__main__":
    main()
