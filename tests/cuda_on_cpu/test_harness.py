"""What of the harness can be tested without a build: the rest is tested by `make emulate`, with planted bugs."""

import pytest

from tests.cuda_on_cpu.build import ROOT
from tests.cuda_on_cpu.planted import BUGS, planted
from tests.cuda_on_cpu.rewrite import copy_rewritten, rewritten


def test_the_kernels_have_no_cuda_that_is_not_known(tmp_path):
    copy_rewritten(ROOT / "csrc", tmp_path / "csrc")
    names = {path.name for path in (tmp_path / "csrc/kernels/cuda").iterdir()}
    expected = {path.name for path in (ROOT / "csrc/kernels/cuda").iterdir()}
    assert names == {f"{name}.cpp" if name.endswith(".cu") else name for name in expected}


@pytest.mark.parametrize(
    "text",
    [
        "atomicAdd(sum, 1);",
        '  asm volatile("bar.sync 0;");',
        'asm volatile("st.global.v4.u32 [%0], {%1, %2};" : : "l"(to), "r"(a), "r"(b) : "memory");',
    ],
)
def test_what_is_not_known_is_refused(text):
    with pytest.raises(ValueError, match=r"x\.cu: expected only CUDA that rewrite\.py knows, found"):
        rewritten(text, "x.cu")


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_every_planted_bug_still_has_its_place(bug, tmp_path):
    text = (planted(bug, tmp_path) / "kernels/cuda" / bug.file).read_text()
    assert text != (ROOT / "csrc/kernels/cuda" / bug.file).read_text()


def test_there_are_enough_planted_bugs():
    assert len({bug.name for bug in BUGS}) >= 20
