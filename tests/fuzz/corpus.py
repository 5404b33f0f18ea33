"""The corpus: one small sample of every kind of file that the library reads, made by the library or by PEFT."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import lorahub_edge
from tests import gguf_files, tiny

PATTERNS = {"t5": r"block\.1.*\.q", "llama": "layers.1.self_attn.q_proj"}
ROWS = [{"input": i, "target": t} for i, t in tiny.ROWS]


def make_corpus(folder: Path) -> Path:
    """Write all samples below a folder, once; returns it."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        torch.set_num_threads(1)
        _write(partial)
        partial.rename(folder)
    return folder


def _write(root: Path) -> None:
    for kind in ("t5", "llama"):
        tiny.save_model(tiny.make_model(kind), root / f"base-{kind}", kind)
        tiny.save_module(root / f"base-{kind}", root / f"module-{kind}", kind, seed=1, rank_pattern={PATTERNS[kind]: 2})
    for kind in ("base", "module"):
        _as_bin(root / f"{kind}-t5", root / f"{kind}-bin")
    for kind in ("llama", "t5"):
        (root / f"gguf-{kind}").mkdir()
        gguf_files.write(root / f"gguf-{kind}", kind)
    _examples(root / "examples")
    run = lorahub_edge.adapt(
        root / "base-t5", root / "module-t5", tiny.ROWS, budget=3, null_control=False, device="cpu", out=root / "run"
    )
    lorahub_edge.export(str(run.folder), root / "export", with_adapter=True)
    _without_hashes(root)


def _without_hashes(root: Path) -> None:
    """As a stranger may hand over a folder: with hashes, nearly every change would be found before a file is read."""
    for path in (root / "run" / "manifest.json", root / "export" / "lorahub_edge.json"):
        record = json.loads(path.read_text())
        path.write_text(json.dumps({n: value for n, value in record.items() if n not in ("files", "sha256")}))
    [path] = (root / "export" / "adapters").glob("*.safetensors")
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()["lorahub_edge"])
    record = {name: value for name, value in record.items() if not name.endswith("sha256")}
    save_file(load_file(path), path, {"lorahub_edge": json.dumps(record)})


def _as_bin(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    weights = next(target.glob("*.safetensors"))
    name = "pytorch_model.bin" if weights.stem == "model" else f"{weights.stem}.bin"
    torch.save(load_file(weights), target / name)
    weights.unlink()


def _examples(folder: Path) -> None:
    folder.mkdir()
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "rows.json").write_text(json.dumps({"examples": ROWS}))
    with open(folder / "rows.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, ["input", "target"])
        writer.writeheader()
        writer.writerows(ROWS)
