"""The plain base sees texts with gaps and no instruction."""

from itertools import islice, pairwise

import numpy as np

from bench import plain_base
from lorahub_edge.pocket import formats, heldout, skills


def restored(row):
    """The text that a row was made from: its target's spans put back."""
    spans: dict[str, list[str]] = {}
    for word in row["target"].split():
        if word.startswith("<extra_id_"):
            current = spans.setdefault(word, [])
        else:
            current.append(word)
    return " ".join(w for part in row["input"].split() for w in spans.get(part, [part]))


def test_spans_are_taken_out_and_nothing_is_lost():
    text = " ".join(f"w{k}" for k in range(400))
    row = plain_base.corrupted(text, np.random.default_rng(0))
    assert restored(row) == text
    marks = [w for w in row["input"].split() if w.startswith("<")]
    assert marks == [plain_base.sentinel(k) for k in range(plain_base.N_SENTINELS)]  # in order, each once


def test_no_two_gaps_stand_side_by_side_and_about_the_stated_share_is_taken():
    rows = list(islice(plain_base.corrupted_rows(1), 500))
    for row in rows:
        words = row["input"].split()
        assert not any(a.startswith("<") and b.startswith("<") for a, b in pairwise(words))
    n_taken = sum(not w.startswith("<") for row in rows for w in row["target"].split())
    n_words = sum(len(restored(row).split()) for row in rows)
    assert 0.25 < n_taken / n_words < 0.45


def test_texts_hold_no_instruction():
    wordings = {w for s in skills.SKILLS for w in s.wordings} | {w for f in formats.FORMATS for w in f.wordings if w}
    wordings |= {task.wording for task in heldout.BY_NAME.values()}
    for row in islice(plain_base.corrupted_rows(2), 300):
        assert not any(wording in restored(row) for wording in wordings)
