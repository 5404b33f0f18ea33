"""Python runs this at start where this folder is on PYTHONPATH: `make sanitize` puts it there, for child processes too.

It loads the extension that was built with sanitizers in place of the installed one.
"""

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path


class SanitizedExtension:
    """Finds lorahub_edge._native in the folder that LORAHUB_EDGE_SANITIZED names."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != "lorahub_edge._native":
            return None
        (library,) = Path(os.environ["LORAHUB_EDGE_SANITIZED"]).glob("_native.*.so")
        return importlib.util.spec_from_file_location(name, library)


sys.meta_path.insert(0, SanitizedExtension)
