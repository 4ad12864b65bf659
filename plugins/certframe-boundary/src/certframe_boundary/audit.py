"""Do certificates hold where they claim to? Attack within the radius, and count again with fresh noise.

What is proven is the smoothed map's behaviour everywhere in a ball. An audit goes to the points of the ball that were
made to break it, draws noisy copies there that have nothing to do with those of the run, and tests every certified
pixel, rank, overlap and class. Zero significant violations are expected, whatever the attack.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor

import certframe
from certframe_boundary.claims import SLACK, Claim, claims_of
from certframe_boundary.explained import class_of, differentiable, ranked, relaxed
from certframe_boundary.explanation_attack import AttackOptions, attack
from certframe_boundary.search.pgd import pgd
from certframe_boundary.softplus import Softened

ATTACKS = {"explanation": "drives the most important pixels out of the top", "class": "PGD on the class",
           "random": "a random point of the sphere"}


class AuditOptions(certframe.Options):
    """How a run is audited."""

    fraction: float = Field(0.9, gt=0.0, le=1.0, description="Part of the certified radius within which is attacked.")
    samples: int | None = Field(None, ge=1, description="Fresh noisy copies at each attacked image; as many as in the "
                                                        "run when left out.")
    alpha: float = Field(0.01, gt=0.0, lt=1.0, description="Probability of any significant violation at all, were the "
                                                           "certificates sound.")
    limit: int | None = Field(None, ge=1, description="Audit the first so many images only.")
    seed: int = Field(20260101, ge=0, description="Seed of attacks and fresh noise; another one than the run's.")
    steps: int = Field(20, ge=1, description="Steps of the attack on the explanation.")
    restarts: int = Field(3, ge=1, description="Starts of it.")
    copies: int = Field(8, ge=1, description="Noisy copies over which the attacked map is smoothed.")
    beta: float = Field(20.0, gt=0.0, allow_inf_nan=False, description="Sharpness of the softplus copy of the model.")


@dataclass(frozen=True)
class Part:
    """One certificate at one attacked image.

    Attributes:
        attack: see `ATTACKS`.
        kind: of the claims.
        radius: up to where they reach, in pixel units, with the `distance` of the attacked image.
        class_lost: whether the unsmoothed model gives the attacked image another class.
        note: what a reader should know.
    """

    image: str
    name: str
    cell: str
    attributor: str
    sigma: float
    certifier: str
    attack: str
    kind: str
    radius: float
    distance: float
    samples: int
    tested: int
    violated: int
    differing: int | None
    class_lost: bool
    note: str = ""


@dataclass(frozen=True)
class Skipped:
    """A certificate that was not audited, and why."""

    image: str
    name: str
    cell: str
    certifier: str
    reason: str


@dataclass(frozen=True)
class Audit:
    """What came of an audit.

    Attributes:
        certifiers: names of the certifiers by their keys.
        comparisons: number of comparisons at most, for which the level is corrected; `delta` is that of each.
    """

    parts: Sequence[Part]
    skipped: Sequence[Skipped]
    notes: Sequence[str]
    certifiers: Mapping[str, str]
    comparisons: int
    delta: float

    @property
    def violated(self) -> int:
        """Claims that are violated significantly."""
        return sum(part.violated for part in self.parts)

    @property
    def tested(self) -> int:
        """Claims that were tested."""
        return sum(part.tested for part in self.parts)


class Listener(Protocol):
    """Hears how the audit goes."""

    def begin(self, total: int, done: int) -> None:
        """So many attacked images there will be, so many of them are done."""

    def advance(self, name: str) -> None:
        """One more is done."""

    def stopped(self) -> bool:
        """Whether to stop now."""


@dataclass(frozen=True)
class _Job:
    """One image and cell: its certificates with their claims."""

    image: str
    cell: str
    claims: dict[str, list[Claim]]
    explanation: certframe.Explanation

    def distances(self, fraction: float) -> list[float]:
        """How far to attack: a part of every reach."""
        found = {round(fraction * claim.reach, 12) for claims in self.claims.values() for claim in claims}
        return sorted(found)


class Auditor:
    """One audit of a run.

    Args:
        run: the run.
        options: how.
        device: where to work; by default where the run says.

    Raises:
        UsageError: nothing is certified in the run, its model is gone or another one, or the seed is the run's.
    """

    def __init__(self, run: certframe.Run, options: AuditOptions, device: str | None = None) -> None:
        self.run, self.options = run, options
        if options.seed == run.config.seed:
            raise certframe.UsageError(f"--seed {options.seed} is the run's own seed: fresh noise needs another one")
        self.jobs, self.skipped = self._jobs()
        self.bench = certframe.Workbench(run, device=device)
        self.soft = Softened(self.bench.model, options.beta)
        self.notes: list[str] = []
        self.attacks = {cell: self._attacks(cell) for cell in dict.fromkeys(job.cell for job in self.jobs)}
        self.comparisons = sum(
            claim.comparisons * len(self.attacks[job.cell]) * len(job.distances(options.fraction))
            for job in self.jobs for claims in job.claims.values() for claim in claims)
        self.delta = options.alpha / max(1, self.comparisons)
        claims = [(job.image, job.cell, key, claim.kind, claim.reach, claim.comparisons)
                  for job in self.jobs for key, claims in job.claims.items() for claim in claims]
        identity = [options.model_dump(mode="json"), run.config.digest, claims]
        self.digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]

    def _jobs(self) -> tuple[list[_Job], list[Skipped]]:
        jobs: dict[tuple[str, str], _Job] = {}
        skipped: list[Skipped] = []
        images = self.run.image_keys()[:self.options.limit]
        for image, cell, certifier, explanation in self.run.explanations():
            if image not in images:
                continue
            claims = claims_of(explanation)
            if isinstance(claims, str):
                skipped.append(Skipped(image, explanation.name, cell, certifier, claims))
                continue
            job = jobs.setdefault((image, cell), _Job(image, cell, {}, explanation))
            job.claims[certifier] = claims
        if not jobs and not skipped:
            raise certframe.UsageError(f"{self.run.path} has no certificates yet: let 'certframe run' finish an image "
                                       "first")
        return list(jobs.values()), skipped

    def _attacks(self, cell: str) -> list[str]:
        """What an image of the cell is attacked by; a note says so when its maps have no gradient."""
        job = next(job for job in self.jobs if job.cell == cell)
        image = job.explanation.image.to(self.bench.device)
        if differentiable(self._map_of(job), image):
            return ["explanation", "class"]
        name = job.explanation.tally.identity["attributor"]
        note = (f"the maps of '{name}' have no gradient with respect to the picture: instead of an attack on the "
                "explanation, random points of the sphere and PGD on the class")
        if note not in self.notes:
            self.notes.append(note)
        return ["class", "random"]

    # -- the work

    def carry_out(self, folder: Path, listener: Listener) -> Audit | None:
        """Do what is not done yet; None when the listener stopped it. What is finished is kept in the folder."""
        todo = [(job, distance, kind) for job in self.jobs for distance in job.distances(self.options.fraction)
                for kind in self.attacks[job.cell]]
        places = [folder / f"{job.image}--{job.cell}--{distance:.6g}-{kind}-{self.digest}.json"
                  for job, distance, kind in todo]
        listener.begin(len(todo), sum(file.exists() for file in places))
        parts: list[Part] = []
        for (job, distance, kind), file in zip(todo, places, strict=True):
            if file.exists():
                parts += [Part(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
                continue
            if listener.stopped():
                return None
            found = list(self._part(job, distance, kind))
            _store(file, found)
            parts += found
            listener.advance(job.explanation.name)
        return Audit(parts, self.skipped, self.notes, self.run.certifier_names(), self.comparisons, self.delta)

    def _part(self, job: _Job, distance: float, kind: str) -> Iterator[Part]:
        e, o = job.explanation, self.options
        image = e.image.to(self.bench.device)
        moved, note = self._moved(job, image, distance, kind)
        away = float((moved.double() - image.double()).norm())
        if away > distance * (1 + SLACK):
            raise certframe.CertframeError(f"the attack '{kind}' left its ball on image '{e.name}': {away:.6g} is more "
                                           f"than {distance:.6g}")
        seed = int.from_bytes(hashlib.sha256(f"{o.seed}|{job.cell}|{kind}|{distance}".encode()).digest()[:4], "big")
        samples = o.samples or e.tally.samples
        tally = self.bench.tally(job.cell, moved, e.target, samples=samples, seed=seed, anchor=image)
        predict = class_of(self.bench.model)
        lost = bool(predict(moved[None]) != predict(image[None]))
        for certifier, claims in job.claims.items():
            for claim in claims:
                f = claim.test(tally, away / o.fraction, self.delta)
                yield Part(job.image, e.name, job.cell, str(e.tally.identity["attributor"]), e.tally.sigma, certifier,
                           kind, claim.kind, claim.reach, away, samples, f.tested, f.violated, f.differing, lost, note)

    def _moved(self, job: _Job, image: Tensor, distance: float, kind: str) -> tuple[Tensor, str]:
        """The attacked image, and what there is to say about it."""
        o, target = self.options, job.explanation.target
        model = self.bench.model.module
        if kind == "class":
            labels = class_of(self.bench.model)(image[None])
            found = pgd(model, image[None], labels, distance * (1 - SLACK), seed=o.seed)
            return found.images[0], "" if bool(found.success) else "the class was not lost"
        if kind == "random":
            generator = torch.Generator().manual_seed(o.seed)
            way = torch.randn(image.shape, generator=generator).to(image)
            return (image + way * (distance * (1 - SLACK) / way.norm())).clamp(0, 1), ""
        effort = AttackOptions(rho=distance * (1 - SLACK), k=self._k(job), steps=o.steps, restarts=o.restarts,
                               seed=o.seed, chunk=32)
        result = attack(self._map_of(job), class_of(self.bench.model), image[None], effort)
        if not bool(result.found):
            return image, f"no start of class {target} was found within the radius: the image itself was counted again"
        return result.images[0], ""

    def _k(self, job: _Job) -> float:
        """The level that the attack is on: of the certificate's, that with the most certified important pixels."""
        labels, levels = job.explanation.certificate.labels, job.explanation.tally.levels
        ones = [int((labels[i] == 1).sum()) for i in range(len(levels))] if labels.size else [0]
        try:
            k = float(levels[max(range(len(ones)), key=ones.__getitem__)])
        except ValueError:
            return 20.0
        return k if self.run.config.sparsifier.name == "top-k" and 0 < k < 100 else 20.0

    def _map_of(self, job: _Job) -> Any:
        """A smooth stand-in for the smoothed, sparsified map: relaxed maps of few noisy copies, of a softplus copy."""
        o, target, sigma, k = self.options, job.explanation.target, job.explanation.tally.sigma, self._k(job)
        generator = torch.Generator().manual_seed(o.seed)
        image = job.explanation.image
        noise = sigma * torch.randn((o.copies, *image.shape), generator=generator)
        ranking = self.run.config.sparsifier.options.get("ranking", "magnitude")

        def maps(z: Tensor, owners: Tensor) -> Iterator[Tensor]:
            targets = torch.full((len(z),), target, dtype=torch.int64, device=z.device)
            for one in noise.to(z):
                found = self.bench.maps(job.cell, z + one, targets, model=self.soft, anchor=image)
                yield relaxed(ranked(found, ranking), k / 100)

        return maps


def _store(file: Path, parts: Sequence[Part]) -> None:
    certframe.write_atomic(file, json.dumps([asdict(part) for part in parts]).encode())


def section(audit: Audit, options: AuditOptions) -> certframe.Section:
    """What the report shows."""
    groups: dict[tuple[Any, ...], list[Part]] = {}
    for part in audit.parts:
        certifier = audit.certifiers[part.certifier]
        groups.setdefault((part.attributor, part.sigma, certifier, part.kind, part.attack), []).append(part)
    rows = []
    for (attributor, sigma, certifier, kind, name), parts in groups.items():
        differing = [p.differing for p in parts if p.differing is not None]
        rows.append((attributor, sigma, certifier, kind, name, len({p.image for p in parts}),
                     max((p.distance for p in parts if p.tested), default=None), sum(p.tested for p in parts),
                     sum(differing) if differing else None, sum(p.class_lost for p in parts),
                     sum(p.violated for p in parts)))
    table = certframe.SectionTable(
        "Claims tested at attacked images",
        ("method", "σ", "certifier", "claims", "attack", "images", "distance at most", "tested",
         "differing", "class lost", "violated"), rows)
    reasons: dict[str, int] = {}
    for one in audit.skipped:
        reason = f"{audit.certifiers[one.certifier]}: {one.reason}"
        reasons[reason] = reasons.get(reason, 0) + 1
    text = [
        f"Every certified image was attacked within {options.fraction:g} of its certified radius, and counted again "
        "there with noise that the run has not seen. A claim is violated significantly when the fresh copies "
        f"contradict it at the level {audit.delta:.2g}, which is {options.alpha:g} over the {audit.comparisons:,} "
        "comparisons of this audit: with sound certificates, any violation at all has a probability of at most "
        f"{options.alpha:g}. "
        "Claims that differ in the fresh copies, and are not violated significantly, are near a tie.",
        "Attacks: " + "; ".join(f"{name} – {ATTACKS[name]}" for name in dict.fromkeys(p.attack for p in audit.parts))
        + "." if audit.parts else "There was nothing to attack.",
        *(f"{note[:1].upper()}{note[1:]}." for note in audit.notes),
        *(f"Not audited ({count} of the certificates): {reason}." for reason, count in reasons.items()),
        *dict.fromkeys(f"{p.name}: {p.note}." for p in audit.parts if p.note.startswith("no start"))]
    verdict = (f"{audit.violated:,} of {audit.tested:,} claims are violated significantly" if audit.violated else
               f"none of {audit.tested:,} claims is violated significantly")
    return certframe.Section("Audit", f"{verdict[:1].upper()}{verdict[1:]}.",
                             "bad" if audit.violated else "good" if audit.tested else "", text, (table,))


def as_dict(audit: Audit, options: AuditOptions, run: Path) -> dict[str, Any]:
    """The result as it is stored."""
    return {"run": str(run), "ok": not audit.violated, "violated": audit.violated, "tested": audit.tested,
            "comparisons": audit.comparisons, "correction": "bonferroni", "alpha": options.alpha, "delta": audit.delta,
            "options": options.model_dump(mode="json"), "notes": list(audit.notes),
            "parts": [asdict(part) for part in audit.parts], "skipped": [asdict(one) for one in audit.skipped]}
