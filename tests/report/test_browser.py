"""The page in a browser: what it shows is what Python computed, at the run's τ and at every other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from certframe.report import paint, slider, text
from certframe.report.page import Page, write

READ = """() => [...document.querySelectorAll(".panel")].map(panel => ({
  tau: panel.querySelector(".tau")?.textContent, radius: panel.querySelector(".radius").textContent,
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


def check(shown: dict, labels: np.ndarray) -> None:
    """The maps, the overlay, the written shares and the bars are those of the labels."""
    for level, expected in enumerate(labels):
        np.testing.assert_array_equal(labels_of(shown["maps"][level]), expected)
        one, zero = float((expected == 1).mean()), float((expected == 0).mean())
        assert shown["rates"][level][:3] == [text.percent(one + zero), text.percent(one), text.percent(zero)]
        assert shown["bars"][2 * level: 2 * level + 2] == [one, zero]
    expected_overlay = np.asarray(paint.overlay(labels).convert("RGBA"))
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
    viewer.page.select_option("#row", label="rise, σ = 0.15")
    visible = "[...document.querySelectorAll('.panel')].map(panel => panel.offsetHeight > 0)"
    assert viewer.page.evaluate(visible) == [False, True, False]
    assert viewer.page.evaluate("document.querySelector('#panel-2 .picture').getBoundingClientRect().width") > 50
    viewer.page.select_option("#row", label="all")
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
