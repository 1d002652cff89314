"""The options of attention: its heads, which divide its width."""

from __future__ import annotations

from typing import Any

from pydantic import model_validator

from metalearn.component import option


def heads_option() -> Any:
    """The field `heads`."""
    return option(4, "Number of attention heads; must divide the width.", acts="train", ge=1, le=64)


def check_heads() -> Any:
    """The validator of a component with `heads` and `width`."""

    def check(self: Any) -> Any:
        if self.width % self.heads:
            text = f"heads must divide the width {self.width} (got {self.heads})"
            raise ValueError(f"{text}: choose a width that is a multiple of {self.heads}")
        return self

    return model_validator(mode="after")(check)
