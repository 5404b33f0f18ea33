"""The constraints of `make test-lowest` are pyproject.toml's lower bounds."""

from importlib.metadata import requires
from pathlib import Path

from tests import edges

ROOT = Path(__file__).parents[1]


def test_the_lower_bound_of_a_requirement_is_found():
    said = ["a>=1.0", "b-c[x,y]<6,>=5.15; extra == 'test'", "d; python_version >= '3.11'", "e[adapt]"]
    assert edges.lower_bounds(said) == {"a": "1.0", "b-c": "5.15"}


def test_every_dependency_has_a_lower_bound():
    names = {text.split(";")[0].strip() for text in requires("lorahub-edge") or ()}
    without = {name for name in names if ">=" not in name}
    assert without <= {"lorahub-edge[adapt]", "lorahub-edge[test]"}


def test_torch_is_the_pinned_one_unless_named(monkeypatch, capsys):
    monkeypatch.setattr(edges, "requires", lambda _: ["torch>=2.8", "numpy>=1.26"])
    edges.main("lowest")
    edges.main("newest", "2.9.1")
    pinned = edges.pinned_torch()
    assert f"torch=={pinned}\n" in (ROOT / "constraints.txt").read_text()
    assert capsys.readouterr().out == f"torch=={pinned}\nnumpy==1.26\ntorch==2.9.1\n"
