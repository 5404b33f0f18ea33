"""Make and train the pocket base: a small T5 v1.1 with an output layer of its own.

Muon trains the matrices inside the blocks and AdamW the rest; on one CPU core this learns the mixture several times
faster than AdamW alone. Everything follows from one seed (torch, one thread).
"""

import json
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import T5Config, T5ForConditionalGeneration

from lorahub_edge.pocket import upstream
from lorahub_edge.pocket.upstream import Row
from lorahub_edge.tasks.batches import IGNORED, padded

log = logging.getLogger(__name__)
WARMUP_STEPS = 100
# Rows of T5's table of relative positions (32 buckets, 16 for what stands behind).
ONE_BACK_BUCKET, ONE_ON_BUCKET = 1, 17
STARTING_BIAS = 4.0
# Position biases are logits that must grow to several units; at the common rate that takes most of the training.
POSITION_RATE_SHARE = 5.0
LOG_EVERY_STEPS = 100


@dataclass(frozen=True)
class BaseSettings:
    """What made the committed base."""

    width: int = 128
    encoder_layers: int = 4
    decoder_layers: int = 3
    steps: int = 2400
    rows_per_step: int = 64
    learning_rate: float = 3e-3
    seed: int = 1


def new_model(vocabulary_size: int, settings: BaseSettings) -> T5ForConditionalGeneration:
    """An untrained T5 whose output layer is not the embedding.

    transformers 5 ties the two for every fresh T5 and then scales the logits by width**-0.5; both are undone here.
    """
    torch.manual_seed(settings.seed)
    config = T5Config(
        vocab_size=vocabulary_size,
        d_model=settings.width,
        d_kv=32,
        d_ff=settings.width * 5 // 2,
        num_layers=settings.encoder_layers,
        num_decoder_layers=settings.decoder_layers,
        num_heads=settings.width // 32,
        relative_attention_max_distance=64,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
    )
    config.decoder_start_token_id = 0
    model = T5ForConditionalGeneration(config)
    model.lm_head.weight = nn.Parameter(torch.randn_like(model.shared.weight) * settings.width**-0.5)
    model.config.scale_decoder_outputs = False
    set_starting_heads(model)
    return model


def set_starting_heads(model: T5ForConditionalGeneration) -> None:
    """Let head 0 start by looking one token back, and the encoder's last head one token on.

    From T5's own start the model did not learn which word comes first within 1200 steps; from here it takes 700.
    """
    with torch.no_grad():
        for stack in ("encoder", "decoder"):
            bias = model.get_parameter(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight")
            bias[ONE_BACK_BUCKET, 0] = STARTING_BIAS
            if stack == "encoder":
                bias[ONE_ON_BUCKET, -1] = STARTING_BIAS


def to_batch(tokenizer: Tokenizer, rows: list[Row]) -> dict[str, Tensor]:
    """Rows as padded input_ids, attention_mask and labels, int64 (rows, longest)."""
    inputs = padded([e.ids for e in tokenizer.encode_batch([row["input"] for row in rows])], 0)
    labels = padded([e.ids for e in tokenizer.encode_batch([row["target"] for row in rows])], IGNORED)
    return {"input_ids": inputs, "attention_mask": (inputs != 0).long(), "labels": labels}


def batches(tokenizer: Tokenizer, rows: Iterator[Row], settings: BaseSettings) -> Iterator[dict[str, Tensor]]:
    """Batches of rows of about equal length, so that little is padding; the order of lengths stays random."""
    rng = np.random.default_rng(settings.seed)
    count = settings.rows_per_step
    while True:
        block = list(islice(rows, count * 16))
        block.sort(key=lambda row: len(row["input"]) + 20 * rng.random())
        for i in rng.permutation(16):
            yield to_batch(tokenizer, block[int(i) * count : (int(i) + 1) * count])


def make_optimizers(model: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings, output layer, norms and position biases."""
    named = list(model.named_parameters())
    positions = [p for n, p in named if "relative" in n]
    inner = [p for n, p in named if ".block." in n and p.ndim == 2 and "relative" not in n]
    chosen = {id(p) for p in (*positions, *inner)}
    rest = [p for _, p in named if id(p) not in chosen]
    groups = [{"params": rest, "share": 1.0}, {"params": positions, "share": POSITION_RATE_SHARE}]
    return [
        torch.optim.Muon(inner, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate_share(step: int, steps: int) -> float:
    """Linear warm-up, level until half of the steps, then linear to 2 %."""
    return min(1.0, (step + 1) / WARMUP_STEPS) * min(1.0, max(0.02, 2 * (1 - step / steps)))


def train_base(
    tokenizer: Tokenizer, settings: BaseSettings, rows: Iterator[Row] | None = None
) -> T5ForConditionalGeneration:
    """Train from nothing; returns the model in float32, in eval mode.

    Args:
        tokenizer: of the rows.
        settings: the model's shape and how it is trained.
        rows: endless; None for the committed base's mixture.
    """
    torch.set_num_threads(1)
    model = new_model(tokenizer.get_vocab_size(), settings)
    model.train()
    optimizers = make_optimizers(model, settings.learning_rate)
    rows = upstream.base_rows(settings.seed) if rows is None else rows
    total, start = 0.0, time.perf_counter()
    for step, batch in enumerate(islice(batches(tokenizer, rows, settings), settings.steps)):
        rate = settings.learning_rate * learning_rate_share(step, settings.steps)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group.get("share", 1.0) * rate
            optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        total += float(loss.detach())
        if (step + 1) % LOG_EVERY_STEPS == 0:
            log.info("base: step %d, loss %.4f, %.0f s", step + 1, total / LOG_EVERY_STEPS, time.perf_counter() - start)
            total = 0.0
    model.train(mode=False)
    return model


def save_base(model: T5ForConditionalGeneration, folder: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors (float16).

    The config is written here and not by save_pretrained, which would say that the output layer is the embedding.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict()
    config.pop("scale_decoder_outputs", None)
    # float32: transformers 5 computes in the dtype that stands here, and T5's own rule is never to compute in float16.
    config |= {"architectures": ["T5ForConditionalGeneration"], "tie_word_embeddings": False, "dtype": "float32"}
    write_json(folder / "config.json", config)
    generation = {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    write_json(folder / "generation_config.json", generation)
    tensors = {name: p.detach().to(torch.float16).contiguous() for name, p in model.named_parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def write_json(path: Path, value: Mapping[str, object]) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
