"""open_base: what a spec names, with config, tokenizer and an empty model; the weights are still on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lorahub_edge import pocket
from lorahub_edge.base.checkpoint import Checkpoint, choose_base_files, gguf_file, open_checkpoint
from lorahub_edge.base.families import Family, family_of
from lorahub_edge.errors import InvalidInput, UnsupportedFormat, first_line
from lorahub_edge.sources import Source, resolve

PRECISIONS = ("int8", "bf16", "fp32")
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class OpenBase:
    """A base whose weights are still on disk.

    Attributes:
        source, tokenizer, family, precision, device: see `Base`.
        model: all parameters on torch's device "meta".
        checkpoint: the weights by name.
        dtype: of what is not quantised.
    """

    source: Source
    tokenizer: PreTrainedTokenizerBase
    family: Family
    model: PreTrainedModel
    checkpoint: Checkpoint
    precision: str
    device: torch.device
    dtype: torch.dtype

    @property
    def weight_files(self) -> tuple[Path, ...]:
        """As `Base.weight_files`."""
        return self.checkpoint.files

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """As `Base.linear_shapes`."""
        return {n: (m.out_features, m.in_features) for n, m in self.model.named_modules() if isinstance(m, nn.Linear)}

    def weight_bytes(self) -> int:
        """What `Base.weight_bytes` will be; more only where the file holds a tied head once more."""
        names = self.checkpoint.names()
        skip = set(self.family.embedding_copies)
        if f"{self.family.head}.weight" not in names:
            skip.add(self.family.head)
        return sum(self._bytes(path, module) for path, module in self.model.named_modules() if path not in skip)

    def _bytes(self, path: str, module: nn.Module) -> int:
        if self.precision == "int8" and is_quantised(path, module, self.family):
            n_rows, n_columns = module.weight.shape  # type: ignore[misc]
            return int(n_rows * n_columns + 4 * n_rows)
        return sum(p.numel() * self.dtype.itemsize for p in module.parameters(recurse=False))


def is_quantised(path: str, module: nn.Module, family: Family) -> bool:
    """Whether a layer of an int8 base holds an int8 matrix."""
    return isinstance(module, (nn.Linear, nn.Embedding)) and not path.endswith(family.float_tensors)


def open_base(spec: str, *, precision: str, device: str) -> OpenBase:
    """Find a base and read all but its weights; downloads it if it is on the Hub.

    Args, Raises: see `load_base`.
    """
    if precision not in PRECISIONS:
        raise InvalidInput(f"precision: expected one of {', '.join(PRECISIONS)}, received '{precision}'")
    torch_device = resolve_device(device)
    source, gguf = _find(spec)
    config = _load_config(source, gguf)
    family = family_of(config.model_type, where=f"base '{spec}'")
    if family.is_seq2seq and getattr(config, "decoder_start_token_id", None) is None:
        config.decoder_start_token_id = config.pad_token_id  # T5's decoder starts with the pad token
    tokenizer = _load_tokenizer(source, gguf)
    dtype = _float_dtype(precision, torch_device)
    with init_empty_weights(include_buffers=False):
        model = family.auto_class.from_config(config, dtype=dtype)
    checkpoint = open_checkpoint(source.folder, model)
    return OpenBase(source, tokenizer, family, model, checkpoint, precision, torch_device, dtype)


def resolve_device(device: str) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU.

    Raises:
        InvalidInput: an unknown name, or CUDA asked for and not there.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InvalidInput(f"device: expected auto, cpu or cuda, received '{device}'")
    if device == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("device 'cuda' was asked for, but torch sees no CUDA device; use --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def _find(spec: str) -> tuple[Source, str | None]:
    path = Path(spec).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return Source(spec, path.resolve().parent), path.name
    source = resolve(spec, embedded={"pocket": pocket.base_folder()}, choose_files=choose_base_files, kind="base")
    gguf = None if (source.folder / "config.json").is_file() else gguf_file(source.folder)
    return source, gguf.name if gguf else None


def _load_config(source: Source, gguf: str | None) -> Any:
    try:
        return AutoConfig.from_pretrained(source.folder, gguf_file=gguf)
    except Exception as error:  # a broken file makes transformers raise whatever it stumbled over
        reason = first_line(error)
        raise UnsupportedFormat(f"base '{source.spec}': its config cannot be read ({reason})") from error


def _load_tokenizer(source: Source, gguf: str | None) -> PreTrainedTokenizerBase:
    if gguf is None and not any((source.folder / name).is_file() for name in TOKENIZER_FILES):
        # transformers would make up an empty one for some model types
        raise UnsupportedFormat(f"base '{source.spec}' has no tokenizer; expected one of {', '.join(TOKENIZER_FILES)}")
    try:
        return AutoTokenizer.from_pretrained(source.folder, gguf_file=gguf)
    except Exception as error:  # as above
        reason = first_line(error)
        raise UnsupportedFormat(f"base '{source.spec}': its tokenizer cannot be read ({reason})") from error


def _float_dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "bf16" or (precision == "int8" and device.type == "cuda"):
        return torch.bfloat16
    # fp16 overflows in T5, and bf16 products are slow on CPUs without AMX or AVX512-BF16
    return torch.float32
