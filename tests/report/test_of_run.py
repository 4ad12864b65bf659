from __future__ import annotations

from certframe.config import Component
from certframe.report.of_run import distinct


def component(name: str, **options: object) -> Component:
    return Component(kind="certifier", name=name, options=options, distribution="certframe", version="1")


def test_a_name_alone_is_enough_when_it_is_the_only_one():
    assert distinct([component("pixel", tau=0.75), component("radius", tau=0.8)]) == ["pixel", "radius"]


def test_options_that_differ_tell_components_of_one_name_apart():
    several = [component("pixel", tau=0.75, correction="holm", alpha=0.001),
               component("pixel", tau=0.75, correction="paper", alpha=0.001), component("radius")]
    assert distinct(several) == ["pixel (correction=holm)", "pixel (correction=paper)", "radius"]
