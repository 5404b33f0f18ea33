"""A pytest plug-in: tests that need a GPU find one, the emulated.

Any complaint of the emulator fails the test in which it came and the run; so does a run that launched nothing.
`python -m tests.cuda_on_cpu` starts pytest with it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Generator
from contextlib import ExitStack

import pytest

from tests.cuda_on_cpu import emulator

_emulator = emulator.load_from_environment()
_EMULATED = ExitStack()

# Test -> why it cannot run here.
_OUT_OF_REACH = {
    "test_runs_on_the_callers_stream": "everything happens at once here: there are no streams",
    "test_launches_are_captured_into_a_graph": "there are no graphs here",
    "test_cuda_records_and_replays_to_the_bit": "there are no graphs here",
    "test_extension_has_machine_code_for_each_architecture_and_ptx_for_the_last": "the kernels are not nvcc's here",
    "test_a_build_with_a_cuda_compiler_has_the_extension": "the extension is not the installed one here",
}


def pytest_sessionstart() -> None:
    _EMULATED.enter_context(_emulator.installed())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what cannot run here; of the rest keep a share, drawn from the seed."""
    n_kept = round(float(os.environ.get(emulator.SHARE, 1)) * len(items))
    kept = set(random.Random(os.environ[emulator.SEED]).sample(range(len(items)), n_kept))
    config.hook.pytest_deselected(items=[item for i, item in enumerate(items) if i not in kept])
    items[:] = [item for i, item in enumerate(items) if i in kept]
    for item in items:
        reason = _OUT_OF_REACH.get(getattr(item, "originalname", item.name))
        if reason is not None:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, object, object]:
    before = _emulator.counts().complaints
    result = yield
    n = _emulator.counts().complaints - before
    assert n == 0, f"the emulator complained {n} times; see above"
    return result


def pytest_sessionfinish(session: pytest.Session) -> None:
    counts = _emulator.counts()
    if session.exitstatus == 0 and (counts.complaints or not counts.launches):
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"{_emulator.kind}, seed {os.environ[emulator.SEED]}: {_emulator.counts()}")


def pytest_unconfigure() -> None:
    _EMULATED.close()
