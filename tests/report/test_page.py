from __future__ import annotations

import base64
import errno
import gc
import hashlib
import io
import json
import os
import re
import weakref
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from certframe.errors import CertframeError
from certframe.report import claim, paint, text
from certframe.report.page import Page, render, write

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&{{ 7*7 }}"


class Elements(HTMLParser):
    """All elements with their attributes and the text that directly follows the start tag."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.content: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        self.content.append("")
        self.inside = True

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        if self.content and self.inside:
            self.content[-1] += data

    def all(self, tag, **attributes):
        return [(found, text) for (name, found), text in zip(self.found, self.content, strict=True)
                if name == tag and all(found.get(key) == value for key, value in attributes.items())]


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))


def test_needs_no_network_and_no_other_file(panel):
    page = Elements(render(Page("A report", [panel(), panel("cat", n=200)], config={"a": 1}, command="certframe run")))
    for _, attributes in page.found:
        for name in ("src", "href", "action", "data", "srcset", "poster", "xlink:href", "background"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#"))
    (style, css), = page.all("style")
    assert style == {}
    assert "url(" not in css
    assert "@import" not in css


def test_policy_allows_exactly_this_script_and_style(panel):
    page = Elements(render(Page("A report", [panel()])))
    (meta, _), = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    policy = dict(part.split(" ", 1) for part in meta["content"].split("; "))
    code = [text for found, text in page.all("script") if "type" not in found]
    assert len(code) == 1
    for directive, content in (("script-src", code[0]), ("style-src", page.all("style")[0][1])):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[directive] == f"'sha256-{digest}'"
    assert policy["default-src"] == "'none'"
    assert not [attributes for _, attributes in page.found if "style" in attributes]


def test_everything_is_escaped(panel):
    base = panel(HOSTILE, method=HOSTILE)
    certificate = replace(base.explanation.certificate, statement=HOSTILE, warnings=(HOSTILE,), levels=(HOSTILE,) * 3,
                          certifier=HOSTILE, options={**base.explanation.certificate.options, HOSTILE: HOSTILE})
    hostile = replace(base, explanation=replace(base.explanation, certificate=certificate, target_name=HOSTILE),
                      metrics={HOSTILE: 1.0})
    html = render(Page(HOSTILE, [hostile], config={HOSTILE: HOSTILE}, provenance={HOSTILE: [HOSTILE]},
                       failures=[{"name": HOSTILE, "reason": HOSTILE}], command=HOSTILE))
    page = Elements(html)
    assert "alert(1)</script>" not in html
    assert not any("onerror" in attributes for _, attributes in page.found)
    assert page.all("title")[0][1] == HOSTILE
    assert len([1 for found, _ in page.all("script") if "type" not in found]) == 1
    data = json.loads(page.all("script", **{"class": "data"})[0][1])
    assert data["names"] == [f"top {HOSTILE} %"] * 3


def test_the_embedded_maps_are_the_certificate(panel):
    example = panel()
    labels = example.explanation.certificate.labels
    page = Elements(render(Page("A", [example])))
    images = [pixels(found["src"]) for found, _ in page.all("img", **{"class": "map"})]
    assert len(images) == 4
    for level, image in zip(labels, images, strict=False):
        np.testing.assert_array_equal((image[..., :3] == paint.IMPORTANT).all(-1) & (image[..., 3] > 0), level == 1)
        np.testing.assert_array_equal((image[..., :3] == paint.UNIMPORTANT).all(-1) & (image[..., 3] > 0), level == 0)
        np.testing.assert_array_equal(image[..., 3] == 0, level == -1)
    np.testing.assert_array_equal(images[3][..., 3] > 0, (labels == 1).any(0))


def test_table_gives_mean_and_standard_error_per_method_and_sigma(panel):
    examples = [panel(name, method=method, sigma=sigma, seed=seed)
                for seed, (name, method, sigma) in enumerate(
                    (name, method, sigma) for name in ("a", "b", "c")
                    for method, sigma in (("grad-cam", 0.15), ("grad-cam", 0.25), ("rise", 0.15)))]
    html = render(Page("A", examples))
    rows = re.findall(r'<tr data-row.*?</tr>', html, re.S)
    assert len(rows) == 3
    for row, members in zip(rows, (examples[0::3], examples[1::3], examples[2::3]), strict=True):
        cells = re.findall(r'data-what="(\w+)">([^<]*)<', row)
        for level in range(3):
            ones = np.array([(e.explanation.certificate.labels[level] == 1).mean() for e in members])
            both = np.array([(e.explanation.certificate.labels[level] >= 0).mean() for e in members])
            for (what, written), values in zip(cells[2 * level: 2 * level + 2], (both, ones), strict=True):
                mean, error = (float(x) for x in written.removesuffix(" %").split(" ± "))
                assert mean == pytest.approx(100 * values.mean(), abs=0.051), what
                assert error == pytest.approx(100 * values.std(ddof=1) / np.sqrt(3), abs=0.051), what
        assert f"{members[0].sigma:g}" in row


def test_a_metric_is_averaged_over_the_images(panel):
    html = render(Page("A", [replace(panel(name), metrics={"gridpg": value})
                             for name, value in (("a", 0.25), ("b", 0.5))]))
    assert re.search(r'gridpg</th><td class="number">0.375 ± 0.12<', html)


def test_images_in_order_with_their_panels(panel):
    html = render(Page("A", [panel("a"), panel("a", method="rise"), panel("b")]))
    page = Elements(html)
    assert [text for found, text in page.all("h2") if found.get("id", "").startswith("image-")] == ["a", "b"]
    assert len(page.all("section", **{"class": "image"})) == 2
    assert html.count("<section") == html.count("</section>")
    assert len(page.all("article")) == 3
    assert len(page.all("image")) == 2, "the picture is embedded once per image"


def test_a_certifier_without_evidence_gets_static_maps_and_no_slider(fixed_panel):
    page = Elements(render(Page("A", [fixed_panel()])))
    assert not page.all("input")
    assert not page.all("script", **{"class": "votes"})
    assert len(page.all("img", **{"class": "map"})) == 4


def test_a_certificate_without_maps_shows_its_statement(fixed_panel):
    example = fixed_panel()
    certificate = replace(example.explanation.certificate, labels=np.zeros((0, 0, 0), np.int8), levels=(),
                          statement="The class is proven.")
    html = render(Page("A", [replace(example, explanation=replace(example.explanation, certificate=certificate))]))
    assert "The class is proven." in html
    assert not Elements(html).all("img", **{"class": "map"})


def test_grey_pictures_and_native_maps(panel):
    html = render(Page("A", [panel(channels=1, shape=(1, 2), levels=1)]))
    assert len(Elements(html).all("img", **{"class": "map"})) == 2


def test_failures_config_provenance_command_and_warnings_are_shown(panel):
    example = panel()
    certificate = replace(example.explanation.certificate, warnings=("constant map",))
    html = render(Page("A", [replace(example, explanation=replace(example.explanation, certificate=certificate))],
                       config={"certifier": {"tau": 0.75}}, provenance={"torch": "2.13.0"},
                       failures=[{"name": "broken.png", "reason": "truncated"}], command="certframe run --sigma 0.15"))
    for expected in ("constant map", "certifier.tau", "0.75", "2.13.0", "broken.png", "truncated",
                     "certframe run --sigma 0.15", certificate.statement):
        assert expected in html


def test_a_run_in_which_everything_failed(panel):
    html = render(Page("A", [], failures=[{"name": "broken.png", "reason": "truncated"}]))
    assert "broken.png" in html
    assert not Elements(html).all("input")


def test_same_panels_same_bytes(panel):
    assert render(Page("A", [panel()])) == render(Page("A", [panel()]))


def test_panels_are_not_kept(panel):
    alive: set[int] = set()
    most = 0

    def panels():
        nonlocal most
        for i in range(6):
            example = panel(f"image {i}")
            alive.add(i)
            weakref.finalize(example.explanation, alive.discard, i)
            yield example
            del example
            gc.collect()
            most = max(most, len(alive))

    render(Page("A", panels()))
    assert most <= 1


def test_a_failure_leaves_the_old_report_and_no_litter(panel, tmp_path):
    def broken():
        yield panel()
        raise RuntimeError("the disk went away")

    path = tmp_path / "run" / "report.html"
    write(Page("Old", [panel()]), path)
    old = path.read_bytes()
    with pytest.raises(RuntimeError, match="went away"):
        write(Page("New", broken()), path)
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == ["report.html"]


def test_writes_what_is_rendered(panel, tmp_path):
    page = Page("Ä ± τ", [panel()])
    write(page, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_bytes().decode("utf-8") == render(page)


def test_a_full_disk_is_one_line(panel, tmp_path, monkeypatch):
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CertframeError, match="no space left") as caught:
        write(Page("A", [panel()]), tmp_path / "report.html")
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


KINDS = ("pixel", "adaptive", "radius", "importance-band", "class", "top-k-overlap", "certified-rank", "quantile",
         "real overlap")


def test_every_kind_of_certificate_needs_no_network_either(every):
    html = render(Page("A", [every(kind) for kind in KINDS]))
    page = Elements(html)
    assert not [attributes for _, attributes in page.found if "style" in attributes]
    for _, attributes in page.found:
        for name in ("src", "href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#"))
    for tag in ("section", "div", "article", "figure", "table", "svg", "details", "p"):
        assert html.count(f"<{tag}") - html.count(f"<{tag}r") >= html.count(f"</{tag}>") > 0
    ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_equal_counts_are_embedded_once(panel, certifier):
    same = [panel(certifier=certifier(name)) for name in ("pixel", "radius", "importance-band", "class")]
    other = panel("b", seed=1)
    page = Elements(render(Page("A", [*same, other])))
    assert len(page.all("script", **{"class": "codes"})) == 2
    sources = [json.loads(text) for _, text in page.all("script", **{"class": "source"})]
    assert sources == [1, 1, 1, 1, 5]


def test_numbers_of_other_claims_are_averaged_in_tables_of_their_own(every):
    examples = [every("radius", name, seed=seed) for seed, name in enumerate("abc")]
    html = render(Page("A", examples))
    table = html[html.index("<caption>Average certified radius</caption>"):]
    cells = re.findall(r'<td class="number first">([^<]*)</td>', table)[:3]
    for level, written in enumerate(cells):
        means = [np.nan_to_num(e.explanation.certificate.arrays["radius"][level]).mean() for e in examples]
        assert written == f"{np.mean(means):.4f} ± {np.std(means, ddof=1) / 3**0.5:.4f}"


def test_areas_of_labels_that_claim_nothing_are_not_shown(every):
    example = every("top-k-overlap")
    html = render(Page("A", [replace(example, metrics={**example.metrics, "confidence": 0.5})]))
    assert "certified1.50" not in html
    assert "confidence" in html
    assert "Certified pixels" not in html


def test_why_an_image_stopped_and_after_how_many_copies(every):
    example = replace(every("adaptive"), stopped="only 1.5 % of the pixels could still be certified")
    html = render(Page("A", [example]))
    assert re.search(r"<strong>384 of at most 544 copies</strong>: only 1.5 % of the pixels could still", html)
    assert "not needed" in html
    assert re.search(r"<caption>Copies used</caption>.*?of at most 544.*?>384<", html, re.S)


def test_bands_are_listed_with_their_shares(every):
    example = every("importance-band")
    html = render(Page("A", [example]))
    for band, share in claim.bands(example.explanation.certificate, ["top 50 %", "top 25 %", "top 5 %"]):
        assert f'<th scope="row">{band}</th><td class="number">{text.percent(share)}</td>' in html
