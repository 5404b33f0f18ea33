"""Files of strangers are answered by a value or by one of our errors: no other traceback, no hang, no gigabytes.

LORAHUB_EDGE_FUZZ_SECONDS says for how long; `make fuzz` runs longer and over other seeds.
"""

import os
import subprocess
import sys

import pytest
import torch

from lorahub_edge.errors import InvalidInput
from tests.fuzz import worker
from tests.fuzz.campaign import ROOT, campaign
from tests.fuzz.corpus import make_corpus
from tests.fuzz.readers import READERS

SECONDS = float(os.environ.get("LORAHUB_EDGE_FUZZ_SECONDS", "40"))

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory and its limit are read from /proc")


def test_no_mutated_file_gets_past_our_errors(tmp_path, fast_export):
    corpus = make_corpus(tmp_path / "corpus")
    n_cases, faults = campaign(corpus, tmp_path / "kept", SECONDS)
    assert not faults, "\n" + "\n".join(map(str, faults))
    assert n_cases > SECONDS / 2


def refuse(folder, corpus):
    raise InvalidInput("as it should")


def fail(folder, corpus):
    raise KeyError("max_position")


def panic(folder, corpus):
    raise BaseException("of a library in Rust")


def grow(folder, corpus):
    torch.ones(60_000_000)


@pytest.mark.parametrize(
    ("reader", "fault"),
    [(refuse, None), (fail, "KeyError: 'max_position'"), (panic, "in Rust"), (grow, "grew by 0.2 GB")],
)
def test_a_fault_is_found(monkeypatch, tmp_path, reader, fault):
    monkeypatch.setattr(worker, "MAX_GROWTH_BYTES", 100 << 20)
    monkeypatch.setitem(READERS, "module", ("module-t5", reader, "*", 1))
    found = worker.read_case(tmp_path, tmp_path, "module")
    assert found is None if fault is None else fault in found


def test_a_reader_that_hangs_ends_its_process(tmp_path):
    """A pipe in the place of a file, opened as the worker would."""
    script = (
        "import os, pathlib, sys; from tests.fuzz import worker, readers;"
        "worker.MAX_SECONDS = 0.5; os.mkfifo('pipe');"
        "readers.READERS['module'] = ('', lambda folder, corpus: open('pipe').read(), '', 1);"
        "worker.read_case(pathlib.Path('.'), pathlib.Path('.'), 'module')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    assert "in read_case" in ended.stderr
