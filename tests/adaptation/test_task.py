"""The draw of a task: what fewer or repeated rows say, and what the manifest records of them."""

import json
import warnings

import pytest

from lorahub_edge.adaptation.task import TaskWarning, load_task
from lorahub_edge.errors import InvalidInput, LorahubEdgeWarning
from lorahub_edge.tasks import as_examples

ROWS = [(f"say {k}", str(k)) for k in range(6)]
DRAW = {"n_examples": 4, "example_seed": 42, "n_test": None}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "fv.antonym.jsonl"
    path.write_text("".join(json.dumps({"input": i, "target": t}) + "\n" for i, t in ROWS))
    return path


def test_as_many_rows_as_asked_for_say_nothing(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task = load_task(path, path, **{**DRAW, "n_test": 2})
    assert task.name == "fv.antonym"
    examples, test = task.record["examples"], task.record["test"]
    assert (examples["rows"], examples["asked"], examples["used"], examples["repeated"]) == (6, 4, 4, 0)
    assert (test["rows"], test["asked"], test["used"], test["left_out_as_examples"]) == (6, 2, 2, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_examples": 10}, r"asked for 10 examples, .*fv\.antonym\.jsonl has 6; all are used"),
        ({"n_test": 3}, r"asked for 3 test rows, .*fv\.antonym\.jsonl has 2 besides the examples; all are used"),
    ],
)
def test_fewer_rows_than_asked_for_are_a_warning_and_on_record(path, change, message):
    test = path if "n_test" in change else None
    with pytest.warns(TaskWarning, match=message) as caught:
        task = load_task(path, test, **{**DRAW, **change})
    assert len(caught) == 1
    assert issubclass(TaskWarning, LorahubEdgeWarning)
    part = task.record["test" if test else "examples"]
    assert (part["asked"], part["used"]) in ((10, 6), (3, 2))


def test_examples_that_ask_the_same_are_a_warning_and_on_record():
    with pytest.warns(TaskWarning, match="3 of 4 drawn examples repeat the input of another"):
        task = load_task(ROWS[:1] * 6, None, **DRAW)
    assert task.record["examples"] == {"rows": 6, "asked": 4, "used": 4, "repeated": 3}


def test_a_text_that_is_no_file_is_refused():
    with pytest.raises(InvalidInput, match="example file what is red was not found"):
        as_examples("what is red")
    with pytest.raises(InvalidInput, match="example file ~nobody-of-this-name/x was not found"):
        as_examples("~nobody-of-this-name/x")
