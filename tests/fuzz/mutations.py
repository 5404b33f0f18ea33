"""Mutations: one small change of a file that a stranger may have made, by accident or on purpose."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOSTILE: list[Any] = [
    None, True, False, 0, -1, 1, 2, 3, 7, 0.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), float("-inf"),
    2**31, 2**63, -(2**63), 10**20, -(10**20), 10**400, "", " ", "x", "\x1b[2J\n\x00", "\ud800",
    "a" * 100_000, "9" * 400,
    "../../../etc/passwd", "/dev/zero", "{", "{input", "{input.__class__}", "float32", "I64", [], {}, [None], [[]],
    [0, 2**62], [-1], {"": None}, {"a": {"b": []}}, ["q"] * 10_000,
]  # fmt: skip
# Keys that libraries act upon where they find them.
KEYS: dict[str, Any] = {
    "auto_map": {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.Slow", "evil.Fast"]},
    "quantization_config": {"quant_method": "fp8"},
    "rank_pattern": {r"((\w+\.?)+!)": 4, ".*" * 40 + "Z": 4},
    "alpha_pattern": {"q": 10**400},
    "chat_template": "{{ messages[9].content.__class__ }}",
    "rope_scaling": {"rope_type": "yarn", "factor": 0},
    "torch_dtype": "complex64",
    "_attn_implementation": "flash_attention_2",
    "tokenizer_class": "evil",
    "model_type": "bert",
    "architectures": ["Evil"],
    "__metadata__": {"format": 7},
    "__class__": "x",
}


def mutate(path: Path, rng: random.Random) -> str:
    """Change one file in place; returns what was done."""
    change = rng.choice(_changes_for(path))
    change(path, rng)
    return f"{change.__name__[1:]} of {path.name}"


def _changes_for(path: Path) -> list[Callable[[Path, random.Random], None]]:
    anything = [_flip, _flip, _cut, _grow, _span, _number, _kind]
    if path.suffix == ".json":
        return [*anything, *[_json] * 20]
    if path.suffix == ".jsonl":
        return [*anything, *[_json_line] * 10]
    if path.suffix in (".safetensors", ".gguf", ".onnx"):
        header = _safetensors_header if path.suffix == ".safetensors" else _head
        return [*anything, *[header] * 14]
    if path.suffix in (".bin", ".npz"):
        return [*anything, *[_zip_entry] * 14]
    return anything


def _flip(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    path.write_bytes(_flipped(content, rng, len(content)))


def _head(path: Path, rng: random.Random) -> None:
    """Flips where a format keeps its counts and names."""
    content = bytearray(path.read_bytes())
    if rng.random() < 0.5 and len(content) > 300:
        at = rng.randrange(min(len(content) - 8, 2000))
        content[at : at + 8] = struct.pack("<Q", rng.choice([0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1, 10**10]))
        path.write_bytes(content)
    else:
        path.write_bytes(_flipped(content, rng, min(len(content), 2000)))


def _flipped(content: bytearray, rng: random.Random, n: int) -> bytes:
    for _ in range(rng.choice([1, 1, 2, 8, 64]) if n else 0):
        content[rng.randrange(n)] ^= 1 << rng.randrange(8)
    return bytes(content)


def _cut(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: rng.randrange(len(content) + 1)])


def _grow(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    at = rng.randrange(len(content) + 1)
    path.write_bytes(
        content[:at]
        + rng.choice([b"\0", b"\xff", b"[", b'"', b"\n", rng.randbytes(40)]) * rng.randrange(1, 999)
        + content[at:]
    )


def _span(path: Path, rng: random.Random) -> None:
    content = bytearray(path.read_bytes())
    at = rng.randrange(len(content) + 1)
    n = len(content[at : at + rng.randrange(1, 64)])
    content[at : at + n] = rng.choice([b"\0", b"\xff", b"9", b" "]) * n
    path.write_bytes(content)


def _number(path: Path, rng: random.Random) -> None:
    """A number in a text becomes another one."""
    text = path.read_bytes()
    digits = [i for i, c in enumerate(text[:200_000]) if 48 <= c <= 57]
    if digits:
        at = rng.choice(digits)
        path.write_bytes(text[:at] + rng.choice([b"-1", b"0", b"1e400", b"9" * 400, b"NaN"]) + text[at + 1 :])


def _kind(path: Path, rng: random.Random) -> None:
    """Something else of that name: nothing, a folder, a pipe, a link to itself, to a device or to another file."""
    other = rng.choice(sorted(p for p in path.parent.iterdir() if p.is_file()))
    copied = other.read_bytes()
    path.unlink()
    kind = rng.randrange(7)
    if kind == 0:
        path.write_bytes(b"")
    elif kind == 1:
        path.mkdir()
    elif kind == 2:
        os.mkfifo(path)
    elif kind == 3:
        path.symlink_to(path.name)
    elif kind == 4:
        path.symlink_to("/dev/zero")
    elif kind == 5:
        path.write_bytes(copied)


def _json(path: Path, rng: random.Random) -> None:
    path.write_text(_mutated_json(path.read_text(), rng), encoding="utf-8", errors="surrogatepass")


def _json_line(path: Path, rng: random.Random) -> None:
    lines = path.read_text().splitlines()
    at = rng.randrange(len(lines))
    lines[at] = _mutated_json(lines[at], rng)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="surrogatepass")


def _safetensors_header(path: Path, rng: random.Random) -> None:
    content = path.read_bytes()
    (n,) = struct.unpack("<Q", content[:8])
    header = _mutated_json(content[8 : 8 + n].decode(), rng).encode(errors="surrogatepass")
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + n :])


def _zip_entry(path: Path, rng: random.Random) -> None:
    """One file inside an archive changes, and the archive stays whole."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    name = rng.choice(sorted(entries)) if rng.random() < 0.4 else min(entries, key=lambda n: not n.endswith("data.pkl"))
    content = bytearray(entries[name])
    if content and rng.random() < 0.2:
        content = content[: rng.randrange(len(content))]
    entries[name] = _flipped(content, rng, min(len(content), 3000))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", rng.choice([zipfile.ZIP_STORED] * 4 + [zipfile.ZIP_DEFLATED])) as archive:
        for entry, data in entries.items():
            archive.writestr(entry, data)
    path.write_bytes(packed.getvalue())


def _mutated_json(text: str, rng: random.Random) -> str:
    content = json.loads(text)
    if rng.random() < 0.04:
        return rng.choice(
            ["[" * 100_000, '{"a":' * 5000, "[1, 2]", "null", '"x"', "", text + text, text.replace(":", "", 1)]
        )
    places = list(_places(content))
    for _ in range(rng.choice([1, 1, 1, 2, 4]) if places else 0):
        holder, key = rng.choice(places)
        _change_place(holder, key, content, rng)
    changed = json.dumps(content, ensure_ascii=rng.random() < 0.5)
    if isinstance(content, dict) and content and rng.random() < 0.1:  # a key twice: Python takes the last one
        key = rng.choice(sorted(content))
        return f"{changed[:-1]}, {json.dumps(key)}: {json.dumps(rng.choice(HOSTILE))}}}"
    return changed


def _places(content: Any) -> Any:
    """Every (holder, key) in a document."""
    for key in content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield content, key
        yield from _places(content[key])


def _change_place(holder: Any, key: Any, content: Any, rng: random.Random) -> None:
    kind = rng.randrange(10)
    if (isinstance(holder, dict) and key not in holder) or (isinstance(holder, list) and key >= len(holder)):
        return  # gone by an earlier change
    old = holder[key]
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice([f"{key} ", str(key).upper(), "", "\x1b[2J", "a" * 10_000])] = holder.pop(key)
    elif kind == 2 and isinstance(holder, dict):
        extra = rng.choice(sorted(KEYS))
        holder[extra] = KEYS[extra]
    elif kind == 3 and isinstance(old, (int, float)):
        holder[key] = rng.choice([old + 1, old * 2, -old, old // 2, str(old), old * 10**6, [old]])
    elif kind == 4:
        holder[key] = rng.choice([[old], {"a": old}, [old, old]])
    else:
        holder[key] = rng.choice(HOSTILE)
