"""The templates of the report, and the environment that renders them; everything is escaped."""

from __future__ import annotations

from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined

from certframe.report import paint, text


@cache
def environment() -> Environment:
    """The one Jinja environment of the report."""
    result = Environment(loader=PackageLoader("certframe.report"), autoescape=True, undefined=StrictUndefined,
                         trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
    result.filters |= {
        "percent": text.percent, "percent_error": text.percent_error, "number_error": text.number_error,
        "quantity_error": text.quantity_error, "radius": text.radius, "plain": text.plain, "flatten": text.flatten,
        "cell": text.cell, "data_uri": paint.data_uri,
    }
    result.globals["colour_bar"] = cache(lambda scale: paint.data_uri(paint.colour_bar(scale)))
    return result


def source(name: str) -> str:
    """The text of a file that is not a template, such as the script."""
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
