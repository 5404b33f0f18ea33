"""Adapted tiny models, and what is exported of them."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

import lorahub_edge
from tests import tiny
from tests.resealed import reseal


@pytest.fixture(scope="session", autouse=True)
def _trace_equal_models_once(fast_export):
    """For every export in here."""


@pytest.fixture(scope="session")
def make_run(bases, module_folders, tmp_path_factory):
    """Makes the run folder of a tiny adapted base."""
    root = tmp_path_factory.mktemp("export-runs")

    def make(kind, name, **settings):
        lorahub_edge.adapt(
            str(bases[kind]), [str(module_folders[kind.partition("-")[0]])], list(tiny.ROWS), n_examples=4,
            budget=6, device="cpu", null_control=False, out=root / name, **settings,
        )  # fmt: skip
        return root / name

    return make


@pytest.fixture(scope="session")
def run(make_run):
    """An adapted untied T5."""
    return make_run("t5", "run")


def with_other_factors(run, folder, factor):
    """A copy of a run whose composed module has each B times a factor."""
    shutil.copytree(run, folder)
    path = folder / "adapter" / "adapter_model.safetensors"
    save_file({k: v * factor if "lora_B" in k else v for k, v in load_file(path).items()}, path)
    return reseal(folder)


@pytest.fixture(scope="session")
def other_run(run):
    """The same base with another module."""
    return with_other_factors(run, run.with_name("other"), -2.0)


@pytest.fixture(scope="session")
def exported(run, tmp_path_factory):
    """The run as an int8 folder."""
    return lorahub_edge.export(run, tmp_path_factory.mktemp("export") / "int8").folder


@pytest.fixture(scope="session")
def shared(run, other_run, tmp_path_factory):
    """Both runs beside one base."""
    folder = tmp_path_factory.mktemp("export") / "shared"
    lorahub_edge.export(run, folder, with_adapter=True)
    lorahub_edge.export(other_run, folder, with_adapter=True)
    return folder


@pytest.fixture(scope="session")
def beside_llama(make_run, tmp_path_factory):
    """The run of an adapted Llama beside its base."""
    folder = tmp_path_factory.mktemp("export") / "llama"
    run = make_run("llama", "llama")
    lorahub_edge.export(run, folder, with_adapter=True)
    return folder
