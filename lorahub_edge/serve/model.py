"""OnnxModel: an exported model's graphs, run step by step with their caches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from lorahub_edge.errors import InvalidInput, UnsupportedFormat, first_line
from lorahub_edge.serve.adapter import Mix
from lorahub_edge.serve.folder import ExportFolder, open_folder
from lorahub_edge.serve.lora import SideInputs
from lorahub_edge.serve.settings import Logits
from lorahub_edge.serve.state import OF_ENCODER, Ids, State, new_value, of_rows

MIN_ONNXRUNTIME = (1, 20)
# Inputs with a default (docs/format.md): which positions of a decoder's cache count, and which logits are wanted.
_SELF_MASK, _LOGITS_FROM = "decoder_attention_mask", "logits_from"


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
        # Which buffers could be shared is looked for among all pairs of thousands of nodes: 6 of 7 seconds of loading a
        # decoder. Memory that is free again is used again without it (docs/log.md).
        options.enable_mem_reuse = False
        options.add_session_config_entry("session.intra_op.allow_spinning", str(int(allow_spinning)))
        if n_threads is not None:
            if n_threads < 1:
                raise InvalidInput(f"threads: expected at least 1, received {n_threads}")
            options.intra_op_num_threads = n_threads
        self._encoder = _session(self.files.graphs["encoder"], options) if self.files.is_seq2seq else None
        self._decoder = _session(self.files.graphs["decoder" if self.files.is_seq2seq else "model"], options)
        self._inputs = {i.name: i for i in self._decoder.get_inputs()}
        self._past_names = [name for name in self._inputs if name.startswith("past_key_values.")]
        self._caches = {name: (self._inputs[name].shape[1], self._inputs[name].shape[3]) for name in self._past_names}
        self._optional = {i.name for i in self._decoder.get_overridable_initializers()}
        self._sides = [SideInputs(session) for session in (self._encoder, self._decoder) if session is not None]
        adapter = self.files.adapter
        self.mix: Mix = () if adapter is None else ((adapter, 1.0),)

    def begin(
        self, prompts: Sequence[Sequence[int]], prefix: Ids | None = None, mixes: Sequence[Mix] | None = None
    ) -> tuple[State, Logits]:
        """Read prompts.

        Args:
            prompts: b lists of token ids, of any lengths above 0.
            prefix: int64 (b, p): first tokens of the answers, or None.
            mixes: each row's adapters; those of the folder as it was opened if None.

        Returns:
            The state, and logits (b, p + 1, vocabulary) for the token behind each prompt and each prefix token.
        """
        prefix = np.zeros((len(prompts), 0), np.int64) if prefix is None else prefix
        ids, mask = self.padded(prompts)
        state = self.empty(len(prompts), mixes)
        if self._encoder is None:
            together = np.concatenate([mask, np.ones_like(prefix)], 1)
            return state, self.read(state, np.concatenate([ids, prefix], 1), together)[:, ids.shape[1] - 1 :]
        feeds = {"input_ids": new_value(ids), "attention_mask": new_value(mask), **self._sides[0].feeds(state.mixes)}
        state.hidden = self._encoder.run_with_ort_values(["last_hidden_state"], feeds)[0]
        state.encoder_mask = mask
        start = np.full((len(prompts), 1), self.files.start_id, np.int64)
        return state, self.step(state, np.concatenate([start, prefix], 1))

    def padded(self, prompts: Sequence[Sequence[int]]) -> tuple[Ids, Ids]:
        """Token ids and mask, both int64 (b, s). A decoder-only model goes on from the last position, so there the
        padding stands in front."""
        length = max(map(len, prompts))
        ids = np.full((len(prompts), length), self.files.pad_id, np.int64)
        mask = np.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            place = slice(0, len(prompt)) if self.files.is_seq2seq else slice(length - len(prompt), length)
            ids[row, place], mask[row, place] = prompt, 1
        return ids, mask

    def empty(self, n_rows: int, mixes: Sequence[Mix] | None = None) -> State:
        """A state in which nothing was read."""
        past = {
            name: new_value(np.zeros((n_rows, heads, 0, width), np.float32))
            for name, (heads, width) in self._caches.items()
        }
        return State(past, np.zeros((n_rows, 0), np.int64), list(mixes or [self.mix] * n_rows))

    def step(self, state: State, tokens: Ids) -> Logits:
        """Read further tokens of the answers, int64 (b, t); returns logits (b, t, vocabulary). Changes the state."""
        return self.read(state, np.asarray(tokens, np.int64), np.ones(tokens.shape, np.int64))

    def select(self, state: State, rows: Sequence[int]) -> State:
        """A state of some of the sequences, in the order given; a row may occur more than once."""
        return of_rows([(state, rows)])

    @property
    def shares_ages(self) -> bool:
        """Whether rows that began at different steps may share one."""
        return self._encoder is None or _SELF_MASK in self._optional

    @property
    def mixes(self) -> bool:
        """Whether a row may have several adapters, or one at a scale of its own."""
        return all(side.has_scales or not side.targets for side in self._sides)

    def can_share(self, first: Mix, second: Mix) -> bool:
        """Whether rows with these adapters may share a step."""
        return all(side.can_share(first, second) for side in self._sides)

    def cache_bytes(self, n_rows: int, n_positions: int, n_encoder_positions: int = 0) -> int:
        """Memory of caches. The decoder's exist twice during a step: as they were, and longer by what was read."""
        total = 0
        for name, (heads, width) in self._caches.items():
            n = n_encoder_positions if OF_ENCODER in name else 2 * n_positions
            total += 4 * n_rows * heads * width * n
        return total

    def read(self, state: State, tokens: Ids, new_mask: Ids, *, only_last: bool = False) -> Logits:
        """Read tokens. The state is changed once all went well.

        Args:
            state: caches of b rows.
            tokens: int64 (b, t).
            new_mask: int64 (b, t): 1 where a token counts.
            only_last: the logits of the last token are enough; graphs that can leave the others out.

        Returns:
            Logits (b, t, vocabulary), or fewer if `only_last`; always those of the last token.
        """
        mask = np.concatenate([state.mask, new_mask], 1)
        feeds = {"input_ids": new_value(tokens), **state.past}
        kept = self._past_names
        if state.encoder_mask is not None:
            is_first = state.n_positions == 0
            feeds["encoder_attention_mask"] = new_value(state.encoder_mask)
            feeds["encoder_hidden_states"] = state.hidden
            feeds["use_cache_branch"] = new_value(np.array([not is_first]))
            if not is_first:  # the first step's cross-attention serves all others
                kept = [name for name in kept if ".decoder." in name]
        else:
            feeds["attention_mask"] = new_value(mask)
            positions = np.maximum(np.cumsum(mask, 1) - 1, 0)
            feeds["position_ids"] = new_value(positions[:, -tokens.shape[1] :])
        outputs = ["logits", *(name.replace("past_key_values", "present") for name in kept)]
        feeds = {name: value for name, value in feeds.items() if name in self._inputs}
        if _SELF_MASK in self._optional and not mask.all():
            feeds[_SELF_MASK] = new_value(mask)
        if only_last and _LOGITS_FROM in self._optional:
            feeds[_LOGITS_FROM] = new_value(np.array([-1]))
        feeds |= self._sides[-1].feeds(state.mixes)
        logits, *present = self._decoder.run_with_ort_values(outputs, feeds)
        state.past.update(zip(kept, present, strict=True))
        state.mask = mask
        result: Logits = logits.numpy()
        return result

    def __repr__(self) -> str:
        return f"OnnxModel({self.files!r})"


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
