"""``certframe attack``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

import certframe
from certframe_boundary.commands.common import (
    Device,
    Json,
    Quiet,
    Seed,
    Stop,
    as_text,
    device_of,
    options_of,
    progress,
    write_json,
)

_WHAT, _HOW = "What is attacked", "The attack"
VARIANTS, RANKINGS = ("plain", "smoothed", "sparsified"), ("magnitude", "signed", "positive")


def attack(
    model: Annotated[str, typer.Option("--model", "-m", help="Image classifier.", rich_help_panel=_WHAT)] = "lite0",
    data: Annotated[str, typer.Option("--data", "-d", help="Data set, or a path to a picture, a folder or a CSV.",
                                      rich_help_panel=_WHAT)] = "photos",
    attributor: Annotated[str, typer.Option("--attributor", "-a", help="A differentiable attribution method.",
                                            rich_help_panel=_WHAT)] = "gradient",
    variant: Annotated[str, typer.Option(
        "--map", help="plain: the map of the image; smoothed: its mean over noise; sparsified: the mean of the top K % "
                      "of each noisy map.", rich_help_panel=_WHAT)] = "plain",
    sigma: Annotated[float, typer.Option(help="Standard deviation of the noise of smoothed maps, in pixel units.",
                                         rich_help_panel=_WHAT)] = 0.15,
    copies: Annotated[int, typer.Option(min=1, help="Noisy copies that the attack smooths over.",
                                        rich_help_panel=_WHAT)] = 16,
    measured: Annotated[int, typer.Option(min=1, help="Fresh noisy copies that the overlap is measured with.",
                                          rich_help_panel=_WHAT)] = 64,
    ranking: Annotated[str, typer.Option(help="How scores become importance: magnitude, signed or positive.",
                                         rich_help_panel=_WHAT)] = "magnitude",
    limit: Annotated[int | None, typer.Option(min=1, help="Use only the first so many images.", show_default="all",
                                              rich_help_panel=_WHAT)] = None,
    option: Annotated[list[str] | None, typer.Option(
        "--option", "-o", metavar="KIND.OPTION=VALUE", help="Option of the model, the data set or the attributor, such "
                                                            "as attributor.layer=final.",
        rich_help_panel=_WHAT)] = None,
    rho: Annotated[float, typer.Option(help="Largest norm of the change, in pixel units.", rich_help_panel=_HOW)] = 0.5,
    norm: Annotated[str, typer.Option(help="l2 or linf.", rich_help_panel=_HOW)] = "l2",
    k: Annotated[float, typer.Option("-k", help="Percent of the pixels that are driven out of the top.",
                                     rich_help_panel=_HOW)] = 20.0,
    steps: Annotated[int, typer.Option(help="P, steps of each start.", rich_help_panel=_HOW)] = 20,
    tries: Annotated[int, typer.Option(help="Q, starts drawn at most.", rich_help_panel=_HOW)] = 100,
    restarts: Annotated[int, typer.Option(help="T, starts of the same class.", rich_help_panel=_HOW)] = 5,
    beta: Annotated[float, typer.Option(help="Sharpness of the softplus units that stand for rectifiers in the copy "
                                             "that is attacked.", rich_help_panel=_HOW)] = 20.0,
    chunk: Annotated[int, typer.Option(help="Images in one pass; changes no result.", rich_help_panel=_HOW)] = 8,
    out: Annotated[Path, typer.Option(help="Folder for pictures and attack.json.")] = Path("attack"),
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Change images a little, and keep their class, so that the explanation goes elsewhere (Levine et al. 2019).

    The attack follows the gradient of the map, in a copy whose rectifiers are softplus; the overlap of the most
    important pixels before and after is measured in the model itself, beside that of a random change of the same norm.
    Writes a picture for each image, and attack.json. The same command goes on where it was stopped.

    Examples:
    `certframe attack --model digits --data digits --limit 4`

    `certframe attack --data photos/ --attributor grad-cam --norm linf --rho 0.01`

    `certframe attack --map sparsified --sigma 0.15 --rho 0.1`
    """
    from certframe_boundary.explanation_attack import AttackOptions
    from certframe_boundary.trial import Setting, attempt, refuse_without_gradient

    for name, value, known in (("map", variant, VARIANTS), ("ranking", ranking, RANKINGS)):
        if value not in known:
            raise certframe.UsageError(f"--{name} {value!r}: choose one of {', '.join(known)}"
                                       f"{certframe.suggest(value, known)}")
    for name, number in (("sigma", sigma), ("beta", beta)):
        if not 0 < number < float("inf"):
            raise certframe.UsageError(f"--{name} {number:g}: give a positive number")
    options = options_of(AttackOptions, norm=norm, rho=rho, k=k, steps=steps, tries=tries, restarts=restarts, seed=seed,
                         chunk=chunk)
    where = device_of(device)
    built = {kind: certframe.build(kind, reference, _own(option, kind)) for kind, reference in
             (("model", model), ("dataset", data), ("attributor", attributor))}
    built["model"].module.to(where)
    setting = Setting(built["model"], built["attributor"], attributor, variant, ranking,  # type: ignore[arg-type]
                      sigma, copies, measured, beta)
    refuse_without_gradient(setting, where)
    settings = {"model": model, "weights": certframe.weights_hash(setting.model.module), "data": data,
                "attributor": attributor, "plugin_options": sorted(option or []), "map": variant,
                "options": options.model_dump(mode="json", exclude={"chunk"}), "sigma": sigma, "copies": copies,
                "measured": measured, "beta": beta}
    file, dataset, failed = out / "attack.json", built["dataset"], list[tuple[str, str]]()
    done = _stored(file, settings)
    stop, count = Stop(), min(len(dataset), limit or len(dataset))
    with stop.watched(), progress(quiet=quiet or as_json) as bar:
        task = bar.add_task("attacking", total=count)
        for index in range(count):
            if stop.wished:
                break
            name = dataset.name(index)
            bar.update(task, description=name)
            try:
                if done.get(index, {}).get("name") != name:
                    done.pop(index, None)  # of another image that was at this place
                    trial = attempt(setting, dataset.load(index), options, where)
                    _draw(out, index, trial, options)
                    done[index] = {"index": index, **trial.as_dict()}
                    write_json(file, _result(settings, done, failed))
            except certframe.UsageError as error:
                failed.append((name, str(error)))
            bar.update(task, advance=1)
    write_json(file, _result(settings, done, failed))
    result = _result(settings, {index: found for index, found in done.items() if index < count}, failed)
    typer.echo(as_text(result), nl=False) if as_json else _show(result["images"], options.k, out)
    for name, reason in failed:
        typer.secho(f"{name}: {reason}", err=True, fg="red")
    if stop.wished:
        typer.echo(f"stopped after {len(result['images'])} of {count} images, which are in {out}: the same command "
                   "goes on", err=True)
        raise typer.Exit(130)
    if failed:
        raise typer.Exit(1)


def _stored(file: Path, settings: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """What an attack with the same settings has found so far, by the images' places in the data set."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if {name: found[name] for name in settings} == settings:
            return {image["index"]: image for image in found["images"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass  # nothing there, or nothing of this command: it is written anew
    return {}


def _result(settings: dict[str, Any], done: dict[int, dict[str, Any]], failed: list[tuple[str, str]]) -> dict[str, Any]:
    return {**settings, "images": [done[index] for index in sorted(done)],
            "failures": [{"name": name, "reason": reason} for name, reason in failed]}


def _own(options: list[str] | None, kind: str) -> list[str]:
    """The options of a kind.

    Raises:
        UsageError: an option of another kind.
    """
    kinds = ("model", "dataset", "attributor")
    for text in options or []:
        if text.partition(".")[0] not in kinds:
            raise certframe.UsageError(f"option {text!r}: only options of {', '.join(kinds)} can be given here")
    return [text for text in options or [] if text.partition(".")[0] == kind]


def _draw(out: Path, index: int, trial: Any, options: Any) -> None:
    from certframe_boundary.pictures import before_and_after
    file = re.sub(r"[^A-Za-z0-9._-]+", "-", trial.name)[:60].strip(".-") or "image"
    caption = (f"{trial.target}: {trial.overlap:.0%} of the top {options.k:g} % stays, {trial.random:.0%} after a "
               f"random change; {options.norm} norm {trial.distance:.3g}")
    try:
        before_and_after(out / f"{index:05d}-{file}.png", (trial.image, trial.moved), (trial.before, trial.after),
                         options.k, caption)
    except OSError as error:
        raise certframe.CertframeError(f"cannot write into {out}: {error.strerror or error}") from error


def _show(found: list[dict[str, Any]], k: float, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, head in enumerate(("image", "class", f"top {k:g} % kept", "random change", "distance")):
        table.add_column(head, justify="left" if index < 2 else "right")
    for image in found:
        table.add_row(image["name"], image["target"], f"{image['overlap']:.1%}",
                      f"{image['overlap_of_random_change']:.1%}", f"{image['distance']:.4g}")
    console = Console(highlight=False)
    console.print(table)
    for image in found:
        for note in image["notes"]:
            console.print(f"{image['name']}: {note}", style="yellow", markup=False)
    console.print(f"\npictures and attack.json in {out}")
