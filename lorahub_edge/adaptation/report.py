"""report.html: one self-contained page with the controls' table, the loss curve and the coefficients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorahub_edge.adaptation.controls import ADAPTED, BEST_MEAN, BEST_SINGLE, CONSTANT_ANSWER, RANDOM_NULL, ZERO_SHOT
from lorahub_edge.adaptation.figures import bars, curve, in_use, text
from lorahub_edge.tasks.score import SCORES, STRICT_NOTE, loss_text

_SHOWN = 600  # characters of a sample's text

_ABOUT = {
    CONSTANT_ANSWER: "the examples' most frequent answer to every question, without a model",
    ZERO_SHOT: "the base without modules",
    BEST_SINGLE: "what choosing one module gives",
    BEST_MEAN: "what choosing a few gives, without weighing them",
    RANDOM_NULL: "what the same search makes of modules that know nothing",
}

_SIGNS = {
    "factors": "All signs flipped at once give the same model.",
    "deltas": "A negative one takes away what its module adds.",
}

STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --soft: #6b7580; --line: #d8dde2; --paper: #fff; --best: #0b6e4f;
  --point: #8aa4b8; --up: #2a6f97; --down: #b5552b; --mark: #eef6f2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ec; --soft: #98a3ad; --line: #39424a; --paper: #14181c;
  --best: #4cc296; --point: #5d7689; --up: #6fb1d8; --down: #e08a5f; --mark: #1b2a24; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 820px;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.35rem; line-height: 1.3; } h2 { font-size: 1.05rem; margin: 2.2rem 0 .6rem; }
h3 { font-size: .95rem; }
p, figcaption { color: var(--soft); } p.verdict { color: var(--ink); }
figure { margin: 0; } svg { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; width: 100%; }
th, td { padding: .35rem .6rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: 600; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td small { display: block; color: var(--soft); font-weight: 400; }
tr.adapted { background: var(--mark); font-weight: 600; } .right { color: var(--best); } .wrong { color: var(--down); }
svg text { font: 12px system-ui, sans-serif; fill: var(--soft); }
.bars { display: grid; grid-template-columns: minmax(5rem, auto) 1fr 1fr; gap: .25rem .5rem; align-items: center; }
.bars span { display: flex; align-items: center; gap: .4rem; overflow-wrap: anywhere; }
.bars .down { justify-content: end; }
.bars i { height: 1rem; background: var(--up); } .bars .down i { background: var(--down); }
.bars b { font-weight: 400; color: var(--soft); font-variant-numeric: tabular-nums; } details { margin: .8rem 0; }
blockquote { margin: 0 0 1.2rem; padding-left: .8rem; border-left: 3px solid var(--line); overflow-wrap: anywhere; }
blockquote p { margin: .2rem 0; white-space: pre-line; }
@media (max-width: 560px) { body { margin: 1rem auto; } th, td { padding: .3rem; } svg text { font-size: 24px; } }
"""


def report_html(report: Mapping[str, Any], losses: Sequence[tuple[float, float]]) -> str:
    """The page.

    Args:
        report: as `Run.report` gives it.
        losses: (loss, objective) of each evaluation, in order.
    """
    search = report["search"]
    facts = (
        f"{report['n_examples']} examples, {choice_text(report)}, "
        f"{search['resolved_optimizer']}, {search['evaluations']} evaluations, seed {search['seed']}, "
        f"{report['timings']['total_s']:.1f} s"
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(report["task"])} - lorahub-edge</title><style>{STYLE}</style></head><body>
<h1>{text(report["headline"])}</h1>
<p>{text(facts)}</p>
<h2>Beside the controls</h2>
{_table(report)}
{_samples(report["samples"])}
<h2>Loss during the search</h2>
<figure>{curve(losses)}<figcaption>Each point is one candidate's loss on the examples (cross-entropy per
answer token); the line is the loss of the best candidate so far, best by the objective
{text(search["formula"])}.</figcaption></figure>
<h2>Coefficients</h2>
<figure>{bars(report["coefficients"])}<figcaption>One per module, within a box of
&plusmn;{search["bound"]:g}. {_SIGNS[search["composition"]]}</figcaption></figure>
</body></html>
"""


def notebook_html(report: Mapping[str, Any]) -> str:
    """What a notebook shows of a run."""
    used = text(coefficients_text(report["coefficients"]))
    return f"<p><b>{text(report['headline'])}</b></p>{_table(report)}<p>{used}</p>"


def coefficients_text(coefficients: Mapping[str, float], n: int = 6) -> str:
    """The largest coefficients, and how many others there are that are not zero."""
    ranked = in_use(coefficients)
    listed = ", ".join(f"{name} {value:+.2f}" for name, value in ranked[:n]) or "none"
    left, zero = len(ranked[n:]), len(coefficients) - len(ranked)
    more = (f" and {left} smaller" if left else "") + (f"; {zero} at zero" if zero else "")
    return f"coefficients: {listed}{more}"


def shown_scores(report: Mapping[str, Any]) -> dict[str, str]:
    """Score -> heading: none without a test, `strict` only where it differs from exact match in some row."""
    if not report["n_test"]:
        return {}
    is_strict_news = any(row["strict_match"] != row["exact_match"] for row in report["table"])
    return {name: heading for name, heading in SCORES.items() if is_strict_news or name != "strict_match"}


def numbers_of(row: Mapping[str, Any], scores: Mapping[str, str]) -> list[str]:
    """Loss and scores of a row, for people; "-" for what it has not."""
    loss = loss_text(row["loss"]) if row["coefficients"] else "-"
    return [loss, *("-" if row[name] is None else f"{row[name]:.1f}" for name in scores)]


def sentences(report: Mapping[str, Any]) -> list[str]:
    """What stands under the table: the verdict and what to know about strict matches, where there is either."""
    return [*filter(None, [report["verdict"]]), *([STRICT_NOTE] if "strict_match" in shown_scores(report) else [])]


def legend(report: Mapping[str, Any]) -> str:
    """What the numbers in the table are."""
    text = f"loss: cross-entropy per answer token on the {report['n_examples']} examples"
    if not report["n_test"]:
        return text
    return (
        f"{text}; the other columns: % of {report['n_test']} test rows; most frequent answer: the share of the answer "
        "given most often; valid form: answers that look like one to this task, right or wrong"
    )


def choice_text(report: Mapping[str, Any]) -> str:
    """Which modules the search had, of how many and how chosen."""
    n, choice = len(report["coefficients"]), report["chosen_modules"]
    if choice is None:
        return f"{n} modules"
    cost = f" at {choice['evaluations']} evaluations" if choice["evaluations"] else ""
    return f"{n} of {choice['of']} modules, chosen by {choice['by']}{cost}"


def about_controls(report: Mapping[str, Any]) -> str:
    """What the rows beside the adapted one are there for."""
    here = [row["name"] for row in report["table"]]
    return (
        "How to read the rows: "
        + "; ".join(f"{name}: {what}" for name, what in _ABOUT.items() if name in here)
        + (". If another row is as good, it is not the combination that helped.")
    )


def _table(report: Mapping[str, Any]) -> str:
    scores = shown_scores(report)
    rows = []
    for row in report["table"]:
        css = ' class="adapted"' if row["name"] == ADAPTED else ""
        cells = "".join(f'<td class="n">{number}</td>' for number in numbers_of(row, scores))
        rows.append(f"<tr{css}><td>{text(row['name'])}<small>{text(row['detail'])}</small></td>{cells}</tr>")
    head = "".join(f'<th class="n">{heading}</th>' for heading in ("loss", *scores.values()))
    notes = "".join(f'<p class="verdict">{text(sentence)}</p>' for sentence in sentences(report))
    return f"""<table><tr><th></th>{head}</tr>{"".join(rows)}</table>
{notes}<p>{text(legend(report))}</p>
<p>{text(about_controls(report))}</p>"""


def _samples(found: Sequence[Mapping[str, Any]]) -> str:
    if not found:
        return ""
    parts = ["<h2>Answers to the test</h2>"]
    for is_right, heading in ((True, "Right"), (False, "Wrong")):
        chosen = [sample for sample in found if sample["right"] == is_right]
        parts += [f"<h3>{heading}</h3>"] if chosen else []
        parts += [_sample(sample) for sample in chosen]
    return "".join(parts)


def _sample(sample: Mapping[str, Any]) -> str:
    shown = {name: text(_cut(sample[name])) for name in ("input", "target", ZERO_SHOT, ADAPTED)}
    css = "right" if sample["right"] else "wrong"
    return f"""<blockquote><p>{shown["input"]}</p>
<p><b class="{css}">adapted: {shown[ADAPTED]}</b></p>
<p>expected: {shown["target"]}; {ZERO_SHOT}: {shown[ZERO_SHOT]}</p></blockquote>"""


def _cut(whole: str) -> str:
    return whole if len(whole) <= _SHOWN else f"{whole[:_SHOWN]}..."
