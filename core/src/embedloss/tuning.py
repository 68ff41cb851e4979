"""Search for good settings with optuna: trials are ordinary runs, kept in folders, resumable through a database file."""

from __future__ import annotations

import difflib
import importlib.util
import json
import math
import shlex
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from embedloss.errors import EmbedlossError
from embedloss.training.config import RunConfig, coerce

STUDY = "embedloss"
DATABASE, BEST_FILE = "study.db", "best.yaml"


@dataclass(frozen=True)
class Range:
    """What a search may choose for one name.

    Args:
        name: of a setting, or of a field {name} in the loss expression.
        low, high: bounds, both included.
        log: search the exponent.
        whole: whole numbers only.
        choices: instead of bounds.
    """

    name: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False
    choices: tuple[str, ...] = ()

    @classmethod
    def read(cls, text: str) -> Range:
        """From "scale=10..40", "learning_rate=1e-6..1e-4:log" or "batch_size=16,32,64"; E401 otherwise."""
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        bounds, _, mode = value.partition(":")
        wrong = EmbedlossError("E401", f"--range {text}: type name=low..high, name=low..high:log or name=a,b,c.")
        if not equals or not name.isidentifier() or mode not in ("", "log"):
            raise wrong
        if ".." not in bounds:
            choices = tuple(part.strip() for part in value.split(",") if part.strip())
            if len(choices) < 2:
                raise wrong
            return cls(name, choices=choices)
        first, _, last = bounds.partition("..")
        try:
            low, high = float(first), float(last)
        except ValueError:
            raise wrong from None
        if not (math.isfinite(low) and math.isfinite(high) and low < high) or (mode and low <= 0):
            raise EmbedlossError(
                "E401", f"--range {text}: low must be below high" + (", and above 0 for log." if mode else ".")
            )
        whole = all(part.strip().lstrip("+-").isdigit() for part in (first, last))
        return cls(name, low, high, mode == "log", whole)

    def suggest(self, trial: Any) -> Any:
        """A value for an optuna trial."""
        if self.choices:
            return trial.suggest_categorical(self.name, list(self.choices))
        if self.whole:
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


@dataclass
class Outcome:
    """What a search found.

    Args:
        metric: by which trials are compared, the higher the better; an error counts negatively.
        trials: number, values and metric of each finished trial, the best first.
        failed: numbers of trials that could not be finished.
        command: trains the best settings.
    """

    metric: str
    trials: list[tuple[int, dict[str, Any], float]]
    failed: list[int]
    command: str


def tune(base: RunConfig, ranges: Sequence[Range], trials: int, say: Callable[[str], None] = print) -> Outcome:
    """Run trials until `trials` of them have finished, counting those of an earlier search in the same folder.

    Args:
        base: settings of every trial; `loss` may hold fields such as {scale}; `out` is the folder of the search.
        ranges: what is searched.
        trials: how many.
        say: where sentences go.

    Raises:
        EmbedlossError: E401 for ranges that fit nothing, E402 for a folder with another search, E404 without optuna.
    """
    if importlib.util.find_spec("optuna") is None:
        raise EmbedlossError("E404", "a search needs optuna: pip install 'embedloss[tune]'")
    import optuna

    from embedloss.training.run import prepare, run_training

    check_ranges(base, ranges)
    folder = Path(base.out)
    database = folder / DATABASE
    if folder.is_dir() and any(folder.iterdir()) and not database.is_file():
        raise EmbedlossError("E402", f"output folder '{folder}' is not empty and holds no search ({DATABASE}).")
    middle = {r.name: r.choices[0] if r.choices else int(r.low) if r.whole else r.low for r in ranges}
    prepare(replace(apply(base, middle), out=str(folder / "trial-0"), overwrite=True), lambda text: None)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(study_name=STUDY, storage=f"sqlite:///{database}", direction="maximize", load_if_exists=True)
    # Another seed for the rest of an interrupted search, which would draw its first values again.
    study.sampler = optuna.samplers.TPESampler(seed=base.seed + len(study.trials))
    searched = json.dumps([asdict(replace(base, resume=False, overwrite=False)), [asdict(r) for r in ranges]], sort_keys=True)
    if study.user_attrs.setdefault("search", searched) != searched:
        raise EmbedlossError("E402", f"'{folder}' holds a search of other settings or ranges; type another --out.")
    study.set_user_attr("search", searched)
    done = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    if done:
        say(f"{len(done)} finished trials of an earlier search count")
    failed = 0
    while len(done) < trials:
        trial = study.ask()
        values = {r.name: r.suggest(trial) for r in ranges}
        shown = ", ".join(f"{k}={_short(v)}" for k, v in values.items())
        place = folder / f"trial-{trial.number}"
        try:
            result = run_training(replace(apply(base, values), out=str(place), overwrite=True), lambda text: None)
            metric, value = _judge(base, result)
        except EmbedlossError as error:  # a rate that is too high, say
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            say(f"trial {trial.number}: {shown}: failed, {error}")
            failed += 1
            if failed >= 3 and not done:
                raise EmbedlossError("E401", f"the first {failed} trials failed; the last with {error}") from error
            if failed > 3 * trials:
                break
            continue
        trial.set_user_attr("metric", metric)
        study.tell(trial, value)
        for checkpoint in place.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        say(f"trial {trial.number}: {shown}: {metric} {value:.4f}")
        done = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    ranked = sorted(done, key=lambda t: (-t.value, t.number))
    lost = [t.number for t in study.trials if t.state == optuna.trial.TrialState.FAIL]
    found = [(t.number, dict(t.params), float(t.value)) for t in ranked]
    best = replace(apply(base, ranked[0].params), out=str(folder / "best"), resume=False, overwrite=False)
    (folder / BEST_FILE).write_text(best.to_yaml(), encoding="utf-8")
    return Outcome(ranked[0].user_attrs["metric"], found, lost, shlex.join(["embedloss", "train", str(folder / BEST_FILE)]))


def check_ranges(base: RunConfig, ranges: Sequence[Range]) -> None:
    """E401 for no range, a range twice, a name that is neither a setting nor a field of the loss, or no evaluation data."""
    if not ranges:
        raise EmbedlossError("E401", "nothing to search: type --range, such as --range learning_rate=1e-6..1e-4:log.")
    if not base.eval_data:
        raise EmbedlossError("E401", "trials are compared on evaluation data: add --eval-data DATA.")
    known = [f.name for f in fields(RunConfig) if f.name not in ("out", "resume", "overwrite", "plugins", "loss", "eval_data")]
    for place, each in enumerate(ranges):
        if each.name in [r.name for r in ranges[:place]]:
            raise EmbedlossError("E401", f"--range {each.name} is given twice.")
        if f"{{{each.name}}}" not in base.loss and each.name not in known:
            near = difflib.get_close_matches(each.name, known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else f" In the loss write {{{each.name}}} where its value goes."
            raise EmbedlossError("E401", f"--range {each.name} is no setting and no field of the loss.{hint}")


def apply(base: RunConfig, values: dict[str, Any]) -> RunConfig:
    """The settings with values put into the fields of the loss and into settings of their names."""
    import typing

    loss, hints, changes = base.loss, typing.get_type_hints(RunConfig), {}
    for name, value in values.items():
        if f"{{{name}}}" in loss:
            loss = loss.replace(f"{{{name}}}", _short(value))
        else:
            changes[name] = coerce(value, hints[name], name, "--range")
    return replace(base, loss=loss, **changes)


def _judge(base: RunConfig, result: Any) -> tuple[str, float]:
    """The metric that trials are compared by, the higher the better, and its value."""
    from embedloss.training.options import better_when_greater, check_metric

    check_metric(base.metric_for_best, result.after)
    name = base.metric_for_best or (result.best or {}).get("metric") or result.primary
    if name is None:
        raise EmbedlossError("E401", "the evaluation gives no metric by which trials could be compared.")
    value = result.after[name]
    return name, value if better_when_greater(name) else -value


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
