"""OnnxModel: an exported model's graphs, run step by step with their caches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from lorahub_edge.errors import InvalidInput, UnsupportedFormat, first_line
from lorahub_edge.serve.adapter import Adapter
from lorahub_edge.serve.folder import ExportFolder, open_folder

MIN_ONNXRUNTIME = (1, 20)

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]
OrtValue = Any


@dataclass
class State:
    """Sequences in the making.

    Attributes:
        mask: int64 (b, s): the encoder's input, or all positions so far of a decoder-only model.
        hidden: the encoder's output, or None.
        past: name of a graph input -> cache.
    """

    mask: Ids
    hidden: OrtValue | None
    past: dict[str, OrtValue]


class OnnxModel:
    """A model that is ready to answer.

    Args:
        folder: an exported folder; `open_folder` chooses an adapter.
        n_threads: threads within an operator; onnxruntime's choice if None.
        allow_spinning: let waiting threads keep their core busy. Off, since it takes the core from whoever shares the
            machine: with one of two cores busy, a token of a large T5 took twice as long (docs/log.md).

    Raises:
        InvalidInput: no threads; see also `open_folder`.
        UnsupportedFormat: see `open_folder`; an onnxruntime that is too old; a broken graph.
    """

    def __init__(
        self, folder: str | Path | ExportFolder, *, n_threads: int | None = None, allow_spinning: bool = False
    ) -> None:
        self.files = folder if isinstance(folder, ExportFolder) else open_folder(folder)
        _check_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(allow_spinning)))
        if n_threads is not None:
            if n_threads < 1:
                raise InvalidInput(f"threads: expected at least 1, received {n_threads}")
            options.intra_op_num_threads = n_threads
        self._encoder = _session(self.files.graphs["encoder"], options) if self.files.is_seq2seq else None
        self._decoder = _session(self.files.graphs["decoder" if self.files.is_seq2seq else "model"], options)
        self._inputs = {i.name: i for i in self._decoder.get_inputs()}
        self._past_names = [name for name in self._inputs if name.startswith("past_key_values.")]
        self._encoder_side = _taken_by(self._encoder, self.files.adapter)
        self._decoder_side = _taken_by(self._decoder, self.files.adapter)
        self._empty_past = {
            name: (self._inputs[name].shape[1], self._inputs[name].shape[3]) for name in self._past_names
        }

    def begin(self, prompts: Sequence[Sequence[int]], prefix: Ids | None = None) -> tuple[State, Logits]:
        """Read prompts.

        Args:
            prompts: b lists of token ids, of any lengths above 0.
            prefix: int64 (b, p): first tokens of the answers, or None.

        Returns:
            The state, and logits (b, p + 1, vocabulary) for the token behind each prompt and each prefix token.
        """
        length = max(map(len, prompts))
        ids = np.full((len(prompts), length), self.files.pad_id, np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            # a decoder-only model goes on from the last position, so its padding stands in front
            place = slice(0, len(prompt)) if self.files.is_seq2seq else slice(length - len(prompt), length)
            ids[row, place], mask[row, place] = prompt, 1
        prefix = np.zeros((len(prompts), 0), np.int64) if prefix is None else prefix
        past = {
            name: _value(np.zeros((len(prompts), heads, 0, width), np.float32))
            for name, (heads, width) in self._empty_past.items()
        }
        if self._encoder is None:
            state = State(mask[:, :0], None, past)
            logits = self._run(state, np.concatenate([ids, prefix], 1), new_mask=mask)
            return state, logits[:, length - 1 :]
        feeds = {"input_ids": _value(ids), "attention_mask": _value(mask), **self._encoder_side}
        hidden = self._encoder.run_with_ort_values(["last_hidden_state"], feeds)[0]
        state = State(mask, hidden, past)
        start = np.full((len(prompts), 1), self.files.start_id, np.int64)
        return state, self._run(state, np.concatenate([start, prefix], 1), is_first=True)

    def step(self, state: State, tokens: Ids) -> Logits:
        """Read further tokens of the answers, int64 (b, t); returns logits (b, t, vocabulary). Changes the state."""
        return self._run(state, np.asarray(tokens, np.int64))

    def select(self, state: State, rows: Sequence[int]) -> State:
        """A state of some of the sequences, in the order given; a row may occur more than once."""
        index = np.asarray(rows, np.int64)
        past = {name: _value(np.ascontiguousarray(value.numpy()[index])) for name, value in state.past.items()}
        hidden = None if state.hidden is None else _value(np.ascontiguousarray(state.hidden.numpy()[index]))
        return State(state.mask[index], hidden, past)

    def _run(self, state: State, tokens: Ids, *, is_first: bool = False, new_mask: Ids | None = None) -> Logits:
        feeds = {"input_ids": _value(tokens), **state.past}
        kept = self._past_names
        if state.hidden is not None:
            feeds["encoder_attention_mask"] = _value(state.mask)
            feeds["encoder_hidden_states"] = state.hidden
            feeds["use_cache_branch"] = _value(np.array([not is_first]))
            if not is_first:  # the first step's cross-attention serves all others
                kept = [name for name in kept if ".decoder." in name]
        else:
            new = np.ones_like(tokens)
            if new_mask is not None:
                new[:, : new_mask.shape[1]] = new_mask
            state.mask = np.concatenate([state.mask, new], 1)
            feeds["attention_mask"] = _value(state.mask)
            positions = np.maximum(np.cumsum(state.mask, 1) - 1, 0)
            feeds["position_ids"] = _value(np.ascontiguousarray(positions[:, -tokens.shape[1] :]))
        outputs = ["logits", *(name.replace("past_key_values", "present") for name in kept)]
        feeds = {name: value for name, value in feeds.items() if name in self._inputs}
        feeds |= self._decoder_side
        logits, *present = self._decoder.run_with_ort_values(outputs, feeds)
        state.past.update(zip(kept, present, strict=True))
        result: Logits = logits.numpy()
        return result

    def __repr__(self) -> str:
        return f"OnnxModel({self.files!r})"


def _taken_by(session: Any, adapter: Adapter | None) -> dict[str, OrtValue]:
    """An adapter's tensors that a graph takes; onnxruntime calls inputs with a default overridable initializers."""
    if adapter is None or session is None:
        return {}
    names = (i.name for i in session.get_overridable_initializers())
    return {name: _value(adapter.tensors[name]) for name in names if name in adapter.tensors}


def _value(array: NDArray[Any]) -> OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def _check_onnxruntime() -> None:
    found = tuple(int(part) for part in onnxruntime.__version__.split(".")[:2])
    if found < MIN_ONNXRUNTIME:
        expected = ".".join(map(str, MIN_ONNXRUNTIME))
        raise UnsupportedFormat(
            f"onnxruntime: expected {expected} or newer, received {onnxruntime.__version__}; upgrade it"
        )


def _session(path: Path, options: Any) -> Any:
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common parent of their own
        reason = first_line(error)
        raise UnsupportedFormat(
            f"{path}: onnxruntime {onnxruntime.__version__} cannot load it ({reason}); "
            "upgrade onnxruntime, or export again"
        ) from error


def metadata(model: OnnxModel) -> Mapping[str, Any]:
    """What a service says about its model."""
    record = model.files.record
    adapter = model.files.adapter
    return {
        "name": model.files.folder.name,
        "family": record["family"],
        "precision": record["precision"],
        "adapter": None if adapter is None else adapter.name,
    }
