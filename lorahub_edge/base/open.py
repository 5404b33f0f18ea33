"""open_base: what a spec names, with config, tokenizer and an empty model; the weights are still on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from lorahub_edge import pocket
from lorahub_edge.base.checkpoint import Checkpoint, SafetensorsCheckpoint, open_bin, open_shards
from lorahub_edge.base.config import check_normalizer, make_config, refuse_foreign_quantisation
from lorahub_edge.base.contents import match_tensors
from lorahub_edge.base.families import Family, family_of
from lorahub_edge.base.files import CONFIG, VOCABULARY_FILES, choose_base_files, choose_weights
from lorahub_edge.base.gguf import GgufCheckpoint, follow_the_file, gguf_config
from lorahub_edge.base.gguf_header import GgufHeader
from lorahub_edge.errors import InvalidInput, UnsupportedFormat, refused_as
from lorahub_edge.sources import Source, local_path, read_json, resolve

PRECISIONS = ("int8", "bf16", "fp32")
_PROBE_TEXT = "one text"


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

    @property
    def compute_dtype(self) -> torch.dtype:
        """See `Base`."""
        return self.dtype

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
    dtype = _float_dtype(precision, torch_device)
    source, files = _find(spec)
    where = f"base '{spec}'"
    with refused_as(f"{where}: its config cannot be read"):
        header = GgufHeader.read(files[0]) if files[0].suffix == ".gguf" else None
        values = read_json(source.folder / CONFIG) if header is None else gguf_config(header)
    family = family_of(str(values.get("model_type")), where=where)
    refuse_foreign_quantisation(values, where=where)
    with refused_as(f"{where}: its weights cannot be read"):
        checkpoint = _open_checkpoint(files) if header is None else GgufCheckpoint(header, values)
    with refused_as(f"{where}: its config cannot be used"):
        config = make_config(values, checkpoint, where=where)
        if family.is_seq2seq and getattr(config, "decoder_start_token_id", None) is None:
            config.decoder_start_token_id = config.pad_token_id  # T5's decoder starts with the pad token
        if family.is_seq2seq and not 0 <= config.decoder_start_token_id < config.vocab_size:
            raise ValueError(f"decoder_start_token_id {config.decoder_start_token_id} is no token")
        with init_empty_weights(include_buffers=False):
            model = family.auto_class.from_config(config, dtype=dtype, attn_implementation=_attention_of(config))
        match_tensors(model, family, checkpoint)
    tokenizer = _load_tokenizer(source, config, header)
    return OpenBase(source, tokenizer, family, model, checkpoint, precision, torch_device, dtype)


def resolve_device(device: str) -> torch.device:
    """ "auto" is CUDA where there is one, else the CPU; CUDA by name need not be there to plan for it.

    Raises:
        InvalidInput: an unknown name.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InvalidInput(f"device: expected auto, cpu or cuda, received '{device}'")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def need_device(device: torch.device) -> None:
    """Refuse to compute where torch cannot.

    Raises:
        InvalidInput: CUDA asked for and not there.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInput("device 'cuda' was asked for, but torch sees no CUDA device; use --device cpu")


def _find(spec: str) -> tuple[Source, list[Path]]:
    """Where the base is, and the files with its weights: an index first, or one whole file."""
    path = local_path(spec)
    if path.suffix == ".gguf" and path.is_file():
        folder = path.parent.resolve()  # not the file: in the Hub's cache it is a link to one without a name
        return Source(spec, folder), [folder / path.name]
    source = resolve(spec, embedded={"pocket": pocket.base_folder()}, choose_files=choose_base_files, kind="base")
    names = [entry.name for entry in source.folder.iterdir() if entry.is_file()]
    try:
        weights = choose_weights(names, source.pick)
    except InvalidInput as error:
        raise InvalidInput(f"base '{spec}': {error}") from error
    if not weights:
        raise UnsupportedFormat(
            f"base folder {source.folder} has no weights; "
            "expected model.safetensors, pytorch_model.bin or one *.gguf file"
        )
    return source, [source.folder / name for name in weights]


def _open_checkpoint(files: list[Path]) -> Checkpoint:
    first, *_ = files
    if first.suffix == ".json":
        files = open_shards(first)
    return SafetensorsCheckpoint(files) if files[0].suffix == ".safetensors" else open_bin(files)


def _load_tokenizer(source: Source, config: PreTrainedConfig, header: GgufHeader | None) -> PreTrainedTokenizerBase:
    gguf = {} if header is None else {"gguf_file": header.path.name}
    has_vocabulary = bool(gguf) or any((source.folder / name).is_file() for name in VOCABULARY_FILES)
    lacks = f"base '{source.spec}' has no tokenizer; expected one of {', '.join(VOCABULARY_FILES)}"
    if header is None and (source.folder / "tokenizer.json").is_file():
        check_normalizer(source.folder / "tokenizer.json")
    with refused_as(f"base '{source.spec}': its tokenizer cannot be read" if has_vocabulary else lacks):
        # the config is given, so that transformers reads no other; code that comes with a base is never run
        tokenizer = AutoTokenizer.from_pretrained(source.folder, config=config, trust_remote_code=False, **gguf)
        if header is not None:
            follow_the_file(tokenizer, header)
        tokenizer.decode(tokenizer(_PROBE_TEXT).input_ids)  # some settings are looked at when they are needed
    if tokenizer.vocab_files_names and not has_vocabulary:  # ByT5 needs none; for other types an empty one is made up
        raise UnsupportedFormat(lacks)
    return tokenizer


def _attention_of(config: PreTrainedConfig) -> str | None:
    """The attention that computes all a config asks for, or None for transformers' own choice.

    torch's operation has no softcap, and transformers chooses it all the same up to 5.20, without the cap.
    """
    return "eager" if getattr(config, "attn_logit_softcapping", None) else None


def _float_dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "bf16" or (precision == "int8" and device.type == "cuda"):
        return torch.bfloat16
    # fp16 overflows in T5, and bf16 products are slow on CPUs without AMX or AVX512-BF16
    return torch.float32
