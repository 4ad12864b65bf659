"""``certframe train-robust``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import certframe
from certframe_boundary.commands.common import (
    Device,
    Json,
    Quiet,
    Seed,
    Stop,
    as_text,
    options_of,
    progress,
    write_json,
)

if TYPE_CHECKING:
    from rich.progress import Progress

_TRAIN, _ATTACK = "Training", "The attack on the explanation"


def train_robust(
    data: Annotated[str, typer.Argument(
        help="Images with labels: mnist:PATH or cifar10:PATH (their files, or .npz), another data set that has labels, "
             "or a folder of subfolders, one for each class.", show_default=False)],
    out: Annotated[Path, typer.Option(help="Directory for checkpoint, model and scores; a training there is resumed.",
                                      show_default=False)],
    weight: Annotated[float, typer.Option(
        "--weight", "-w", help="λ, the weight of the squared change of the saliency map under attack; 0 is plain "
                               "training.", rich_help_panel=_TRAIN)] = 0.0,
    epochs: Annotated[int, typer.Option(help="Passes over the images.", rich_help_panel=_TRAIN)] = 30,
    batch: Annotated[int, typer.Option(help="Images in a step of Adam.", rich_help_panel=_TRAIN)] = 512,
    rate: Annotated[float, typer.Option(help="Learning rate of Adam.", rich_help_panel=_TRAIN)] = 1e-3,
    architecture: Annotated[str, typer.Option(help="conv or dense, with softplus units.",
                                              rich_help_panel=_TRAIN)] = "conv",
    beta: Annotated[float, typer.Option(help="Sharpness of the softplus units.", rich_help_panel=_TRAIN)] = 10.0,
    limit: Annotated[int | None, typer.Option(help="Train on the first so many images only.", show_default="all",
                                              rich_help_panel=_TRAIN)] = None,
    size: Annotated[int, typer.Option(help="Width and height that pictures are resized to; tensors keep theirs.",
                                      rich_help_panel=_TRAIN)] = 32,
    rho: Annotated[float, typer.Option(help="l2 norm of the attack, in pixel units.", rich_help_panel=_ATTACK)] = 3.08,
    steps: Annotated[int, typer.Option(help="P, steps of the attack while training.", rich_help_panel=_ATTACK)] = 15,
    tries: Annotated[int, typer.Option(help="Q, starts drawn at most.", rich_help_panel=_ATTACK)] = 100,
    restarts: Annotated[int, typer.Option(help="T, starts of the attack while training.",
                                          rich_help_panel=_ATTACK)] = 3,
    test_images: Annotated[int, typer.Option(help="Test images whose explanations are attacked for the scores.",
                                             rich_help_panel=_ATTACK)] = 200,
    seed: Seed = 0,
    device: Device = "auto",
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a small softplus network whose saliency maps do not move under attack (Levine, Singla, Feizi 2019).

    Minimises cross-entropy + λ · ‖g(x) − g(x̃)‖², g the saliency map and x̃ the image under the attack of `certframe
    attack`. Writes `model.safetensors`, for `--model trained:…`, and `scores.json`: accuracy, and the overlap of the
    quarter of most important pixels before and after an attack with 20 steps and 5 starts. Ctrl-C stops after a step;
    the same command goes on from there, and one with more epochs goes on from the end.

    Examples:
    `certframe train-robust mnist:mnist.npz --weight 0.01 --out runs/robust`

    `certframe train-robust photos/ --size 32 --out runs/photos`
    """
    from certframe_boundary.commands.common import device_of
    from certframe_boundary.explanation_attack import AttackOptions
    from certframe_boundary.labelled import load
    from certframe_boundary.training import Training, TrainingOptions, score

    options = options_of(TrainingOptions, weight=weight, epochs=epochs, batch=batch, rate=rate, beta=beta, rho=rho,
                         architecture=architecture, steps=steps, tries=tries, restarts=restarts, seed=seed)
    if test_images < 1:
        raise certframe.UsageError(f"--test-images {test_images}: give at least 1")
    where = device_of(device)
    train, test = load(data, limit=limit, size=size, seed=seed)
    training = Training(train, options, where)
    checkpoint = out / "checkpoint.safetensors"
    if checkpoint.exists():
        training.load(checkpoint)
    stop = Stop()
    with stop.watched(), progress(quiet=quiet or as_json) as bar:
        complete = training.run(_Heard(training, bar, checkpoint, stop))
    training.save(checkpoint)
    if not complete:
        epoch, step = divmod(training.done, training.steps)
        typer.echo(f"stopped in epoch {epoch + 1}, after step {step} of {training.steps}; the same command resumes it "
                   f"({out})", err=True)
        raise typer.Exit(130)
    training.save_model(out / "model.safetensors")
    effort = AttackOptions(rho=rho, k=25.0, steps=20, tries=100, restarts=5, seed=seed + 1, chunk=1000)
    found = score(training.net, test, effort, test_images)
    result: dict[str, Any] = {
        "weight": weight, "accuracy": found.accuracy, "overlap": found.overlap, "standard_error": found.error,
        "k": effort.k, "rho": rho, "attacked": found.images, "without_start": found.unmoved,
        "test_images": len(test.x), "train_images": len(train.x), "options": options.model_dump(mode="json"),
        "history": training.history}
    write_json(out / "scores.json", result)
    if as_json:
        typer.echo(as_text(result), nl=False)
        return
    typer.echo(f"accuracy  {found.accuracy:.1%} of {len(test.x)} test images")
    typer.echo(f"overlap   {found.overlap:.1%} ± {found.error:.1%} of the top quarter stays under attack, ρ = {rho:g}, "
               f"{found.images} images")
    if found.unmoved:
        typer.echo(f"          for {found.unmoved} of them no start of the same class was found: they do not count")
    typer.echo(f"model     {out / 'model.safetensors'}")


class _Heard:
    """Shows a bar, and writes the state after every epoch."""

    def __init__(self, training: Any, bar: Progress, checkpoint: Path, stop: Stop) -> None:
        self.training, self.bar, self.checkpoint, self.stop = training, bar, checkpoint, stop
        self.task = bar.add_task("training", total=training.steps * training.options.epochs, completed=training.done)

    def step(self, epoch: int, done: int, of: int) -> None:
        self.bar.update(self.task, advance=1, description=f"epoch {epoch}")

    def epoch(self, epoch: int, loss: float, change: float) -> None:
        self.bar.console.print(f"epoch {epoch}: cross-entropy {loss:.4f}, squared change {change:.4g}", highlight=False)
        self.training.save(self.checkpoint)

    def stopped(self) -> bool:
        return self.stop.wished
