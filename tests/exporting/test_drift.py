"""What ships beside what was scored: one way to ask a run, a merged and an exported folder, and the drift in words."""

import itertools
import json
import shutil

import pytest

import lorahub_edge
from lorahub_edge import ExportedModel
from lorahub_edge.errors import InvalidInput
from lorahub_edge.exporting.drift import SourceAnswers, answer_source, measure_drift
from lorahub_edge.tasks import Example
from tests import tiny

WORDS = (("is", "not"), ("a", "the"), ("red", "blue", "three"), ("dog", "cat", "fish"))
TEXTS = [" ".join(words) for words in itertools.product(*WORDS)]


@pytest.fixture(scope="module")
def rows(run):
    """Twelve rows, of which the run answers ten right."""
    answers = lorahub_edge.load_adapted(run, device="cpu").predict(TEXTS)
    found = [(text, answer) for text, answer in zip(TEXTS, answers, strict=True) if answer][:12]
    assert len({answer for _, answer in found}) > 3
    return [*found[:-2], *((text, "no yes no") for text, _ in found[-2:])]


def asked(folder, rows, **options):
    return lorahub_edge.load_adapted(folder, device="cpu", **options).evaluate(rows)


def test_an_export_says_how_far_it_answers_as_its_run(run, rows, tmp_path):
    exported = lorahub_edge.export(run, tmp_path / "out", test=rows)
    before, after = asked(run, rows), asked(exported.folder, rows)
    assert before.exact_match == pytest.approx(100 * 10 / 12)
    drift = exported.drift
    n_same = sum(a == b for a, b in zip(before.answers, after.answers, strict=True))
    assert (drift.n_same_answers, drift.source) == (n_same, "run")
    assert (drift.source_exact_match, drift.export_exact_match) == (before.exact_match, after.exact_match)
    assert drift.headline() == (
        f"test: {n_same} of 12 answers as the run's; exact match 83.3 % (run), {after.exact_match:.1f} % (export)"
    )
    record = json.loads((exported.folder / "lorahub_edge.json").read_text())
    assert record["tests"] == {"run": drift.as_record()}
    assert lorahub_edge.verify(exported.folder)["passed"]


def test_answers_that_part_are_counted(exported, rows):
    """A count that is always whole, or one of right answers, would not see it."""
    answers = asked(exported, rows).answers
    before = SourceAnswers("run", tuple(Example(*row) for row in rows), (*answers[:5], *["two"] * 7), {"rows": 12})
    drift = measure_drift(before, exported, None)
    assert drift.n_same_answers == 5 + answers[5:].count("two")
    assert drift.source_exact_match < drift.export_exact_match


def test_adapters_beside_one_base_are_tested_each_and_asked_by_name(run, shared, other_run, rows, tmp_path):
    folder = tmp_path / "shared"
    shutil.copytree(shared, folder)
    third = run.with_name("tested")
    shutil.copytree(other_run, third)
    drift = lorahub_edge.export(third, folder, with_adapter=True, test=rows).drift
    assert json.loads((folder / "lorahub_edge.json").read_text())["tests"] == {"tested": drift.as_record()}
    assert drift.n_same_answers >= 11  # a model this small may part at a tie
    by_name = [asked(folder, rows, adapter=name).answers for name in (None, "run", "tested")]
    assert by_name[0] == by_name[1] != by_name[2]
    assert sum(a == b for a, b in zip(by_name[2], asked(third, rows).answers, strict=True)) == drift.n_same_answers


def test_a_merged_folder_answers_with_nothing_beside_it(run, rows, tmp_path):
    merged = lorahub_edge.merge(run, tmp_path / "merged", precision="fp32").folder
    model = lorahub_edge.load_adapted(merged, device="cpu")
    assert model.base.precision == "fp32"
    assert model.loss(rows) == pytest.approx(asked(run, rows).loss, rel=0.2)  # the run's base is int8
    before = answer_source(merged, rows)
    assert (before.kind, before.test) == ("merged folder", {"rows": 12})
    assert list(before.answers) == model.predict([text for text, _ in rows])


def test_an_exported_folder_is_scored_as_a_run_is(run, exported, example_file):
    model = lorahub_edge.load_adapted(exported, device="cpu")
    assert isinstance(model, ExportedModel)
    score = model.evaluate(example_file)
    assert score.loss is None
    assert score.answers == tuple(model.predict([text for text, _ in tiny.ROWS], batch_size=2))
    targets = [f"  {answer.upper()}. " for answer in score.answers]  # as LoRAHub compares
    forgiven = model.evaluate([(text, t) for (text, _), t in zip(tiny.ROWS, targets, strict=True)])
    assert (forgiven.exact_match, forgiven.strict_match) == (100, 0)
    assert (forgiven.right, forgiven.n_examples) == ((True,) * 6, 6)
    with pytest.raises(InvalidInput, match="input 2: prompt: expected 1 to 2048 tokens, received 3001"):
        model.predict(["is red ?", "red " * 3000])


def test_settings_that_do_not_go_with_a_folder_are_refused(run, exported, bases, tmp_path):
    with pytest.raises(InvalidInput, match=r"device: .* answers on the CPU; received 'cuda'"):
        lorahub_edge.load_adapted(exported, device="cuda")
    with pytest.raises(InvalidInput, match=r"adapter: .* is no exported folder"):
        lorahub_edge.load_adapted(run, adapter="run")
    with pytest.raises(InvalidInput, match="test: expected a run or a merged folder to compare with"):
        lorahub_edge.export(str(bases["t5"]), tmp_path / "out", test=list(tiny.ROWS))
    with pytest.raises(InvalidInput, match="test: row 2 has more than 2048 tokens, which an export refuses"):
        lorahub_edge.export(run, tmp_path / "out", test=[*tiny.ROWS[:1], ("red " * 3000, "no")])
    assert list(tmp_path.iterdir()) == []
