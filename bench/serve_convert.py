"""One model folder for all contenders of bench.serve: exported by us, by Optimum, converted by CTranslate2.

Each goes to WORK/<contender>, with the hash of the model's weights beside it, so that bench.serve can tell that they
are the same model. A contender that is there already is kept if its hash is right, and made again if not.

python -m bench.serve_convert MODEL WORK --peer-python PYTHON
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from lorahub_edge.sources import sha256_files

FOLDERS = ("ours", "optimum", "ctranslate2")
# The shape that bench.serve serves, where make bench runs it.
SERVED = "large"


def stamp_of(folder: Path) -> str | None:
    """The hash of the model that a contender was made from."""
    path = folder.with_name(f"{folder.name}.model-sha256")
    return path.read_text().strip() if path.is_file() else None


def write_stamp(folder: Path, model_sha256: str) -> None:
    """Say which model a contender was made from."""
    folder.with_name(f"{folder.name}.model-sha256").write_text(model_sha256 + "\n")


def model_hash(model: Path) -> str:
    """One hash of a model's weights and config."""
    files = sorted([*model.glob("*.safetensors"), model / "config.json"])
    return hashlib.sha256(repr(sha256_files(files)).encode()).hexdigest()


def command_for(contender: str, model: Path, out: Path, bin_folder: Path) -> list[str]:
    """What makes a contender of the model."""
    command = {
        "ours": "lorahub-edge export {model} --out {out}",
        "optimum": "optimum-cli export onnx --model {model} --task text2text-generation-with-past {out}",
        "ctranslate2": "ct2-transformers-converter --model {model} --output_dir {out} --quantization int8",
    }[contender]
    program, *arguments = command.split(" ")
    return [str(bin_folder / program), *(word.format(model=model, out=out) for word in arguments)]


def convert(contender: str, model: Path, work: Path, bin_folder: Path) -> None:
    """Make one contender, unless it is there and of this model."""
    out, stamp = work / contender, model_hash(model)
    if out.is_dir() and stamp_of(out) == stamp:
        return
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run(command_for(contender, model, out, bin_folder), check=True)
    write_stamp(out, stamp)


def main() -> None:
    """Make all contenders."""
    parser = argparse.ArgumentParser(prog="python -m bench.serve_convert", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--peer-python", type=Path, required=True, help="of an environment that `make clients` made")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for contender in FOLDERS:
        python = Path(sys.executable) if contender == "ours" else options.peer_python
        convert(contender, options.model, options.work, python.parent)


if __name__ == "__main__":
    main()
