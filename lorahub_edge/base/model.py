"""load_base: config + tokenizer + weights, quantised tensor by tensor; the float model is never whole in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.activations import NewGELUActivation

from lorahub_edge import pocket
from lorahub_edge.base.checkpoint import Checkpoint, choose_base_files, gguf_file, open_checkpoint
from lorahub_edge.base.engines import choose_engines
from lorahub_edge.base.families import Family, family_of
from lorahub_edge.base.int8 import Int8Embedding, Int8Linear, Int8Weight
from lorahub_edge.errors import InvalidInput, UnsupportedFormat, first_line
from lorahub_edge.sources import Source, resolve

PRECISIONS = ("int8", "bf16", "fp32")
# Called with each tensor's name and value as it is read, before anything is rounded; returns what to take instead.
Adjust = Callable[[str, torch.Tensor], torch.Tensor]
TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "tokenizer.model", "vocab.json")


@dataclass(frozen=True)
class Base:
    """A frozen model, ready to be evaluated.

    Attributes:
        model: the transformers model. Its linears and embeddings are Int8Linear / Int8Embedding for "int8".
        tokenizer: the source's tokenizer.
        family: what is special about this kind of model.
        source: where it came from.
        precision: "int8", "bf16" or "fp32".
        device: where it computes.
        weight_files: the files that held the tensors.
        layer_engines: engine name -> number of int8 linears that use it.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: Family
    source: Source
    precision: str
    device: torch.device
    weight_files: tuple[Path, ...]
    layer_engines: dict[str, int] = field(default_factory=dict)

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Module path -> (out_features, in_features) of every linear layer: what a LoRA module can target."""
        layers = (nn.Linear, Int8Linear)
        return {n: (m.out_features, m.in_features) for n, m in self.model.named_modules() if isinstance(m, layers)}

    def weight_bytes(self) -> int:
        """Bytes of all weights as they lie in memory, a shared tensor counted once."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())

    def __repr__(self) -> str:
        return f"Base({self.source.spec}, {self.family.name}, {self.precision}, {self.weight_bytes() / 1e6:.1f} MB)"


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


def load_base(spec: str, *, precision: str = "int8", device: str = "auto", adjust: Adjust | None = None) -> Base:
    """Load a base, quantising each tensor as it is read.

    Args:
        spec: "pocket", a folder, a .gguf file, or a Hub id with an optional @revision.
        precision: "int8" (rows, bitsandbytes layout), "bf16" or "fp32" for matrices. What is left float computes
            in float32 on a CPU and bfloat16 on CUDA, "bf16" in bfloat16 everywhere.
        device: "auto", "cpu" or "cuda".
        adjust: changes tensors on their way from the file (a merge adds its deltas there); None for none.

    Raises:
        InvalidInput: the spec, precision or device cannot be used.
        UnsupportedFormat: an unknown model type, or a checkpoint that is broken or lacks tensors.

    Cost: peak memory is the finished base plus one float tensor.
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
    _Filler(model, family, checkpoint, torch_device, dtype, quantize=precision == "int8", adjust=adjust).fill()
    _stop_scaling_an_untied_head(model, family)
    model.to(torch_device).eval().requires_grad_(False)
    if precision == "int8":  # a float base stays what transformers computes, to the bit
        _fuse_activations(model)
    choose_engines(model, family)
    engines = [m.engine for m in model.modules() if isinstance(m, Int8Linear)]
    counts = {engine: engines.count(engine) for engine in sorted(set(engines))}
    return Base(model, tokenizer, family, source, precision, torch_device, checkpoint.files, counts)


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


class _Filler:
    """Puts a checkpoint's tensors into an empty model, one at a time."""

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        *,
        quantize: bool,
        adjust: Adjust | None = None,
    ) -> None:
        self.model = model
        self.family = family
        self.checkpoint = checkpoint
        self.names = checkpoint.names()
        # tensors go to their device as they are read: a later move would part a tied head from its embedding
        self.device = device
        self.dtype = dtype
        self.quantize = quantize
        self.adjust = adjust

    def fill(self) -> None:
        """Fill every parameter; afterwards none is left empty."""
        for path, module in list(self.model.named_modules()):
            if path in self.family.embedding_copies or path == self.family.head:
                continue
            self._fill_module(path, module)
        for copy in self.family.embedding_copies:
            self.model.set_submodule(copy, self.model.get_submodule(self.family.embedding))
        self._fill_head()

    def _fill_module(self, path: str, module: nn.Module) -> None:
        matrix = isinstance(module, (nn.Linear, nn.Embedding)) and not path.endswith(self.family.float_tensors)
        if matrix and self.quantize:
            weight = self._int8(f"{path}.weight")
            self.model.set_submodule(path, self._int8_module(path, module, weight))
            return
        for name, _ in list(module.named_parameters(recurse=False)):
            tensor = self._float(f"{path}.{name}" if path else name)
            module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def _fill_head(self) -> None:
        """The output layer: its own tensor if the checkpoint has one, else the embedding's."""
        head, embedding = self.family.head, self.model.get_submodule(self.family.embedding)
        module = self.model.get_submodule(head)
        if self._has_its_own_head():
            self._fill_module(head, module)
        elif isinstance(embedding, Int8Embedding):
            self.model.set_submodule(head, self._int8_module(head, module, embedding.int8_weight))
        else:
            module.register_parameter("weight", embedding.weight)  # type: ignore[arg-type]

    def _has_its_own_head(self) -> bool:
        """Not if the file merely repeats the embedding there, as a full state_dict of a tied model does."""
        name = f"{self.family.head}.weight"
        if name not in self.names:
            config = self.model.config
            # T5's config in memory always says tied, so only its tensors can tell
            return not self.family.is_seq2seq and not config.tie_word_embeddings  # type: ignore[union-attr]
        head, embedding = self.checkpoint.read(name), self._raw(f"{self.family.embedding}.weight")
        return head.dtype == torch.int8 or not torch.equal(head, embedding)

    def _int8_module(self, path: str, module: nn.Module, weight: Int8Weight) -> nn.Module:
        if isinstance(module, nn.Embedding):
            return Int8Embedding(weight, embed_scale=getattr(module, "embed_scale", None), dtype=self.dtype)
        bias = self._float(f"{path}.bias") if getattr(module, "bias", None) is not None else None
        return Int8Linear(weight, bias)

    def _int8(self, name: str) -> Int8Weight:
        tensor = self._read(name)
        try:
            if tensor.dtype == torch.int8:  # saved by us or by transformers with bitsandbytes
                weight = Int8Weight.from_absmax(tensor, self._read(name.removesuffix("weight") + "SCB"))
            else:
                weight = Int8Weight.from_float(tensor)
        except ValueError as error:
            raise UnsupportedFormat(f"base checkpoint, tensor {name}: {error}") from error
        return weight.to(self.device)

    def _float(self, name: str) -> torch.Tensor:
        tensor = self._read(name)
        if tensor.dtype == torch.int8:
            absmax = self._read(name.removesuffix("weight") + "SCB")
            return Int8Weight.from_absmax(tensor, absmax).to_float(self.dtype).to(self.device)
        return tensor.to(self.device, self.dtype, copy=True)  # a copy of its own: the file need not stay mapped

    def _read(self, name: str) -> torch.Tensor:
        tensor = self._raw(name)
        return tensor if self.adjust is None else self.adjust(name, tensor)

    def _raw(self, name: str) -> torch.Tensor:
        for candidate in self._spellings(name):
            if candidate in self.names:
                tensor = self.checkpoint.read(candidate)
                self._check_shape(name, tensor)
                return tensor
        where = self.checkpoint.files[0].parent
        raise UnsupportedFormat(
            f"base checkpoint in {where} lacks tensor {name}; it is for another model, or incomplete"
        )

    def _spellings(self, name: str) -> Iterator[str]:
        yield name
        if name == f"{self.family.embedding}.weight":  # some checkpoints keep only a copy
            yield from (f"{copy}.weight" for copy in self.family.embedding_copies)
        yield name.removeprefix("model.")  # saved from the body without its head

    def _check_shape(self, name: str, tensor: torch.Tensor) -> None:
        module_path, _, attribute = name.rpartition(".")
        expected = getattr(self.model.get_submodule(module_path), attribute, None)
        if isinstance(expected, torch.Tensor) and expected.shape != tensor.shape:
            raise UnsupportedFormat(
                f"base checkpoint, tensor {name}: expected shape {tuple(expected.shape)} from config.json, "
                f"received {tuple(tensor.shape)}"
            )


def _fuse_activations(model: nn.Module) -> None:
    """The tanh form of GELU in one pass over memory: transformers writes it as eight operations, each a pass."""
    for path, module in list(model.named_modules()):
        if isinstance(module, NewGELUActivation):
            model.set_submodule(path, nn.GELU(approximate="tanh"))


def head_is_tied(model: nn.Module, family: Family) -> bool:
    """Whether the output layer and the embedding are one tensor."""
    head, embedding = (getattr(model.get_submodule(path), "weight") for path in (family.head, family.embedding))  # noqa: B009
    return bool(head.data_ptr() == embedding.data_ptr())


def _stop_scaling_an_untied_head(model: PreTrainedModel, family: Family) -> None:
    """Trust the tensors, not the config: T5 scales its logits by d_model**-0.5 only when the head is the embedding.

    transformers 5 keeps `tie_word_embeddings` true for every T5 in memory and in the configs it saves, so a reload of
    an untied FLAN-T5 may scale its logits: same answers, wrong loss.
    """
    if hasattr(model.config, "scale_decoder_outputs") and not head_is_tied(model, family):
        model.config.scale_decoder_outputs = False
