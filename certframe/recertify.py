"""Other certificates from the stored counts of a run, without a model."""

from __future__ import annotations

from certframe.config import Component
from certframe.errors import UsageError
from certframe.protocols import Certifier
from certframe.proving import prove
from certframe.registry import Registry
from certframe.store import Run, explanation_of
from certframe.tally import Tally
from certframe.worker import cells_of, component_key


def recertify(run: Run, component: Component, registry: Registry | None = None) -> str:
    """Certify everything that is finished with another certifier, and measure what needs no model.

    With one of the run's own certifiers what the run has measured with the model is kept.

    Returns:
        The certifier's key in the run's files and table.

    Raises:
        UsageError: nothing is finished yet, or the certifier needs what the tallies do not have.
    """
    certifier = component.build(registry)
    metrics = [c.build(registry) for c in run.config.metric]
    key, found = component_key(component), 0
    for image in run.image_keys():
        record = None
        for cell in cells_of(run.config):
            why_stopped = run.why_stopped(image, cell.key)
            if why_stopped is None:
                continue
            tally = run.tally(image, cell.key)
            if not found:
                _require_samples(certifier, component, tally)
            record, found = record or run.image(image), found + 1
            explanation = explanation_of(record.prepared, cell.attributor, tally, prove(certifier, tally))
            values = run.metrics(image, cell.key, key)
            for metric in metrics:
                if metric.requires <= explanation.carries:
                    values |= metric.compute(explanation)
            run.save_result(explanation, image, cell.key, run.config.attributor[cell.attributor].name, key,
                            metrics=values, stopped=why_stopped)
    if not found:
        raise UsageError(f"{run.path} has no finished image yet: let 'certframe run' finish one first")
    run.write_table()
    return key


def _require_samples(certifier: Certifier, component: Component, tally: Tally) -> None:
    """Refuse, before anything is written, what so few copies cannot certify anywhere.

    An image whose copies ended early abstains if these are too few; others of the run may have more.
    """
    needed, most = certifier.min_samples(tally.pixels, len(tally.levels)), max(tally.planned, tally.samples)
    if most < needed:
        height, width = tally.segments.shape[2:]
        raise UsageError(f"the {most} copies of this run cannot certify anything: certifier "
                         f"'{component.name}' needs at least {needed} for maps of {height}×{width} (choose a smaller "
                         "tau or a larger alpha, or run again with more samples)")
