"""What makes one score more important than another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from torch import Tensor

Ranking = Annotated[
    Literal["magnitude", "signed", "positive"],
    Field(description="What counts as important: a large absolute score (magnitude), a large score (signed), or a "
                      "large score above zero (positive)."),
]

_RANKINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "magnitude": Tensor.abs,
    "signed": lambda maps: maps,
    "positive": lambda maps: maps.clamp(min=0),
}


def rank(maps: Tensor, ranking: str) -> Tensor:
    """Scores of the shape of `maps` of which the larger is the more important."""
    return _RANKINGS[ranking](maps)


def _several(value: Any) -> Any:
    """Let a single number, or text with commas, stand for a sequence."""
    if isinstance(value, str):
        return value.split(",")
    return (value,) if isinstance(value, int | float) else value


Several = BeforeValidator(_several)
"""Marks an option that is one number or several."""


def label(number: float) -> str:
    """A level's label: the number, without a trailing ``.0``."""
    return repr(float(number)).removesuffix(".0")
