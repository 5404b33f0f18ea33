"""Pools of another rank are pocket's recipe with that rank; pocket's own pool is taken as it is."""

import pytest
import torch

from bench import ranks
from lorahub_edge import pocket
from lorahub_edge.benchmark.methods import METHODS
from lorahub_edge.modules import LoraFactors, LoraModule, write_module
from lorahub_edge.pocket import make, upstream


def write(folder, name, rank):
    factors = {"encoder.block.0.layer.0.SelfAttention.q": LoraFactors(torch.ones(rank, 8), torch.ones(8, rank), 2.0)}
    (folder / name).mkdir()
    write_module(LoraModule(name, factors), folder / name, base_name="b", task_type="SEQ_2_SEQ_LM", targets=["q"])


def test_the_rank_of_a_pool_is_one(tmp_path):
    write(tmp_path, "a", 4)
    assert ranks.rank_of(tmp_path) == 4
    write(tmp_path, "b", 8)
    with pytest.raises(ValueError, match=r"expected one rank, received \[4, 8\]"):
        ranks.rank_of(tmp_path)


def test_pockets_own_pool_is_used_and_another_rank_is_trained_once(tmp_path, monkeypatch):
    monkeypatch.setattr(upstream, "TASK_NAMES", ("opposite",))
    own = ranks.modules_of(ranks.rank_of(pocket.modules_folder()), tmp_path)
    assert own == pocket.modules_folder()
    assert not list(tmp_path.iterdir())
    train = make.main
    monkeypatch.setattr(
        make, "main", lambda arguments: train([*arguments, "--module-steps", "1", "--module-rows", "8"])
    )
    modules = ranks.modules_of(2, tmp_path)
    assert [folder.name for folder in modules.iterdir()] == ["opposite"]
    assert ranks.rank_of(modules) == 2
    written = (modules / "opposite" / "adapter_model.safetensors").stat().st_mtime_ns
    assert ranks.modules_of(2, tmp_path) == modules
    assert (modules / "opposite" / "adapter_model.safetensors").stat().st_mtime_ns == written


def test_methods_are_known_by_their_rank():
    names = [method.name for rank in ranks.RANKS for method in ranks.methods_of(rank)]
    assert len(set(names)) == 2 * len(ranks.RANKS)
    assert not set(names) & set(METHODS)
