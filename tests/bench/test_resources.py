"""What the CUDA kernels need is read from the compiler and compared with what was recorded."""

from dataclasses import asdict, replace

import pytest

from bench import resources
from bench.records import append, make_record
from bench.resources import ARCHITECTURES, Resources

SAID = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'void lorahub_edge::cuda::(anonymous namespace)::k<short, 1>(Part)' for 'sm_75'
ptxas info    : Function properties for k
    24 bytes stack frame, 20 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 768 bytes smem, 456 bytes cmem[0]
ptxas info    : Compiling entry function 'void lorahub_edge::cuda::(anonymous namespace)::k<float, 4>(Part)' for 'sm_75'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 128 registers, used 0 barriers, 400 bytes cmem[0]
"""


def test_resources_are_read_by_kernel():
    found = resources.resources_in(SAID, 128, ARCHITECTURES["75"])
    assert found == {"k<short, 1>": Resources(40, 768, 20, 1.0), "k<float, 4>": Resources(128, 0, 0, 0.5)}


@pytest.mark.parametrize(
    ("architecture", "n_threads", "registers", "shared_bytes", "expected"),
    [
        ("86", 128, 32, 0, 48 / 48),  # 12 blocks of 4 warps
        ("86", 128, 41, 0, 40 / 48),  # registers go out 8 at a time: 65536 / (48 * 32) is 42 warps, 10 blocks
        ("86", 256, 80, 20992, 24 / 48),  # registers: 25 warps, 3 blocks
        ("86", 256, 32, 33 << 10, 16 / 48),  # shared memory: 34 KB a block
        ("90", 128, 32, 0, 64 / 64),
        ("75", 32, 32, 0, 16 / 32),  # no more than 16 blocks
    ],
)
def test_occupancy_is_what_the_scarcest_resource_allows(architecture, n_threads, registers, shared_bytes, expected):
    assert resources.occupancy(ARCHITECTURES[architecture], n_threads, registers, shared_bytes) == expected


@pytest.mark.parametrize(
    ("change", "compiler", "is_wrong"),
    [
        ({}, "nvcc 1", False),
        ({"registers": 60}, "nvcc 1", False),
        ({"occupancy": 0.25}, "nvcc 1", True),
        ({"occupancy": 0.25}, "nvcc 2", False),
        ({"spilled_bytes": 4}, "nvcc 1", True),
        (None, "nvcc 1", True),
    ],
)
def test_no_kernel_may_run_fewer_warps_or_spill_more(tmp_path, change, compiler, is_wrong):
    records, before = tmp_path / "records.jsonl", Resources(40, 0, 0, 0.5)
    setup = {"op": "op", "architecture": "86", "kernel": "k", "compiler": "nvcc 1"}
    append(records, make_record("resources", setup, asdict(before)))
    found = {("op", "86", "new"): before}
    if change is not None:
        found["op", "86", "k"] = replace(before, **change)
    assert bool(resources.compare(found, compiler, records)) is is_wrong


def test_the_threads_of_a_block_are_found_in_every_kernel():
    assert {resources.threads_of(resources.KERNELS / f"{op}.cu") for op in resources.OPS} == {128, 256}
    with pytest.raises(SystemExit, match=r"devices\.cu: expected 'constexpr int kThreads"):
        resources.threads_of(resources.KERNELS / "devices.cu")
