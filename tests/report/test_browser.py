"""The page in a browser: what it shows is what Python computed, at the run's τ and at every other."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from certframe.comparing import Group, Summary
from certframe.report import claim, paint, slider, text
from certframe.report.comparison_page import tables, write_page
from certframe.report.page import Page, write

READ = """() => [...document.querySelectorAll(".panel")].map(panel => ({
  tau: panel.querySelector(".tau")?.textContent, radius: panel.querySelector(".radius")?.textContent,
  moved: !panel.querySelector(".moved").hidden,
  maps: [...panel.querySelectorAll(".map")].map(map => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = map.tagName === "IMG" ? [map.naturalWidth, map.naturalHeight]
      : [map.width, map.height];
    const context = canvas.getContext("2d");
    context.drawImage(map, 0, 0);
    return { width: canvas.width, tag: map.tagName, alt: map.alt || map.getAttribute("aria-label"),
             rgba: [...context.getImageData(0, 0, canvas.width, canvas.height).data] };
  }),
  rates: [...panel.querySelectorAll(".level")].map(level =>
    [".certified", ".one", ".zero", ".needed"].map(part => level.querySelector(part)?.textContent)),
  bars: [...panel.querySelectorAll(".level .shares rect")].map(rect => Number(rect.getAttribute("width"))),
}))"""

MOVE = """tau => {
  const slider = document.querySelector("#tau");
  slider.value = JSON.parse(document.querySelector("#settings").textContent).taus.indexOf(tau);
  slider.dispatchEvent(new Event("input"));
  slider.dispatchEvent(new Event("change"));
}"""

TABLE = """() => [...document.querySelectorAll(".summary tr[data-row]")].map(row =>
  [...row.querySelectorAll("td.radius, [data-level]")].map(cell => cell.textContent))"""


class Viewer:
    """A page in the browser, and everything it complained about or asked for."""

    def __init__(self, chromium, path: Path, **options) -> None:
        self.context = chromium.new_context(**options)
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.errors.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def read(self):
        return self.page.evaluate(READ)

    def move(self, tau: float) -> None:
        self.page.evaluate(MOVE, tau)
        self.wait(str(tau))

    def wait(self, tau: str) -> None:
        self.page.wait_for_function(
            "tau => [...document.querySelectorAll('.panel .tau')].every(shown => shown.textContent === tau)", arg=tau)


@pytest.fixture
def view(chromium, tmp_path):
    viewers = []

    def show(page: Page, **options) -> Viewer:
        path = tmp_path / f"report{len(viewers)}.html"
        write(page, path)
        viewers.append(Viewer(chromium, path, **options))
        return viewers[-1]

    yield show
    for viewer in viewers:
        own = [url for url in viewer.requests if not url.startswith("data:")]
        assert viewer.errors == []
        assert len(own) == 1, "nothing but the file itself is asked for"
        assert own[0].startswith("file:")
        viewer.context.close()


def labels_of(shown: dict) -> np.ndarray:
    rgba = np.array(shown["rgba"], np.uint8).reshape(-1, shown["width"], 4)
    labels = np.full(rgba.shape[:2], 7)
    labels[(rgba[..., :3] == paint.IMPORTANT).all(-1) & (rgba[..., 3] == 255)] = 1
    labels[(rgba[..., :3] == paint.UNIMPORTANT).all(-1) & (rgba[..., 3] == 255)] = 0
    labels[rgba[..., 3] == 0] = -1
    return labels


def overlay_of(shown: dict) -> np.ndarray:
    rgba = np.array(shown["rgba"], np.uint8).reshape(-1, shown["width"], 4)
    return np.where(rgba[..., 3:] > 0, rgba, 0)


def check(shown: dict, labels: np.ndarray, overlay=paint.overlay) -> None:
    """The maps, the overlay, the written shares and the bars are those of the labels."""
    for level, expected in enumerate(labels):
        np.testing.assert_array_equal(labels_of(shown["maps"][level]), expected)
        one, zero = float((expected == 1).mean()), float((expected == 0).mean())
        assert shown["rates"][level][:3] == [text.percent(one + zero), text.percent(one), text.percent(zero)]
        assert shown["bars"][2 * level: 2 * level + 2] == [one, zero]
    expected_overlay = np.asarray(overlay(labels).convert("RGBA"))
    np.testing.assert_array_equal(overlay_of(shown["maps"][-1]),
                                  np.where(expected_overlay[..., 3:] > 0, expected_overlay, 0))


def decide(example, tau: float) -> np.ndarray:
    """The labels at τ, by the certifier's own definition."""
    tally = example.explanation.tally
    candidate, votes = example.certifier.evidence(tally)
    needed = example.certifier.vote_thresholds(tally, tau)
    return np.where(votes >= needed[:, None, None], candidate, -1)


def test_first_shows_the_certificate(view, panel):
    examples = [panel("a"), panel("a", method="rise", seed=1), panel("b", shape=(7, 7), channels=1, seed=2)]
    for shown, example in zip(view(Page("A", examples)).read(), examples, strict=True):
        check(shown, example.explanation.certificate.labels)
        assert shown["tau"] == "0.75"
        assert shown["radius"] == text.radius(example.explanation.certificate.radius)
        assert not shown["moved"]


@pytest.mark.parametrize("options", [{}, {"correction": "paper", "tau": 0.7}, {"family": "all", "tau": 0.7312}])
def test_every_position_decides_as_python_does(view, panel, options):
    examples = [panel("a", **options), panel("b", seed=1, shape=(9, 5), sigma=0.33, **options)]
    viewer = view(Page("A", examples))
    different = set()
    for tau in (0.5, 0.6, 0.83, 0.9, 0.99, 0.75):
        viewer.move(tau)
        for shown, example in zip(viewer.read(), examples, strict=True):
            labels = decide(example, tau)
            check(shown, labels)
            different.add(labels.tobytes())
            data = slider.make(example.certifier, example.explanation.certificate, example.explanation.tally)
            at = list(data.taus).index(tau)
            assert shown["radius"] == text.radius(data.radii[at])
            samples = example.explanation.certificate.samples
            assert [rate[3] for rate in shown["rates"]] == [
                text.votes_needed(data.thresholds[at][i], samples, certified_all=bool((labels[i] >= 0).all()))
                for i in range(3)]
    assert len(different) > 6, "the slider changes the maps"


def test_every_count_is_decided_as_python_decides_it(view, panel):
    for n, correction in ((100, "holm"), (100, "bonferroni"), (1000, "paper"), (40000, "holm")):
        counts = np.unique(np.linspace(0, n, min(n, 1000) + 1).astype(np.int64))[None, None]
        example = panel(n=n, counts=counts, shape=counts.shape[1:], correction=correction)
        viewer = view(Page("A", [example]))
        for tau in (0.5, 0.51, 0.7, 0.8, 0.95):
            viewer.move(tau)
            check(viewer.read()[0], decide(example, tau))


def test_back_to_the_run_is_the_certificate_again(view, panel):
    example = panel(tau=0.7312)
    viewer = view(Page("A", [example]))
    before = viewer.read()[0]
    viewer.move(0.9)
    assert viewer.read()[0]["moved"]
    assert viewer.read()[0]["maps"][0]["rgba"] != before["maps"][0]["rgba"]
    viewer.page.click("#reset")
    viewer.wait("0.7312")
    after = viewer.read()[0]
    check(after, example.explanation.certificate.labels)
    assert {**after, "maps": []} == {**before, "maps": []}
    assert [shown["tag"] for shown in after["maps"]] == ["CANVAS"] * 4
    assert [shown["alt"] for shown in after["maps"]] == [shown["alt"] for shown in before["maps"]]


def test_the_keyboard_moves_the_slider(view, panel):
    viewer = view(Page("A", [panel()]))
    viewer.page.focus("#tau")
    viewer.page.keyboard.press("ArrowRight")
    viewer.wait("0.76")
    assert "tau 0.76" in viewer.page.get_attribute("#tau", "aria-valuetext")
    assert viewer.page.text_content("#tau-value") == "0.76"
    viewer.page.keyboard.press("Home")
    viewer.wait("0.5")
    assert viewer.page.text_content("#radii") == "R = 0.0000 (0.0/255)"


def test_the_table_follows_the_slider(view, panel):
    examples = [panel(name, method=method, seed=seed) for seed, (name, method) in enumerate(
        (name, method) for name in "abc" for method in ("grad-cam", "rise"))]
    viewer = view(Page("A", examples))
    initial = viewer.page.evaluate(TABLE)
    for tau in (0.75, 0.6, 0.9):
        viewer.move(tau)
        table = viewer.page.evaluate(TABLE)
        for cells, members in zip(table, (examples[0::2], examples[1::2]), strict=True):
            labels = [decide(example, tau) for example in members]
            expected = []
            for level in range(3):
                for accepted in ((0, 1), (1,)):
                    shares = [float(np.isin(one[level], accepted).mean()) for one in labels]
                    expected.append(f"{100 * np.mean(shares):.1f} ± {100 * np.std(shares, ddof=1) / 3**0.5:.1f} %")
            assert cells[1:] == expected
        assert (table == initial) == (tau == 0.75)


def test_panels_far_below_follow_too(view, panel):
    examples = [panel(f"image {i}", seed=i) for i in range(12)]
    viewer = view(Page("A", examples), viewport={"width": 900, "height": 500})
    viewer.move(0.6)
    for shown, example in zip(viewer.read(), examples, strict=True):
        check(shown, decide(example, 0.6))


def test_quick_moves_end_at_the_last(view, panel):
    examples = [panel(f"image {i}", seed=i) for i in range(4)]
    viewer = view(Page("A", examples))
    for tau in (0.6, 0.9, 0.75, 0.55, 0.8):
        viewer.page.evaluate(MOVE, tau)
    viewer.wait("0.8")
    for shown, example in zip(viewer.read(), examples, strict=True):
        check(shown, decide(example, 0.8))


def test_certificates_without_evidence_stay_as_they_are(view, panel, fixed_panel):
    live, fixed = panel(seed=1), fixed_panel(seed=2)
    viewer = view(Page("A", [live, fixed]))
    before = viewer.read()[1]
    viewer.move(0.6)
    after = viewer.read()
    check(after[0], decide(live, 0.6))
    assert after[1] == before
    check(after[1], fixed.explanation.certificate.labels)


def test_the_filter_shows_one_row(view, panel):
    viewer = view(Page("A", [panel(), panel(method="rise"), panel("b")]))
    viewer.page.select_option("#cell", label="rise, σ = 0.15")
    visible = "[...document.querySelectorAll('.panel')].map(panel => panel.offsetHeight > 0)"
    assert viewer.page.evaluate(visible) == [False, True, False]
    assert viewer.page.evaluate("document.querySelector('#panel-2 .picture').getBoundingClientRect().width") > 50
    headings = "[...document.querySelectorAll('.cell h3')].filter(h => h.offsetHeight > 0).map(h => h.textContent)"
    assert [text.split()[0] for text in viewer.page.evaluate(headings)] == ["rise"]
    viewer.page.select_option("#cell", label="all methods")
    assert viewer.page.evaluate(visible) == [True, True, True]


def test_hostile_names_run_nothing(view, panel):
    hostile = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    viewer = view(Page(hostile, [panel(hostile, method=hostile)], failures=[{"name": hostile, "reason": hostile}]))
    viewer.move(0.6)
    assert viewer.page.title() == hostile
    assert viewer.page.text_content("h1") == hostile


@pytest.mark.parametrize("width", [1280, 768, 390, 320])
def test_nothing_sticks_out_of_the_window(view, panel, width):
    viewer = view(Page("A report with a_very_long_name_without_any_place_to_break_it_anywhere",
                       [panel("a_very_long_name_without_any_place_to_break_it_anywhere_at_all.jpg"),
                        panel("b", method="rise")],
                       command="certframe run " + "x" * 300),
                  viewport={"width": width, "height": 800})
    assert viewer.page.evaluate("document.documentElement.scrollWidth") <= width


def test_without_script_the_run_is_shown_and_no_slider(view, panel):
    viewer = view(Page("A", [panel()]), java_script_enabled=False)
    assert not viewer.page.is_visible("#slider")
    assert viewer.page.locator("img.map").count() == 4


def test_every_control_and_picture_has_a_name(view, panel):
    viewer = view(Page("A", [panel(), panel(method="rise")]))
    nameless = """[...document.querySelectorAll("img:not(.bar), svg[role=img], input, select, button")]
        .filter(element => !(element.getAttribute("alt") || element.getAttribute("aria-label") ||
                             element.labels?.[0]?.textContent || element.textContent.trim()))
        .map(element => element.outerHTML.slice(0, 80))"""
    assert viewer.page.evaluate(nameless) == []


def at_tau(example, tau: float) -> np.ndarray:
    """The labels at τ of the slider by certifying again, or of the certificate within that radius."""
    certificate, tally = example.explanation.certificate, example.explanation.tally
    data = slider.make(example.certifier, certificate, tally)
    at = max((i for i, value in enumerate(data.taus) if value <= tau), default=0)
    if claim.all_radii(certificate):
        return np.where(certificate.arrays["radius"] >= data.radii[at], certificate.labels, -1)
    cls = type(example.certifier)
    return cls(cls.Options(**{**certificate.options, "tau": data.taus[at]})).certify(tally).labels


KINDS = ("pixel", "adaptive", "radius", "importance-band", "class", "class+radius", "class+adaptive", "top-k-overlap",
         "certified-rank", "quantile", "real overlap", "real rank")
LIVE = ("pixel", "adaptive", "radius", "importance-band", "class", "class+radius", "class+adaptive")


def test_every_kind_of_certificate_is_shown_and_follows_the_slider(view, every):
    examples = [every(kind) for kind in LIVE]
    viewer = view(Page("A", examples))
    for tau in (None, 0.5, 0.6, 0.77, 0.9, 0.99, 0.8):
        if tau is not None:
            viewer.page.evaluate(MOVE, tau)
            viewer.page.wait_for_function("""tau => [...document.querySelectorAll(".panel")].every(panel => {
                const shown = panel.querySelector(".tau");
                return !shown || Number(shown.textContent) > tau - 0.05 && Number(shown.textContent) <= tau; })""",
                                          arg=tau)
            viewer.page.wait_for_timeout(100)
        for shown, example in zip(viewer.read(), examples, strict=True):
            band = claim.is_band(example.explanation.certificate)
            labels = example.explanation.certificate.labels if tau is None else at_tau(example, tau)
            check(shown, labels, paint.band_overlay if band else paint.overlay)


def test_any_radius_is_read_off_a_radius_certificate(view, every):
    example = every("radius")
    viewer = view(Page("A", [example]))
    panel = viewer.page.locator(".panel")
    assert "All radii hold at once" in panel.inner_text()
    assert "chosen beforehand" not in viewer.page.inner_text("body")
    assert panel.locator("h5 .radius").inner_text() == "within each pixel’s own radius"
    viewer.page.evaluate(MOVE, 0.8)
    radius = 0.15 * NormalDist().inv_cdf(0.8)
    expected = f"at R = {text.radius(radius)}"
    viewer.page.wait_for_function("text => document.querySelector('h5 .radius').textContent === text", arg=expected)
    assert "proven, together with every other position" in panel.locator(".moved").inner_text()
    mark, axes = panel.locator(".mark.follows"), panel.locator(".axes").first
    left, unit = (float(axes.get_attribute(f"data-{name}")) for name in ("left", "unit"))
    assert float(mark.get_attribute("x1")) == pytest.approx(left + unit * radius, abs=0.02)
    viewer.page.click("#reset")
    viewer.page.wait_for_function("() => document.querySelector('.moved').hidden")
    assert panel.locator("h5 .radius").inner_text() == "within each pixel’s own radius"
    check(viewer.read()[0], example.explanation.certificate.labels)


def test_the_caution_names_those_for_which_tau_is_chosen_beforehand(view, every):
    viewer = view(Page("A", [every("pixel"), every("radius"), every("importance-band")]))
    note = viewer.page.locator(".summary .note").nth(1).inner_text()
    assert "The confidence of pixel, importance-band holds for one τ chosen beforehand" in note
    assert "By radius all positions of the slider are proven at once" in note


def test_the_class_follows_the_slider(view, panel, certifier, tally):
    votes = 93
    example = panel(certifier=certifier("class"), tally=tally(right=votes))
    viewer = view(Page("A", [example]))
    badge = viewer.page.locator(".badge")
    seen = set()
    for tau in (0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.99):
        viewer.move(tau)
        cls = type(example.certifier)
        other = cls(cls.Options(tau=tau)).certify(example.explanation.tally)
        verdict = "class certified" if other.arrays["class"][2] else "class not certified"
        assert badge.locator(".verdict").inner_text() == verdict
        assert badge.locator(".class-detail").inner_text() == f"{votes} of 100 votes, R = {text.radius(other.radius)}"
        seen.add(verdict)
    assert len(seen) == 2


def test_a_pixel_is_read_by_pointing_at_it(view, every):
    for kind in ("pixel", "radius", "importance-band", "adaptive"):
        example = every(kind)
        certificate, tally = example.explanation.certificate, example.explanation.tally
        viewer = view(Page("A", [example]))
        frame = viewer.page.locator(".panel .level .frame").first
        frame.scroll_into_view_if_needed()
        box = frame.bounding_box()
        for x, y in ((3, 2), (15, 11), (0, 0)):
            viewer.page.mouse.move(box["x"] + (x + 0.5) / 16 * box["width"], box["y"] + (y + 0.5) / 12 * box["height"])
            viewer.page.wait_for_function("start => document.querySelector('.readout').textContent.startsWith(start)",
                                          arg=f"Pixel {x}, {y}. ")
            line = viewer.page.inner_text(".readout")
            for level, name in enumerate(("top 50 %", "top 25 %", "top 5 %")):
                label = int(certificate.labels[level, y, x])
                expected = f"{name}: {({1: 'important', 0: 'unimportant', -1: 'abstains'})[label]}"
                if kind != "adaptive":
                    count = int(tally.counts[level, y, x])
                    votes = f"important in {count}" if 2 * count > 100 else f"unimportant in {100 - count}"
                    expected += f", {votes} of 100"
                assert expected in line
                if kind == "radius" and label >= 0:
                    assert text.radius(float(certificate.arrays["radius"][level, y, x])) in line
            if kind == "importance-band":
                names = text.level_names(example.explanation)
                inner, outer = (int(certificate.arrays[name][y, x]) for name in ("inner", "outer"))
                assert claim.band_text(inner, outer, names) in line
        viewer.page.mouse.move(2, 2)
        viewer.page.wait_for_function("() => !document.querySelector('.readout').textContent.startsWith('Pixel 0')")


def test_the_overlap_curve_is_a_table_too(view, every):
    for kind in ("top-k-overlap", "real overlap"):
        example = every(kind)
        arrays = example.explanation.certificate.arrays
        viewer = view(Page("A", [example]))
        assert viewer.page.locator(".roomy svg.axes path.line").count() == arrays["overlap"].shape[0] * len(arrays["k"])
        viewer.page.click("details:has(.curve) summary")
        rows = viewer.page.evaluate("[...document.querySelectorAll('.curve tbody tr')].map(row => "
                                    "[...row.children].map(cell => cell.textContent))")
        flat = arrays["overlap"].reshape(-1, len(arrays["rho"]))
        assert rows == [[text.radius(float(rho)), *(text.percent(float(v)) for v in flat[:, i])]
                        for i, rho in enumerate(arrays["rho"])]
        assert viewer.page.locator(".curve .marked th").inner_text() == text.radius(0.03)


def test_no_slider_where_nothing_depends_on_tau(view, every):
    viewer = view(Page("A", [every(kind) for kind in ("top-k-overlap", "certified-rank", "quantile", "real rank")]))
    assert viewer.page.locator("#tau").count() == 0
    assert viewer.page.locator(".level").count() == 0
    assert viewer.page.locator(".readout").count() == 0
    assert "abstain" not in viewer.page.inner_text(".toolbar")


def test_certificates_of_one_map_stand_together(view, every):
    examples = [every(kind, name) for name in "ab" for kind in KINDS]
    examples += [replace(every("pixel", "b"), method="rise")]
    viewer = view(Page("A", examples))
    groups = viewer.page.evaluate("[...document.querySelectorAll('.cell')].map(cell => "
                                  "[cell.querySelectorAll('.panel').length, cell.querySelectorAll('.subject').length])")
    assert groups == [[len(KINDS), 1], [len(KINDS), 1], [1, 1]]
    viewer.page.select_option("#certifier", label="radius")
    visible = viewer.page.evaluate("[...document.querySelectorAll('.panel')].filter(p => p.offsetHeight > 0).length")
    assert visible == 2
    assert viewer.page.evaluate("[...document.querySelectorAll('.cell')].map(cell => cell.offsetHeight > 0)") == \
        [True, True, False]


@pytest.mark.parametrize("width", [1280, 900, 390, 320])
def test_no_kind_of_certificate_sticks_out_of_the_window(view, every, width):
    viewer = view(Page("A", [every(kind) for kind in KINDS]), viewport={"width": width, "height": 800})
    assert viewer.page.evaluate("document.documentElement.scrollWidth") <= width
    outside = """() => [...document.querySelectorAll("svg.axes")].flatMap(svg => {
      const box = svg.getBoundingClientRect();
      return [...svg.querySelectorAll("path, text")].map(part => part.getBoundingClientRect())
        .filter(part => part.left < box.left - 2 || part.right > box.right + 2 || part.top < box.top - 2
                || part.bottom > box.bottom + 2).map(part => [part.left - box.left, part.right - box.right]); })"""
    assert viewer.page.evaluate(outside) == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_of_charts_is_readable(view, every, scheme):
    viewer = view(Page("A", [every(kind) for kind in KINDS]), color_scheme=scheme)
    contrast = """() => {
      const light = colour => {
        const [r, g, b] = colour.match(/[0-9.]+/g).slice(0, 3).map(v => v / 255)
          .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const paper = light(getComputedStyle(document.body).backgroundColor);
      return [...document.querySelectorAll("svg.axes text, svg.axes path.line, .facts, figcaption, h5")].map(part => {
        const style = getComputedStyle(part);
        const ink = light(part.matches("path") ? style.stroke : part.matches("text") ? style.fill : style.color);
        return [part.matches("path") ? 2.2 : 4.5, (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)];
      }).filter(([wanted, found]) => found < wanted); }"""
    assert viewer.page.evaluate(contrast) == []


def test_tables_of_a_comparison_are_sorted_by_a_click(chromium, tmp_path) -> None:
    group = Group("run", "photos", "lite0", "", "activation", "final", 0.15, "pixel", 0.1012)
    values = {"grad-cam": 0.1, "lrp": 0.0995, "cam": 0.02, "rise": -0.3}
    found = [Summary(replace(group, method=method), "deletion.auc", math.nan, mean, 0.01, mean, mean, 5)
             for method, mean in values.items()]
    found += [Summary(replace(group, method=method), "certified", level, mean, 0.01, mean, mean, 5)
              for method, mean in values.items() for level in (50.0, 10.0) if (method, level) != ("lrp", 10.0)]
    path = tmp_path / "index.html"
    write_page(path, ["run"], tables(found), [])
    viewer = Viewer(chromium, path)
    heads = viewer.page.locator("table").first.locator("th")
    names = heads.all_text_contents()

    def click(column: str) -> list[str]:
        heads.nth(names.index(column)).locator("button").click()
        return viewer.page.locator("table").first.locator("tbody tr").evaluate_all(
            f"rows => rows.map(row => row.cells[{names.index('method')}].textContent)")

    assert click("K = 50 %") == ["rise", "cam", "lrp", "grad-cam"]
    assert click("K = 50 %") == ["grad-cam", "lrp", "cam", "rise"], "the other way round"
    assert heads.nth(names.index("K = 50 %")).get_attribute("aria-sort") == "descending"
    assert click("K = 10 %") == ["rise", "cam", "grad-cam", "lrp"], "what was not measured comes last"
    assert click("K = 10 %") == ["grad-cam", "cam", "rise", "lrp"]
    assert click("method") == sorted(values)
    assert viewer.errors == []
    assert [url for url in viewer.requests if not url.startswith("file:")] == []
    viewer.context.close()
