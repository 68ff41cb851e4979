"""A healthy run raises no alarm: every registered loss for many steps on data from which it can learn.

    python tests/bench/healthy.py --steps 1000 --write docs/results/healthy.md

The model is one trained matrix on random vectors (a static encoder without texts), so that 1,000 steps take seconds. Batches
are those of the conformance kit, with positives near their anchors and teachers of a scale that cosine similarities reach.
"""

from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from embedloss import list_losses
from embedloss.testing.case import Case
from embedloss.training.health import Health, HealthWarning
from embedloss.training.probe import spread
from embedloss.training.scales import mismatch

WIDTH = 16


def related(batch: Any) -> Any:
    """The batch with texts that belong together near each other, and labels of a scale that can be reached."""
    texts = dict(batch.texts)
    roles = [role for role in batch.roles if batch.counts.get(role) is None]
    if len(roles) > 1 and len(texts[roles[0]]) == len(texts[roles[1]]):
        for name in [n for n in texts if n.rsplit("/", 1)[-1] == roles[1]]:
            texts[name] = 0.3 * texts[name] + 0.7 * texts[name.replace(roles[1], roles[0])]
    labels = batch.labels
    if labels is not None and batch.format.label in ("margin", "margins", "scores"):
        labels = 0.2 * labels
    return replace(batch, texts=texts, labels=labels)


def watch(name: str, steps: int, rows: int = 16) -> tuple[list[str], float]:
    """The alarms of a run, and its last loss."""
    case = Case(name)
    case = case.variant(*case.variants()[0])
    width = case.dim if case.fixed_width else WIDTH
    loss = case.loss(width, torch.float32)
    weight = torch.nn.Parameter(torch.eye(width) + 0.1 * torch.randn(width, width, generator=torch.Generator().manual_seed(0)))
    optimizer = torch.optim.AdamW([weight, *loss.parameters()], lr=1e-3)
    health = Health(Path("unused"), name)
    value = 0.0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, steps + 1):
            batch = related(case.batch(rows, width, seed=step, step=step).to(torch.float32))
            # Scores are those of a cross-encoder of one weight.
            leaves = {n: t * weight[0, 0] if n == "scores" else t for n, t in batch.texts.items()}
            leaves |= {n: t @ weight for n, t in leaves.items() if n != "scores" and not n.startswith("guide")}
            inputs = batch.build(leaves)
            output = loss(inputs, batch.labels)
            if step <= 3 and batch.labels is not None:
                health.check_scale(mismatch(loss, inputs, batch.labels))
            given = {"format": case.format.name, "label": batch.labels, "keys": list(range(rows))}
            health.check_output(None, vars(output) | {"loss": output.total}, given, step)
            optimizer.zero_grad()
            output.total.backward()
            norm = torch.nn.utils.clip_grad_norm_([weight, *loss.parameters()], 1.0)
            health.check_gradient(None, float(norm), given, step)
            optimizer.step()
            if step % 10 == 0:
                seen = (
                    []
                    if case.kind == "scores"
                    else [leaves[role] for role in batch.roles if batch.counts.get(role) is None][:2]
                )
                health.check_spread(spread(*seen) if seen else {}, step)
            value = float(output.total.detach())
    return [str(w.message) for w in caught if issubclass(w.category, HealthWarning)], value


def main() -> int:
    """The command line; 0 if no loss raised an alarm."""
    parser = argparse.ArgumentParser(description="Count the alarms of healthy runs.")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--write", default=None, help="a page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines, alarms, begin = [], 0, time.perf_counter()
    for spec in list_losses():
        name = spec.name if not spec.example else spec.example
        if spec.modifier and not spec.example:
            name = f"{spec.name}(mnrl)"
        started = time.perf_counter()
        try:
            found, value = watch(name, options.steps)
        except Exception as exception:
            found, value = [f"{type(exception).__name__}: {str(exception).splitlines()[0]}"], float("nan")
        alarms += len(found)
        print(f"{spec.name}: {len(found)} alarms, loss {value:.4g}, {time.perf_counter() - started:.1f} s", *found, sep="\n  ")
        lines.append(f"| `{name}` | {options.steps:,} | {len(found)} | {value:.4g} |")
    print(f"{len(lines)} losses, {options.steps} steps each, {alarms} alarms, {time.perf_counter() - begin:.0f} s")
    if options.write:
        head = [
            "# Healthy runs raise no alarm", "",
            f"Every registered loss for {options.steps:,} steps on data from which it can learn: {alarms} alarms. The model is",
            "one trained matrix on random vectors. Command: `python tests/bench/healthy.py --write PAGE`.", "",
            "| loss | steps | alarms | last loss |", "| --- | ---: | ---: | ---: |",
        ]  # fmt: skip
        Path(options.write).write_text("\n".join([*head, *lines]) + "\n", encoding="utf-8")
    return 1 if alarms else 0


if __name__ == "__main__":
    sys.exit(main())
