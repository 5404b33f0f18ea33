"""Results as JSON: a number that is not finite is null, since JSON has no other word for it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """A value for JSON, with None for every number in it that is not finite."""
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def to_json(value: Any, *, indent: int | None = 2) -> str:
    """JSON text of a result; None for indent gives one line."""
    return json.dumps(plain(value), indent=indent, allow_nan=False)
