"""A stack from the cache, in memory or mapped, is the stack from the modules; so are modules read one at a time."""

import shutil

import pytest
import torch

from lorahub_edge.base import load_base
from lorahub_edge.cache import Cache, CacheWarning
from lorahub_edge.errors import IncompatibleModules, InvalidInput
from lorahub_edge.modules import (
    STACK_DTYPES,
    LoraModule,
    ModuleFolder,
    ModuleStack,
    NullModules,
    find_modules,
    load_modules,
    load_stack,
    random_modules,
)

COEFFICIENTS = torch.tensor([[0.5, -1.0, 0.25, 1.5]])


@pytest.fixture(scope="module")
def base(bases):
    return load_base(str(bases["t5"]), device="cpu")


@pytest.fixture
def folders(module_folders):
    return find_modules(module_folders["t5"])


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "cache", min_bytes=0)


def assert_equal(one, other):
    assert one.layout == other.layout
    assert torch.equal(one.values, other.values)
    assert (one.scales is None) == (other.scales is None)
    assert one.scales is None or torch.equal(one.scales, other.scales)


def test_modules_on_disk_make_the_same_stack_as_modules_in_memory(base, folders, module_folders):
    assert_equal(ModuleStack.build(folders, base), ModuleStack.build(load_modules(module_folders["t5"]), base))


def test_an_outline_has_all_but_the_values(folders, module_folders):
    for folder, module in zip(folders, load_modules(module_folders["t5"]), strict=True):
        outline = folder.outline()

        for target, factors in module.factors.items():
            seen = outline.factors[target]
            assert seen.A.is_meta
            assert (seen.A.shape, seen.B.shape) == (factors.A.shape, factors.B.shape)
            assert seen.scaling == factors.scaling


@pytest.mark.parametrize("mapping", ["resident", "mmap"])
@pytest.mark.parametrize("dtype", STACK_DTYPES)
def test_the_second_start_reads_no_module(base, folders, cache, dtype, mapping, monkeypatch):
    first = load_stack(folders, base, dtype=dtype, mapping=mapping, cache=cache)
    monkeypatch.setattr(ModuleFolder, "read", lambda _: pytest.fail("read again"))
    second = load_stack(folders, base, dtype=dtype, mapping=mapping, cache=cache)
    assert_equal(first, second)
    assert second.dtype == dtype
    assert torch.equal(first.compose(COEFFICIENTS), second.compose(COEFFICIENTS))


def test_other_modules_names_orders_and_dtypes_are_other_entries(base, folders, cache, tmp_path):
    load_stack(folders, base, cache=cache)
    load_stack(folders[::-1], base, cache=cache)
    load_stack(folders, base, dtype="bf16", cache=cache)
    copy = tmp_path / "other name"
    shutil.copytree(folders[0].folder, copy)
    load_stack([ModuleFolder("other name", copy), *folders[1:]], base, cache=cache)
    assert len(list((cache.folder / "entries").iterdir())) == 4


def test_a_corrupt_entry_is_made_again(base, folders, cache):
    expected = load_stack(folders, base, cache=cache)
    values = next((cache.folder / "entries").iterdir()) / "values.bin"
    content = bytearray(values.read_bytes())
    content[100] ^= 1
    values.write_bytes(content)
    with pytest.warns(CacheWarning, match=r"values\.bin is not what was written"):
        assert_equal(load_stack(folders, base, cache=cache), expected)


def test_a_mapped_stack_needs_a_cache_and_modules_on_disk(base, folders, module_folders, cache):
    with pytest.raises(InvalidInput, match="a cache"):
        load_stack(folders, base, mapping="mmap")
    with pytest.raises(InvalidInput, match="modules on disk"):
        load_stack(load_modules(module_folders["t5"]), base, mapping="mmap", cache=cache)


def test_a_module_for_another_base_is_refused_before_it_is_read(base, module_folders):
    with pytest.raises(IncompatibleModules, match="trained for another base"):
        load_stack(find_modules(module_folders["llama"]), base)


@pytest.mark.parametrize(("dtype", "bound"), [("fp32", 0.0), ("bf16", 2.0**-8), ("int8", 0.5 / 127)])
def test_storing_rounds_by_what_the_dtype_says(base, folders, dtype, bound):
    """bfloat16 keeps 8 bits of each value; int8 is off by half a step of the block's largest one."""
    exact, rounded = ModuleStack.build(folders, base), ModuleStack.build(folders, base, dtype=dtype)
    rows, seen = exact.rows(slice(None)), rounded.rows(slice(None))
    largest = rows.view(4, -1, 128).abs().amax(dim=2).repeat_interleave(128, dim=1)
    scale = largest if dtype == "int8" else rows.abs()
    assert ((seen - rows).abs() <= bound * scale * (1 + 1e-6)).all()
    assert torch.equal(seen, rows) == (dtype == "fp32")
    assert rounded.n_bytes == rounded.layout.n_bytes(dtype)
    assert rounded.n_bytes == sum(t.nbytes for t in (rounded.values, rounded.scales) if t is not None)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_the_null_of_a_rounded_stack_is_rounded_alike(base, folders, dtype):
    stack = ModuleStack.build(folders, base, dtype=dtype)
    null = NullModules.like(stack).draw(seed=3)
    assert (null.dtype, null.layout) == (dtype, stack.layout)
    rms = [float(s.rows(slice(None)).square().mean().sqrt()) for s in (stack, null)]
    assert rms[1] == pytest.approx(rms[0], rel=0.05)
    assert_equal(null, random_modules(stack, seed=3))


def test_a_module_in_memory_is_its_own_outline(module_folders):
    module = load_modules(module_folders["t5"])[0]
    assert isinstance(module, LoraModule)
    assert module.read() is module
    assert module.outline() is module
