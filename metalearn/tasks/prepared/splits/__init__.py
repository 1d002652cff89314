"""Published splits of data sets: names of classes, as their authors list them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path


@cache
def published(name: str) -> dict[str, tuple[str, ...]]:
    """{"train": classes, "valid": classes, "test": classes} of a file in this package."""
    text = Path(__file__).with_name(f"{name}.json").read_text(encoding="utf-8")
    data = json.loads(text)
    return {split: tuple(data[split]) for split in ("train", "valid", "test")}
