"""The study's strategies keep to their box and budget, and its points are what it says they are."""

import numpy as np
import pytest

from bench.records import read
from bench.search_study import PLANNING, main
from bench.strategies import STRATEGIES
from lorahub_edge.search import run_search
from tests.search.test_search import function

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:nevergrad.*")


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_stays_in_the_box_and_an_unplanned_one_does_not_look_ahead(name):
    seen: dict[int, list[np.ndarray]] = {}
    for budget in (40, 70):
        points = seen.setdefault(budget, [])

        def evaluate(candidates, points=points):
            points.extend(candidates)
            return function(np.full(9, 0.2))(candidates)

        run_search(evaluate, STRATEGIES[name](9, 1.5, budget, 3), budget)
        assert len(points) == budget
        assert np.abs(points).max() <= 1.5
    if name not in PLANNING:
        np.testing.assert_array_equal(seen[40], seen[70][:40])


def test_a_folded_search_asks_one_of_each_mirrored_pair_and_gets_to_the_minimum():
    minimum = np.array([0.6, -0.4, 0.8])
    points: list[np.ndarray] = []

    def evaluate(candidates):  # the same at c and at -c
        points.extend(candidates)
        near, far = function(minimum)(candidates), function(-minimum)(candidates)
        return [min(pair, key=lambda value: value.objective) for pair in zip(near, far, strict=True)]

    result = run_search(evaluate, STRATEGIES["cma, folded"](3, 1.5, 400, 0), 400)
    assert min(p.sum() for p in points) >= 0
    np.testing.assert_allclose(result.best.coefficients, minimum, atol=0.05)


def test_points_are_read_off_at_every_budget_and_measured_once(tmp_path, monkeypatch):
    monkeypatch.setattr("lorahub_edge.pocket.heldout.DEVELOPMENT", [_short()])
    out = tmp_path / "study.jsonl"
    arguments = ["search_study", "--strategies", "random", "singles, cma", "--budgets", "12", "40", "--out", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    main()
    records = read(out)
    found = {(r["setup"]["strategy"], r["setup"]["budget"]): r["metrics"] for r in records}
    assert set(found) == {(name, b) for name in ("random", "singles, cma") for b in (12, 40)}
    for (_, budget), metrics in found.items():
        assert metrics["found_at"] <= budget
        assert metrics["objective"] == pytest.approx(metrics["loss"] + metrics["l1_penalty"])
    assert found["singles, cma", 40]["objective"] <= found["singles, cma", 12]["objective"]
    lines = out.read_text()
    main()
    assert out.read_text() == lines


def _short():
    from lorahub_edge.pocket import heldout

    return next(task for task in heldout.DEVELOPMENT if task.name == "mood_in_thanks")
