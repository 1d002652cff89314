"""The form of every component: a frozen pydantic model with a sentence for each field."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

Acts = Literal["train", "adapt", "both"]


class Component(BaseModel):
    """A frozen, validated set of options with a `build` method."""

    contains_by_default: ClassVar[str | None] = None  # of a method that holds another one: its name
    default_model: ClassVar[str] = (
        "conv4"  # of a task: what learns it where the file names no model
    )
    can_be_contained: ClassVar[bool] = (
        True  # whether a search may choose the model that it learns with
    )

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=False)

    @property
    def needs_start(self) -> str:
        """Why a method cannot begin without another run's meta, the end of a sentence; empty where
        it can.
        """
        return ""

    @property
    def factors(self) -> dict[str, str]:
        """Parts of a method for the report to tell apart, such as {"start": "random"}; what is not
        said is inferred.
        """
        return {}

    @classmethod
    def sentence(cls) -> str:
        """The first sentence of the docstring: what `metalearn list` shows."""
        return " ".join((cls.__doc__ or "").strip().split("\n\n")[0].split())

    @classmethod
    def acts_of(cls, field: str) -> str:
        """When a field acts: at `train`, at `adapt` (when a new task is learned), or at both."""
        extra = cls.model_fields[field].json_schema_extra
        return str(extra.get("acts", "both")) if isinstance(extra, dict) else "both"

    @classmethod
    def fields_at_adapt(cls) -> set[str]:
        """Names of the fields that act only when a new task is learned: tuning them re-uses the
        trained meta.
        """
        return {name for name in cls.model_fields if cls.acts_of(name) == "adapt"}


def option(default: Any, sentence: str, *, acts: Acts = "both", **limits: Any) -> Any:
    """A field with its sentence, its limits and the phase that it acts in."""
    return Field(default, description=sentence, json_schema_extra={"acts": acts}, **limits)
