"""Watching a run: stop on the first non-finite value, warn once on a dead loss or a collapse.

A non-finite value leaves a folder behind (model, loss and batch) from which `embedloss replay FOLDER` runs the step again.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from embedloss.errors import EmbedlossError
from embedloss.formats import get_format

DEAD_STEPS = 25  # this many steps in a row without any gradient are no accident
BATCH_FILE = "batch.pt"


class HealthWarning(UserWarning):
    """Something about a run that is likely to be a mistake; training goes on."""


class Health:
    """The guard of one run; the trainer calls it every step.

    Args:
        folder: where a reproducer is written.
        source: name of the data set, for messages.
    """

    def __init__(self, folder: Path, source: str = "") -> None:
        self.folder, self.source = folder, source
        self.still = 0
        self.counts: dict[str, int] = {}
        self.level = [0.0, 0.0]
        self.first: dict[str, dict[str, float]] = {}
        self.warned: set[str] = set()

    def state(self) -> dict[str, Any]:
        """What has been counted and said so far, for a checkpoint."""
        return {
            "still": self.still,
            "counts": self.counts,
            "level": self.level,
            "first": self.first,
            "warned": sorted(self.warned),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        self.still, self.first, self.warned = state["still"], dict(state["first"]), set(state["warned"])
        self.counts, self.level = dict(state["counts"]), list(state["level"])

    def check_output(self, module: Any, output: Mapping[str, Any], batch: Mapping[str, Any], step: int) -> None:
        """E207 if the loss or a term is not finite."""
        if all(bool(torch.isfinite(value.detach()).all()) for value in (output["loss"], *output["terms"].values())):
            self._check_batch(output, batch, step)
            return
        terms = [name for name, value in output["terms"].items() if not bool(torch.isfinite(value).all())]
        self._stop(module, f"the loss ({', '.join(terms) or 'total'})", batch, step)

    def check_start(self, module: Any) -> None:
        """E302 when nothing is trained, a warning when nothing of the encoder is."""
        if not any(p.requires_grad for p in module.parameters()):
            raise EmbedlossError(
                "E302", "no weight requires a gradient: the encoder is frozen and the loss has no weights of its own. "
                "Type encoder.requires_grad_(True)."
            )  # fmt: skip
        half = {str(p.dtype).removeprefix("torch.") for p in module.parameters() if p.requires_grad}
        if half & {"float16", "bfloat16"}:
            self._warn(
                "half",
                f"trained weights are {' and '.join(sorted(half))}: small updates are rounded away. Type encoder.float(); "
                "--precision bfloat16 computes in half precision and keeps the weights in float32.",
            )
        if not any(p.requires_grad for p in module.encoder.parameters()):
            self._warn(
                "frozen", "no weight of the encoder requires a gradient: only the loss's own weights are trained, if any."
            )

    def _check_batch(self, output: Mapping[str, Any], batch: Mapping[str, Any], step: int) -> None:
        """Warnings about batches and losses from which nothing can be learned, each after many steps in a row."""
        for key, message in (*_batch_faults(batch), *_output_faults(output)):
            place = f"{batch.get('dataset', '')}/{key}"
            self.counts[place] = self.counts.get(place, 0) + 1
            if self.counts[place] >= DEAD_STEPS:
                whose = f" of '{batch['dataset']}'" if "dataset" in batch else ""
                self._warn(key, f"{message} in each of the last {self.counts[place]} batches{whose}, up to step {step}.")
        found = {key for key, _ in (*_batch_faults(batch), *_output_faults(output))}
        for place in [p for p in self.counts if p.startswith(f"{batch.get('dataset', '')}/")]:
            if place.split("/", 1)[1] not in found:
                del self.counts[place]
        self._check_level(float(output["loss"].detach()), step)

    def _check_level(self, loss: float, step: int) -> None:
        """A warning when the loss stays far above where it began."""
        if step <= DEAD_STEPS:
            self.level[0] += abs(loss) / DEAD_STEPS
        self.level[1] += (abs(loss) - self.level[1]) / DEAD_STEPS  # a running mean
        if step > 2 * DEAD_STEPS and self.level[0] > 0 and self.level[1] > 10 * self.level[0] and self.level[1] > 1:
            self._warn(
                "diverged", f"the loss is {self.level[1] / self.level[0]:.0f} times what it was in the first {DEAD_STEPS} "
                f"steps ({self.level[0]:.3g}), at step {step}: it diverges. Lower the learning rate."
            )  # fmt: skip

    def check_scale(self, note: str | None) -> None:
        """A warning where a teacher's values are of another scale than what the model can give (`scales.mismatch`)."""
        if note is not None:
            self._warn("scale", note)

    def check_overflow(self, norm: float, scale: float) -> bool:
        """Whether a gradient that is not finite is what the scaler of half precision provokes; it skips the step."""
        return not math.isfinite(norm) and scale >= 1

    def check_gradient(self, module: Any, norm: float, batch: Mapping[str, Any], step: int) -> None:
        """E207 if a gradient is not finite; a warning after many steps without gradient."""
        if not math.isfinite(norm):
            self._stop(module, "a gradient", batch, step)
        self.still = self.still + 1 if norm == 0 else 0
        if self.still >= DEAD_STEPS:
            self._warn(
                "dead", f"no gradient for {self.still} steps up to step {step}: the loss learns nothing from these batches "
                "(no active triplet, equal labels, or a batch of one row)."
            )  # fmt: skip

    def check_spread(self, spread: Mapping[str, float], step: int, dataset: str = "") -> None:
        """A warning when embeddings that were spread have become all alike; each data set is compared with its own start.

        Args:
            spread: as `embedloss.training.probe.spread` gives it, of the same texts each time; {} says nothing.
            step: steps that are done.
            dataset: whose texts, of several data sets.
        """
        if not spread:
            return
        whose = f"'{dataset}'" if dataset else "the training data"
        similarity, known = spread["similarity"], dataset in self.first
        first = self.first.setdefault(dataset, dict(spread))
        if not known and similarity > 0.99:
            self._warn(
                "collapsed-start",
                f"the embeddings of different texts of {whose} are nearly equal at the start (mean cosine {similarity:.3f}): "
                "the model tells them hardly apart. Is it trained, and is the pooling right?",
            )
        # Some models have all cosines above 0.8 and are well: how far the distances have shrunk counts.
        if first["similarity"] <= 0.99 and similarity > 0.98 and 1 - similarity < 0.2 * (1 - first["similarity"]):
            self._warn(
                "collapse",
                f"at step {step} the embeddings of different texts of {whose} are nearly equal (mean cosine {similarity:.3f}, "
                f"{first['similarity']:.3f} at the start): lower the learning rate, or add a regulariser such as 0.1 * gor().",
            )
        if first["rank"] >= 5 and spread["rank"] < 0.2 * first["rank"] and similarity > 0.5:
            self._warn(
                "rank",
                f"at step {step} the embeddings of texts of {whose} span {spread['rank']:.1f} dimensions, {first['rank']:.1f} "
                "at the start: they collapse to few directions. Lower the learning rate, or add a regulariser such as "
                "0.1 * gor().",
            )

    def _warn(self, key: str, message: str) -> None:
        if key not in self.warned:
            self.warned.add(key)
            warnings.warn(message, HealthWarning, stacklevel=3)

    def _stop(self, module: Any, what: str, batch: Mapping[str, Any], step: int) -> None:
        rows = [key + 1 for key in batch.get("keys", [])]
        shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        place = self.folder / f"nonfinite-step-{step}"
        saved = ""
        try:
            from embedloss.training.trainer import save_step

            save_step(module, place)
            torch.save({"batch": dict(batch), "step": module.step, "seed": module.seed}, place / BATCH_FILE)
            saved = f" Type: embedloss replay {place}"
        except OSError as exception:
            saved = f" (the batch could not be saved: {exception})"
        source = f" of {self.source}" if self.source else ""
        if "dataset" in batch:
            source = f" of the data set '{batch['dataset']}'"
        raise EmbedlossError(
            "E207",
            f"{what} became non-finite at step {step}, in rows {shown}{source}. Training stopped; checkpoints are intact."
            + saved,
        )


def _batch_faults(batch: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a batch's labels and size say: (key, words)."""
    name, labels = batch.get("format"), batch.get("label")
    if name is None or labels is None:
        return []
    kind = get_format(name).label
    found = []
    if kind == "class" and get_format(name).roles == ("text",) and labels.ndim == 1:
        distinct = len(labels.unique())
        if distinct == 1:
            found.append(("one-class", "all rows had the same class"))
        elif distinct == len(labels):
            found.append(("unique-labels", "every row had a class of its own, so that no two belong together,"))
    if kind in ("score", "binary", "grades") and labels.numel() > 1 and bool((labels == labels.flatten()[0]).all()):
        found.append(("equal-labels", "all labels were equal"))
    return found


def _output_faults(output: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the loss's own metrics say: (key, words)."""
    active = [v for n, v in output["metrics"].items() if n.rsplit("/", 1)[-1] == "active"]
    if active and all(float(value) == 0 for value in active):
        return [("inactive", "no row, pair or triplet had anything to learn (metric `active` is 0)")]
    return []


@torch.no_grad()
def replay(folder: str) -> list[tuple[str, str]]:
    """Run a saved non-finite step again.

    Returns:
        (name, value) for the loss, each term and the embeddings of each role.
    """
    from embedloss.encoders import load_encoder
    from embedloss.training.step import TrainingStep
    from embedloss.training.trainer import load_step, read_loss, refuse_pickles

    path = Path(folder)
    if not (path / BATCH_FILE).is_file():
        raise EmbedlossError("E403", f"'{folder}' holds no {BATCH_FILE}; give a folder named nonfinite-step-... of a run.")
    with refuse_pickles(folder):
        saved = torch.load(path / BATCH_FILE, weights_only=True)
    loss = read_loss(path)
    guides = {key: load_encoder(key) for key in loss.requires().guides}
    step = TrainingStep(load_encoder(folder, kind=loss.spec.models[0]), loss, guides=guides, seed=saved["seed"])
    load_step(step, path)
    step.step = saved["step"]
    step.train()
    batch = saved["batch"]
    found: list[tuple[str, str]] = []
    if "layout" in batch:
        embeddings = step.embed(batch)
        for role in embeddings.roles:
            x = embeddings.own(role)
            bad = int((~torch.isfinite(x)).any(1).sum())
            found.append(
                (f"embeddings of {role}", f"{bad} of {len(x)} rows non-finite, largest value {float(x.abs().max()):.4g}")
            )
    output = step(batch)
    found += [(f"term {name}", f"{float(value):.6g}") for name, value in output["terms"].items()]
    found.append(("loss", f"{float(output['loss'].detach()):.6g}"))
    return found
