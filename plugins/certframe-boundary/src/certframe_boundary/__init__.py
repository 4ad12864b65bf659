"""The nearest decision boundary for certframe. Imports nothing heavy, as every hook module should."""

from __future__ import annotations

from certframe import Register, hookimpl


@hookimpl
def certframe_attributors(register: Register) -> None:
    """The attribution methods."""
    register("bsm", "certframe_boundary.attributors:Bsm",
             summary="gradient of the class at the nearest point of the decision boundary")
    register("big", "certframe_boundary.attributors:Big",
             summary="integrated gradients from the nearest point of the decision boundary")
    register("boundary-deeplift", "certframe_boundary.attributors:BoundaryDeepLift",
             summary="DeepLIFT against the nearest point of the decision boundary")
    register("agi", "certframe_boundary.agi:Agi",
             summary="what the class's score loses on adversarial ways to other classes")
    register("bsg", "certframe_boundary.bsg:Bsg",
             summary="mean gradient over noise, at an adversarial example of the smoothed model")


@hookimpl
def certframe_metrics(register: Register) -> None:
    """The metrics."""
    register("boundary", "certframe_boundary.metrics:Boundary",
             summary="distance to the nearest boundary point found, and whether one was found")
    register("alignment", "certframe_boundary.metrics:Alignment",
             summary="how far saliency and integrated gradients are from those of the boundary")


@hookimpl
def certframe_models(register: Register) -> None:
    """The networks of robust training."""
    register("trained", "certframe_boundary.networks:Trained",
             summary="a network that 'certframe train-robust' has trained, as trained:FILE")


@hookimpl
def certframe_commands(register: Register) -> None:
    """The commands."""
    register("attack", "certframe_boundary.commands.attack:attack",
             summary="Change images a little, and keep their class, so that the explanation goes elsewhere.")
    register("audit", "certframe_boundary.commands.audit:audit",
             summary="Attack certified images within their radius: do the certificates hold there?")
    register("train-robust", "certframe_boundary.commands.train_robust:train_robust",
             summary="Train a small network whose saliency maps do not move under attack.")
