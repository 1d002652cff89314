"""The form of every component: a frozen pydantic model with a sentence for each field."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Acts = Literal["train", "adapt", "both"]


class Component(BaseModel):
    """A frozen, validated set of options with a `build` method."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)

    @classmethod
    def sentence(cls) -> str:
        """The first sentence of the docstring: what `metalearn list` shows."""
        return (cls.__doc__ or "").strip().split("\n")[0]

    @classmethod
    def fields_at_adapt(cls) -> set[str]:
        """Names of the fields that act only when a new task is learned: tuning them re-uses the trained meta."""
        extras = {name: info.json_schema_extra for name, info in cls.model_fields.items()}
        return {name for name, extra in extras.items() if isinstance(extra, dict) and extra.get("acts") == "adapt"}


def option(default: Any, sentence: str, *, acts: Acts = "both", **limits: Any) -> Any:
    """A field with its sentence, its limits and the phase that it acts in."""
    return Field(default, description=sentence, json_schema_extra={"acts": acts}, **limits)
