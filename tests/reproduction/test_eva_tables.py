"""Stored lines, tables and training of the EVA reproduction, on made-up data."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from eva_methods import METRICS, Bench, Lines, Plugin, Subject, explain, methods, stored_map, subjects, variants
from eva_nets import SETS, SIZES, cifar10_network, folded, images, mnist_network, model_of
from eva_tables import COLUMNS, Results, collect, main_table, number, ordinal, parts_of, reading, with_error
from eva_train import RECIPES, Recipe, augmented, cut_out, shifted, train
from eva_why import cells_table, gradients_table, pooled, relaxations_table, weights_table
from pages import fill
from safetensors.torch import save_file
from torch import nn

import certframe

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reproduction" / "eva.md"


def bench(folder: Path, count: int = 3) -> Bench:
    """An untrained network and random images."""
    torch.manual_seed(0)
    weights = folder / "mnist.safetensors"
    save_file(mnist_network().state_dict(), weights)
    model = model_of("mnist", weights)
    x = torch.rand(40, 1, 28, 28)
    return Bench("mnist", model, subjects(model, x, torch.arange(40) % 10, count), "weights", folder)


def test_lines_survive_a_cut_and_keep_settings_apart(tmp_path: Path) -> None:
    lines = Lines(tmp_path / "a" / "x.jsonl", "one")
    assert lines.by_image() == {}
    lines.add(3, {"v": 0.1})
    with lines.path.open("a") as file:
        file.write('{"key": "one", "image": 4, "v"')
    lines.add(5, {"v": 0.2})
    Lines(lines.path, "two").add(3, {"v": 0.3})
    assert {image: line["v"] for image, line in lines.by_image().items()} == {3: 0.1, 5: 0.2}
    assert [line["v"] for line in Lines(lines.path, "two")] == [0.3]


def test_nothing_is_computed_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, label, plugin = bench(tmp_path, 2), "Saliency", Plugin("attributor", "gradient")
    chosen = {"deletion": METRICS["deletion"]}
    small.run(label, plugin, chosen, lambda _: None)
    before = small.values(label, plugin, METRICS["deletion"]).by_image()
    assert set(before) == {s.index for s in small.subjects}
    large = bench(tmp_path, 3)
    assert [s.index for s in large.subjects[:2]] == [s.index for s in small.subjects]
    calls = []
    monkeypatch.setattr("eva_methods.explain", lambda model, subject, p: calls.append(subject.index) or explain(
        model, subject, p))
    large.run(label, plugin, chosen, lambda _: None)
    assert calls == [large.subjects[2].index]
    after = large.values(label, plugin, METRICS["deletion"]).by_image()
    assert len(after) == 3
    assert all(after[image] == line for image, line in before.items())


def test_maps_are_stored_exactly_and_made_the_same_again(tmp_path: Path) -> None:
    subject = bench(tmp_path).subjects[0]
    model, plugin = bench(tmp_path).model, Plugin("attributor", "smoothgrad", {"samples": 3})
    first, second = (stored_map(explain(model, subject, plugin)) for _ in range(2))
    assert first.shape == (28, 28)
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", SETS)
def test_every_method_exists_and_takes_its_settings(name: str) -> None:
    wanted = methods(name) | variants(name)
    for plugin in (*wanted.values(), *METRICS.values()):
        plugin.build()
    assert len({plugin.key for plugin in wanted.values()}) == len(wanted)
    assert ("Grad-CAM" in wanted) == (name == "cifar10")


def test_tables_name_the_best_and_compare_image_by_image() -> None:
    rng = np.random.default_rng(0)
    base = rng.random((20, 4))
    shift = np.array([0.1, 0.1, -0.1, 0.1])
    found = Results(list(range(20)), {"Saliency": base + shift, "EVA": base, "Random": base - 1},
                    {"Saliency": 0.01, "EVA": 0.2, "Random": 0.0})
    lines = main_table(found, "mnist").splitlines()
    assert len(lines) == 6
    assert [cell.startswith(" **") for cell in lines[3].split("|")[2:6]] == [True, False, True, True]
    assert ".736" in lines[-1]
    said = reading(found, "EVA")
    assert "Deletion: EVA is 1st of 2, .100 ± .000 ahead of Saliency" in said
    assert "Insertion: EVA is 2nd of 2, .100 ± .000 behind Saliency" in said


def test_only_images_that_all_methods_have_are_compared(tmp_path: Path) -> None:
    subject = bench(tmp_path, 3)
    wanted = {"A": Plugin("attributor", "gradient"), "B": Plugin("attributor", "random")}
    for label, count in (("A", 3), ("B", 2)):
        for one in subject.subjects[:count]:
            subject.maps(label, wanted[label]).add(one.index, {"seconds": 1.0})
            for column in COLUMNS:
                subject.values(label, wanted[label], METRICS[column.metric]).add(one.index, {column.value: 0.5})
    found = collect(subject, wanted | {"C": Plugin("attributor", "occlusion")})
    assert found.images == sorted(s.index for s in subject.subjects[:2])
    assert set(found.values) == {"A", "B"}


def test_numbers() -> None:
    assert [number(v) for v in (0.0891, -0.012, 1.2345, -0.0001, 0.9999)] == [".089", "−.012", "1.234", ".000", "1.000"]
    assert with_error(np.array([0.1, 0.3])) == ".200 ± .100"
    assert [ordinal(n) for n in (1, 2, 3, 4, 11, 21)] == ["1st", "2nd", "3rd", "4th", "11th", "21st"]


def test_the_page_has_a_place_for_every_part() -> None:
    fill(PAGE.read_text(encoding="utf-8"), {name: "x" for images in SETS for name in parts_of(images)} | {"size": "x"})


def test_folding_changes_nothing() -> None:
    torch.manual_seed(0)
    network = cifar10_network(training=True)
    x = torch.rand(8, 3, 32, 32)
    for _ in range(3):
        network(x)
    network.eval()
    plain = folded(network)
    assert [type(layer) for layer in plain] == [type(layer) for layer in cifar10_network()]
    torch.testing.assert_close(plain(x), network(x), rtol=1e-4, atol=1e-5)


def test_augmentation_keeps_range_and_content() -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(5, 3, 32, 32, generator=g)
    seen = augmented(x, g)
    assert seen.shape == x.shape
    assert 0 <= seen.min() <= seen.max() <= 1
    moved = shifted(x, 2, g)
    inside = [any(torch.equal(moved[i, :, 2:-2, 2:-2], x[i, :, 2 + a:30 + a, 2 + b:30 + b])
                  for a in range(-2, 3) for b in range(-2, 3)) for i in range(5)]
    assert all(inside)
    holes = (cut_out(x, 8, g) != x).any(1).flatten(1).sum(1)
    assert ((holes > 0) & (holes <= 64)).all()


def test_training_goes_on_where_it_was(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(0)
    y = torch.randint(3, (96,), generator=g)
    x = (y[:, None] / 3 + 0.1 * torch.rand(96, 12, generator=g)).view(96, 1, 3, 4)

    def run(state: Path, stop: int | None) -> nn.Module:
        torch.manual_seed(1)
        network = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
        said: list[str] = []

        def say(line: str) -> None:
            said.append(line)
            if len(said) == stop:
                raise KeyboardInterrupt
        return train(network, x, y, Recipe(4, 16, 1e-2), lambda batch, _: batch, state, 0, say)

    whole = run(tmp_path / "whole", None)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", 2)
    resumed = run(tmp_path / "cut", None)
    for first, second in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(first, second)
    assert {name: dataclasses.asdict(recipe)["epochs"] > 0 for name, recipe in RECIPES.items()}.keys() == set(SETS)


def test_the_data_as_they_are(data_dir: Path) -> None:
    for name in SETS:
        x, y = images(data_dir / f"{name}.npz", "test")
        assert tuple(x.shape[1:]) == SIZES[name]
        assert 0 <= x.min() < x.max() <= 1
        assert len(x) == len(y)
        assert y.unique().tolist() == list(range(10))


def test_subjects_are_right_and_in_a_fixed_order(tmp_path: Path) -> None:
    one = bench(tmp_path, 40)
    assert all(isinstance(s, Subject) for s in one.subjects)
    with torch.no_grad():
        assert all(int(one.model.module(s.image[None]).argmax()) == s.target for s in one.subjects)


def test_maps_are_averaged_over_cells(tmp_path: Path) -> None:
    fine = torch.arange(28.0 * 28).view(28, 28)
    found = pooled(fine, (28, 28))
    assert float(found[0, 0]) == pytest.approx(float(fine[:3, :3].mean()))
    assert float(found[11, 11]) == pytest.approx(float(fine[26:, 26:].mean()))
    coarse = torch.rand(12, 12)
    assert torch.equal(pooled(coarse, (28, 28)), coarse)
    subject = bench(tmp_path)
    assert cells_table(subject) == gradients_table(subject) == relaxations_table(subject) == "Not measured yet."
    assert weights_table(subject, tmp_path, None) == "Not measured yet."


def test_on_a_linear_network_eva_ranks_as_the_gradient_does(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = certframe.TorchModel(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), (1, 28, 28))
    subject = dataclasses.replace(bench(tmp_path), model=model)
    plugin = methods("mnist")["EVA"]
    for one in subject.subjects:
        subject.maps("EVA", plugin).add(one.index, explain(model, one, plugin))
    assert "| EVA of the linearised network | 1.000 ± 0.000 |" in gradients_table(subject)
