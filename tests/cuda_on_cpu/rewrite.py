"""What a C++ compiler cannot read of the CUDA sources, replaced: launches, shared memory, inline PTX, and one limit.

    kernel<<<grid, block, bytes, stream>>>(args);   launch(grid, block, bytes, stream, [&] { kernel(args); });
    extern __shared__ T name[];                     T* name = static_cast<T*>(dynamic_shared());
    __shared__ T name[n];                           static T name[n]; declare_shared(&name, sizeof name);
    asm volatile("st.global.v2.u32 ...");           store_words(to, x, y);
    constexpr index_t kMostBlocks = ...;            drawn for each launch, so that small arrays need strides too

A header that is all PTX has a stand-in of its name in native/. Everything else is compiled as it stands. Whatever is
left that only nvcc knows stops the build.
"""

import re
import shutil
from pathlib import Path

NATIVE = Path(__file__).parent / "native"

_LAUNCH = re.compile(r"(\w+)<<<(.*?)>>>\((.*?)\);", re.S)
_DYNAMIC = re.compile(r"extern __shared__ (\w+) (\w+)\[\];")
_STATIC = re.compile(r"__shared__ ([^;]*?)(\w+)((?:\[\w+\])*);")
_STORE = re.compile(r'asm volatile\(\s*"st\.global\.v(\d)\.u32 [^"]*"\s*:\s*:(.*?):\s*"memory"\s*\);', re.S)
_MOST_BLOCKS = re.compile(r"constexpr index_t kMostBlocks = [^;]*;")

_CUDA_ONLY = ("<<<", "__shared__", "asm", "atomic", "__constant__", "__managed__", "cooperative_groups")


def rewritten(text: str, name: str = "") -> str:
    """The text of a .cu or .cuh file as C++.

    Raises:
        ValueError: something is left that only nvcc knows.
    """
    text = _LAUNCH.sub(r"cuda_on_cpu::launch(\2, [&] { \1(\3); });", text)
    text = _DYNAMIC.sub(r"\1* \2 = static_cast<\1*>(cuda_on_cpu::dynamic_shared());", text)
    text = _STATIC.sub(r"static \1\2\3; cuda_on_cpu::declare_shared(&\2, sizeof \2);", text)
    text = _STORE.sub(_store, text)
    text = _MOST_BLOCKS.sub("#define kMostBlocks static_cast<index_t>(cuda_on_cpu::most_blocks())", text)
    code = re.sub(r"//.*", "", text)
    left = [word for word in _CUDA_ONLY if re.search(rf"(?<!\w){re.escape(word)}", code)]
    if left:
        raise ValueError(f"{name}: expected only CUDA that rewrite.py knows, found {', '.join(left)}; teach it")
    return text


def _store(match: re.Match[str]) -> str:
    to, *words = re.findall(r'"[lr]"\(([^)]*)\)', match[2])
    if len(words) != int(match[1]):
        return match[0]  # left as it is, and refused
    return f"store_words({to}, {', '.join(words)});"


def copy_rewritten(source: Path, target: Path) -> None:
    """Copy csrc with every .cu as .cu.cpp, so that compilers take it for C++."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    for stand_in in NATIVE.glob("*.cuh"):
        shutil.copy(stand_in, target / "kernels/cuda")
    for path in [*target.rglob("*.cu"), *target.rglob("*.cuh")]:
        text = rewritten(path.read_text(), path.name)
        path.unlink()
        path.with_name(path.name + ".cpp" * (path.suffix == ".cu")).write_text(text)
