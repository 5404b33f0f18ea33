"""Folders that were changed on purpose: their records agree with what is in them, as if they had been written so."""

import json
from pathlib import Path

from lorahub_edge.integrity import file_hashes, sealed


def reseal(folder: Path) -> Path:
    """Write the hashes of a run, merged or exported folder anew."""
    [path] = [p for name in ("manifest.json", "merge.json", "lorahub_edge.json") if (p := folder / name).is_file()]
    record = json.loads(path.read_text())
    record["files"] = file_hashes(folder, [folder / name for name in record["files"]])
    path.write_text(json.dumps(sealed(record) if "sha256" in record else record))
    return folder
