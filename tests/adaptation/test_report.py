"""The table for people, in the terminal and on the page: which columns it has, what stands under it, how wide it is."""

import pytest

from lorahub_edge import terminal
from lorahub_edge.adaptation.controls import ADAPTED, ZERO_SHOT, Row
from lorahub_edge.adaptation.figures import bars
from lorahub_edge.adaptation.report import STRICT_NOTE, notebook_html, report_html
from lorahub_edge.adaptation.samples import samples
from lorahub_edge.tasks import Example, score_answers
from lorahub_edge.terminal import print_run

VERDICT = (
    "On 100 test rows the adapted model (7.0 %) is not clearly ahead of the constant answer (7.0 %): it may be so."
)


SAMPLES = [
    {"input": "<i>q</i>", "target": "x", "zero-shot": "z", "adapted": "x", "right": True},
    {"input": "q" * 700, "target": "x", "zero-shot": "z", "adapted": "y", "right": False},
]


def row(name, detail, loss, *scores, coefficients=(1.0,)):
    named = dict(zip(("exact_match", "strict_match", "most_frequent", "valid_form"), scores, strict=True))
    return {"name": name, "detail": detail, "loss": loss, "coefficients": coefficients, **named}


def report(*, strict, n_test=100, verdict=VERDICT):
    """What `Run.report` gives; the adapted model has `strict` % of strict matches."""
    return {
        "headline": "h", "verdict": verdict, "task": "t", "n_examples": 5, "n_test": n_test, "folder": None,
        "table": [
            row("constant answer", f'always "{"a b c d e" * 4}..."', None, *[7.0] * 4, coefficients=()),
            row("uniform mean", "all at 1/27", None, 0.0, 0.0, 9.0, 0.0),
            row("random-LoRA null", "the same search over 27 random modules", 0.7356, None, None, None, None),
            row("adapted", "best of 107 evaluations", 11.0046, 100.0, strict, 16.0, 50.0),
        ],
        "coefficients": {"a": 1.0}, "samples": SAMPLES, "timings": {"total_s": 1.0}, "peak_memory": {},
        "rank_cut": None, "chosen_modules": None, "rank_note": "",
        "search": {"resolved_optimizer": "o", "evaluations": 1, "seed": 0, "formula": "f", "bound": 1.5,
            "composition": "factors"},
    }  # fmt: skip


@pytest.fixture
def printed(monkeypatch, capsys):
    def lines(shown, width):
        monkeypatch.setattr(terminal.answers, "_width", width)
        print_run(shown)
        return [line.rstrip() for line in capsys.readouterr().out.splitlines()]

    return lines


@pytest.mark.parametrize("width", [80, 200])
def test_the_table_keeps_names_and_numbers_whole_in_80_columns(printed, width):
    lines = printed(report(strict=40.0), width)
    assert max(map(len, lines)) <= width
    cells = {line.partition("  ")[0]: line.split() for line in lines}
    assert cells["constant answer"][2:7] == ["-", "7.0", "7.0", "7.0", "7.0"]
    assert cells["uniform mean"][2:8] == ["not", "finite", "0.0", "0.0", "9.0", "0.0"]
    assert cells["random-LoRA null"][2:7] == ["0.7356", "-", "-", "-", "-"]
    assert cells["adapted"][1:6] == ["11.0046", "100.0", "40.0", "16.0", "50.0"]
    assert "the same search" in " ".join(lines), "details have room for a few words"


def test_the_strict_column_stands_only_where_case_matters(printed):
    for strict, is_shown in ((40.0, True), (100.0, False)):
        page, lines = report_html(report(strict=strict), [(1.0, 1.0)]), printed(report(strict=strict), 200)
        for text in (page, " ".join(lines)):
            assert (STRICT_NOTE in text) == is_shown
            assert VERDICT in text
        assert ('<th class="n">strict</th>' in page) == is_shown
        assert any("strict" in line for line in lines) == is_shown
        assert '<th class="n">most frequent answer</th><th class="n">valid form</th>' in page


def test_without_a_test_there_is_the_loss_alone(printed):
    shown = report(strict=40.0, n_test=0, verdict="")
    page, lines = report_html(shown, [(1.0, 1.0)]), printed(shown, 80)
    for text in (page, " ".join(lines)):
        assert "exact match" not in text
        assert "valid form" not in text
        assert STRICT_NOTE not in text
    assert '<p class="verdict">' not in page
    assert "loss: cross-entropy per answer token on the 5 examples" in lines


def test_the_last_line_says_what_a_rank_needs_where_it_needs_something(printed):
    plain = printed(report(strict=40.0), 80)
    assert printed({**report(strict=40.0), "rank_note": "the adapter has rank 17"}, 80) == [
        *plain,
        "the adapter has rank 17",
    ]


def test_the_page_shows_right_and_wrong_answers_as_text():
    page = report_html(report(strict=40.0), [(1.0, 1.0)])
    assert "<h3>Right</h3>" in page
    assert "&lt;i&gt;q&lt;/i&gt;" in page
    assert "q" * 600 + "..." in page
    assert "q" * 601 not in page
    assert "answers to the test" not in report_html({**report(strict=40.0), "samples": []}, [(1.0, 1.0)]).lower()


def test_the_page_says_what_the_controls_are_for():
    page = report_html(report(strict=40.0), [(1.0, 1.0)])
    assert "random-LoRA null: what the same search makes of modules that know nothing." in page
    assert "best single module:" not in page  # not among these rows


def test_coefficients_at_zero_are_folded_and_the_largest_come_first():
    shown = bars({"a": 0.0, "b<": 0.5, "c": -1.0, "d": 0.0})
    assert shown.index("-1.00") < shown.index("b&lt;") < shown.index("<details>")
    assert "<summary>2 of 4 at zero</summary>a, d" in shown
    assert shown.index('<span class="down"><b>-1.00</b><i style="width:75.0%">') < shown.index(
        '<i style="width:37.5%">'
    )
    assert "<details>" not in bars({"a": 1.0})


def test_samples_are_the_first_right_and_the_first_wrong_rows():
    test = [Example(f"q{k}", "yes" if k % 3 else "no") for k in range(12)]
    said = ["yes"] * 12
    table = [
        Row(name, "", (1.0,), None, score_answers(answers, [e.target for e in test]), tuple(answers))
        for name, answers in ((ZERO_SHOT, ["?"] * 12), (ADAPTED, said))
    ]
    found = samples(table, test)
    assert [s["input"] for s in found] == ["q1", "q2", "q4", "q5", "q0", "q3", "q6", "q9"]
    assert [s["right"] for s in found] == [True] * 4 + [False] * 4
    assert {(s["adapted"], s["zero-shot"]) for s in found} == {("yes", "?")}
    assert samples(table[1:], test) == []


def test_a_notebook_shows_the_table():
    shown = notebook_html({**report(strict=40.0), "headline": "a < b"})
    assert "<b>a &lt; b</b>" in shown
    assert "coefficients: a +1.00" in shown
    assert shown.count("<tr") == 5
