"""What is compared: the plan, the losses that take part, and the data they are measured on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from embedloss.errors import EmbedlossError
from embedloss.evaluation.task import Task

KEEP_ONE_OF = 3  # successive halving goes on with a third of the losses and three times the steps
ROUNDS = 3
HELD_OUT, MOST_HELD_OUT, FEWEST_ROWS = 0.1, 1000, 40


@dataclass
class Plan:
    """What is compared.

    Args:
        data: training data.
        out: folder of the runs.
        model: the start of every run.
        eval_data: what runs are measured on; without, a tenth of the rows is held out.
        losses: expressions; without, every loss that `suggest` names for the data.
        max_steps: budget of a run in steps; or
        minutes: of training. Steps are counted from a few timed ones, so that every run has the same minutes.
        seeds: how many seeds, from 0 on.
        metric: to rank by; the evaluation data's most telling one by default.
        halving: all losses get a ninth of the budget and one seed, the best third of them a third, the best ninth all.
        batch_size, learning_rate, kind, max_length, mapping, drop, split: as in training and evaluation.
    """

    data: str
    out: str
    model: str
    eval_data: str | None = None
    losses: list[str] = field(default_factory=list)
    max_steps: int | None = None
    minutes: float | None = None
    seeds: int = 1
    metric: str | None = None
    halving: bool = False
    batch_size: int = 32
    learning_rate: float | None = None
    kind: str | None = None
    max_length: int | None = None
    mapping: dict[str, str] = field(default_factory=dict)
    drop: list[str] = field(default_factory=list)
    split: str | None = None

    def validate(self) -> None:
        """E401 for a budget that is missing or leaves no step, and for other numbers out of range."""
        if (self.max_steps is None) == (self.minutes is None):
            raise EmbedlossError("E401", "give one budget: --max-steps N or --minutes N.")
        least = KEEP_ONE_OF ** (ROUNDS - 1) if self.halving else 1
        if self.max_steps is not None and self.max_steps < least:
            why = f": the first of {ROUNDS} rounds would have no step" if self.halving else ""
            raise EmbedlossError(
                "E401", f"a budget of {self.max_steps} steps is too small{why}. Type --max-steps {least} or more."
            )
        if self.minutes is not None and not self.minutes > 0:
            raise EmbedlossError("E401", f"--minutes must be above 0, got {self.minutes:g}.")
        if self.seeds < 1:
            raise EmbedlossError("E401", f"--seeds must be at least 1, got {self.seeds}.")


@dataclass
class Candidate:
    """A loss that takes part: its expression, what the data needs for it, and the steps of its budget."""

    loss: str
    drop: list[str]
    scale_labels: bool
    steps: int = 0


def candidates(plan: Plan) -> tuple[list[Candidate], dict[str, str]]:
    """The losses to train, in the order of `suggest`, and those that were left out with the reason."""
    from embedloss.registry import create_loss, expression_specs, get_spec
    from embedloss.suggest import suggest

    for expression in plan.losses:
        expression_specs(expression)  # a typing mistake answers before the data is read
    answer = suggest(plan.data, mapping=plan.mapping, drop=plan.drop, kind=model_kind(plan), model=plan.model)
    out_of = {r.binding.format.name: list(r.left_out) for r in answer.found.readings}
    if plan.losses:
        found = []
        for expression in dict.fromkeys(plan.losses):
            names = create_loss(expression).spec.format_names()
            known = next((s for s in answer.as_is if s.loss == expression), None)
            drop = next((out_of[name] for name in out_of if name in names), list(plan.drop))
            found.append(Candidate(expression, drop, known is not None and "--scale-labels" in known.command))
        return found, {}
    left_out, found = dict(answer.refused), []
    for each in answer.as_is:
        spec = get_spec(each.loss)
        if spec.recompute:  # the same gradients as the loss that it is named after
            left_out[each.loss] = "the same loss with recomputation"
        else:
            found.append(Candidate(spec.example or each.loss, out_of[each.format], "--scale-labels" in each.command))
    if not found:
        why = "".join(f" Not {name}: {reason}" for name, reason in list(left_out.items())[:1])
        raise EmbedlossError("E101", f"no loss takes '{plan.data}' as it is. Type: embedloss suggest {plan.data}.{why}")
    return found, left_out


def model_kind(plan: Plan) -> str:
    """The kind of model that is trained: the one asked for, else that of the folder, else a bi-encoder."""
    if plan.kind:
        return plan.kind
    from embedloss.encoders import kind_of

    return (kind_of(plan.model) if Path(plan.model).expanduser().is_dir() else None) or "bi-encoder"


def measured_on(plan: Plan, source: str) -> Task:
    """The evaluation data; of the columns named for the training data, those that it has."""
    from embedloss.chunks import Chunks
    from embedloss.evaluation.retrieval import is_collection

    names = [] if is_collection(source) else Chunks(source).schema.names
    mapping = {role: column for role, column in plan.mapping.items() if column in names}
    return Task(source, mapping=mapping, drop=[c for c in plan.drop if c in names], split=plan.split, loosely=True)


def hold_out(plan: Plan, out: Path) -> tuple[str, str]:
    """Two files: a tenth of the rows, at most 1,000, to evaluate on, and the others; rows with the same first text together."""
    import numpy as np
    import pyarrow.parquet

    from embedloss.check import table_of
    from embedloss.data import load_rows
    from embedloss.evaluation.task import best_binding

    rows = load_rows(plan.data)
    if len(rows) < FEWEST_ROWS:
        raise EmbedlossError("E106", f"'{plan.data}' has {len(rows)} rows, too few to hold some out; type --eval-data FILE.")
    binding = best_binding(rows, plan.mapping, plan.drop, loosely=True)
    first = next(iter(binding.columns.values()))[0]
    texts = [str(value) for value in rows[first][:]]
    order = np.random.default_rng(0).permutation(np.array(list(dict.fromkeys(texts)), dtype=object))
    wanted, chosen, counts = min(int(len(rows) * HELD_OUT), MOST_HELD_OUT), set(), dict.fromkeys(order, 0)
    for text in texts:
        counts[text] += 1
    for text in order:
        if wanted <= 0:
            break
        chosen.add(text)
        wanted -= counts[text]
    out.mkdir(parents=True, exist_ok=True)
    held = [i for i, text in enumerate(texts) if text in chosen]
    kept = [i for i, text in enumerate(texts) if text not in chosen]
    for name, part in (("train", kept), ("eval", held)):
        pyarrow.parquet.write_table(table_of(rows.select(part)), out / f"{name}.parquet")
    return str(out / "train.parquet"), str(out / "eval.parquet")
