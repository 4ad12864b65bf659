from __future__ import annotations

import re
import sys
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from certframe.errors import CertframeError, UsageError
from certframe.report import chart, paint, plates
from certframe.report import figure as figures


def unanimous(panel, value):
    """An explanation in which every pixel is certified with one label."""
    return panel(counts=np.full((1, 6, 6), value), shape=(6, 6)).explanation


def test_composition_shows_the_certified_map(panel):
    for value, colour in ((100, paint.IMPORTANT), (0, paint.UNIMPORTANT)):
        image = figures.compose(unanimous(panel, value), side=120)
        shades = {rgb for _, rgb in image.getcolors(maxcolors=1 << 20)}
        assert colour in shades
        counts = (np.asarray(image) == colour).all(-1).sum()
        assert counts > 110 * 110


def test_composition_hatches_what_is_undecided(panel):
    image = np.asarray(figures.compose(unanimous(panel, 50), side=120))
    light = (image == paint.ABSTAIN_LIGHT).all(-1).sum()
    dark = (image == paint.ABSTAIN_DARK).all(-1).sum()
    assert light > dark > 1000


def test_png_file(panel, tmp_path):
    figures.write_png(panel().explanation, tmp_path / "a.png", side=100)
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 6 * 100
    with pytest.raises(CertframeError, match="cannot write"):
        figures.write_png(panel().explanation, tmp_path / "missing" / "a.png")


def test_figure_has_a_panel_per_level_and_says_what_is_proven(panel):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    explanation = panel().explanation
    result = figures.figure(explanation)
    assert len(result.axes) == 2 + 3 + 1
    titles = [axes.get_title() for axes in result.axes]
    share = (explanation.certificate.labels[0] >= 0).mean()
    assert titles[2].startswith("top 50 %")
    assert float(re.search(r"([\d.]+) % certified", titles[2])[1]) == pytest.approx(100 * share, abs=0.051)
    for expected in ("espresso", f"{explanation.certificate.radius:.4f}", "0.999"):
        assert expected in result.get_suptitle()


def test_figure_without_matplotlib_says_what_to_install(panel, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"pip install 'certframe\[plot\]'"):
        figures.figure(panel().explanation)


def test_snippet_is_self_contained_and_escaped(panel):
    explanation = panel("<script>x</script>").explanation
    certificate = replace(explanation.certificate, warnings=("a < b",))
    html = figures.snippet(replace(explanation, certificate=certificate))
    assert "<script" not in html
    assert "a &lt; b" in html
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', html))
    assert html.count("<figure") == html.count("</figure>") == 6
    assert "l2 norm" in html


def test_claims_without_maps_have_no_map_panels(panel):
    explanation = panel().explanation
    certificate = replace(explanation.certificate, labels=np.zeros((0, 0, 0), np.int8), levels=())
    bare = replace(explanation, certificate=certificate)
    assert figures.snippet(bare).count("<figure") == 2
    assert figures.compose(bare, side=100).width < 3 * 130


ARRAYS = {"radius": 3 + 1, "class+radius": 3 + 1, "certified-rank": 3 + 1, "quantile": 3 + 1, "top-k-overlap": 3 + 1,
          "real overlap": 1 + 1, "real rank": 1 + 1 + 1}
"""Maps and charts of these kinds, besides picture, attribution and labels."""


@pytest.mark.parametrize("kind", ["pixel", "adaptive", "importance-band", "class", "class+adaptive", *ARRAYS])
def test_figures_show_every_kind_of_certificate(every, kind):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    explanation = every(kind).explanation
    result = figures.figure(explanation)
    labels = 3 + 1 if kind in ("pixel", "adaptive", "importance-band", "class", "class+adaptive", "radius",
                               "class+radius") else 0
    assert len(result.axes) == 2 + labels + ARRAYS.get(kind, 0)
    result.draw_without_rendering()
    titles = " ".join(axes.get_title() for axes in result.axes)
    texts = " ".join(text.get_text() for axes in result.axes for text in axes.texts)
    if "radius" in kind:
        top = np.nanmax(explanation.certificate.arrays["radius"])
        assert f"{top:.4f}"[:5] in texts
        assert "/255" in texts
    assert ("importance band" in titles) == (kind == "importance-band")


@pytest.mark.parametrize("kind", ["importance-band", "class+adaptive", *ARRAYS])
def test_compositions_show_every_kind_of_certificate(every, kind):
    explanation = every(kind).explanation
    image = np.asarray(figures.compose(explanation, side=120))
    if kind == "importance-band":
        assert (image == paint.IMPORTANT).all(-1).sum() > 1000
        return
    wanted = {colour for row in plates.rows(explanation) for plate in row.plates
              for _, colour in plate.heat.image.convert("RGBA").getcolors(1 << 16) if colour[3]}
    shown = {rgb for _, rgb in figures.compose(explanation, side=120).getcolors(maxcolors=1 << 20)}
    assert {colour[:3] for colour in wanted} <= shown
    for line in (line for one in chart.charts(explanation) for line in one.lines):
        assert line.rgb in shown


@pytest.mark.parametrize("kind", ["adaptive", "importance-band", *ARRAYS])
def test_snippets_show_every_kind_of_certificate(every, kind):
    explanation = every(kind).explanation
    html = figures.snippet(explanation)
    assert "<script" not in html
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', html))
    for row in plates.rows(explanation):
        assert row.title in html
        for plate in row.plates:
            assert paint.data_uri(plate.heat.image) in html
            assert f">{plate.high}<" in html
    assert html.count("<svg class=\"axes\"") == len(chart.charts(explanation))
    assert html.count("<div") == html.count("</div")


def test_titles_name_reach_class_and_copies(every):
    assert "R from 0.0" in figures.title(every("radius").explanation)
    assert figures.title(every("class+adaptive").explanation).endswith("class certified, 384 of at most 544 copies")
    assert "ρ = 0.0300 (7.7/255), confidence 0.95" in figures.title(every("top-k-overlap").explanation)


def test_a_map_of_stacked_channels_is_not_laid_over_the_picture(panel):
    example = panel(shape=(72, 32))
    assert len(figures.figure(example.explanation).axes) == 2 + 3
    assert "certified important" not in figures.snippet(example.explanation)
