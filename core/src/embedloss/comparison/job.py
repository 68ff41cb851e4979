"""`Comparison`: every loss under one budget from one start, resumable."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from embedloss.comparison.plan import KEEP_ONE_OF, ROUNDS, Candidate, Plan, candidates, hold_out, measured_on, model_kind
from embedloss.comparison.runs import results, silent, train_one
from embedloss.comparison.standings import Standing, mark_noise
from embedloss.errors import EmbedlossError
from embedloss.evaluation.evaluators import LOWER_IS_BETTER, check_metric
from embedloss.training.config import RunConfig
from embedloss.training.manifest import fingerprint

Say = Callable[[str], None]
STATE_FILE, RUNS_FILE = "comparison.json", "runs.jsonl"
TIMED_STEPS = 5


class Comparison:
    """Checks a plan, then trains what is missing.

    Raises:
        EmbedlossError: for every mistake in the plan, the data or the folder, before anything is trained.
    """

    def __init__(self, plan: Plan, say: Say = print, overwrite: bool = False) -> None:
        plan.validate()
        self.plan, self.say, self.out = plan, say, Path(plan.out)
        self.created = False
        self.candidates, self.left_out = candidates(plan)
        replaced = self.out.with_name(f".{self.out.name}.replaced")
        if overwrite and self.out.is_dir():  # it comes back if the plan has a mistake
            shutil.rmtree(replaced, ignore_errors=True)
            self.out.rename(replaced)
        try:
            self.state: dict[str, Any] = self._open()
            self._prepare()
        except EmbedlossError:
            if self.created and not (self.out / STATE_FILE).is_file():  # only what was held out
                shutil.rmtree(self.out, ignore_errors=True)
            if replaced.is_dir():
                replaced.rename(self.out)
            raise
        shutil.rmtree(replaced, ignore_errors=True)

    def _prepare(self) -> None:
        plan = self.plan
        self.task = measured_on(plan, self.state["eval_data"])
        self.kind = model_kind(plan)
        names = self.names = self.task.names(kind=self.kind)
        if not names:
            raise EmbedlossError("E501", f"'{self.task.source}' ({self.task.format}) measures nothing with a {self.kind}.")
        self.metric = plan.metric or names[0]
        check_metric(self.metric, names, f"'{self.task.source}' ({self.task.format}) with a {self.kind}")
        for each in self.candidates if plan.losses else ():
            self._check(each)

    # -- the folder --------------------------------------------------------------------------------------------------
    def _open(self) -> dict[str, Any]:
        """The state of an earlier call with the same plan, or a new one; E402 for another plan."""
        plan = {**asdict(self.plan), "fingerprint": fingerprint(self.plan.data)}
        file = self.out / STATE_FILE
        if file.is_file():
            state: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            changed = [key for key, value in plan.items() if state["plan"].get(key) != value and key != "out"]
            if changed:
                raise EmbedlossError(
                    "E402",
                    f"'{self.out}' holds a comparison with another {', '.join(changed)}. Type --overwrite or another --out.",
                )
            return state
        if self.out.is_file() or (self.out.is_dir() and any(self.out.iterdir())):
            raise EmbedlossError(
                "E402", f"'{self.out}' holds something else. Type --overwrite to replace it, or another --out."
            )
        self.created = True
        train, test = (self.plan.data, self.plan.eval_data) if self.plan.eval_data else hold_out(self.plan, self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        return {"plan": plan, "data": train, "eval_data": test}

    def _write(self) -> None:
        staged = self.out / f"{STATE_FILE}.writing"
        staged.write_text(json.dumps(self.state, indent=2) + "\n", encoding="utf-8")
        staged.replace(self.out / STATE_FILE)

    def records(self) -> list[dict[str, Any]]:
        """Every finished run."""
        from embedloss.reporting.runs import read_entries

        file = self.out / RUNS_FILE
        return read_entries(file) if file.is_file() else []

    # -- runs --------------------------------------------------------------------------------------------------------
    def config(self, each: Candidate, seed: int, steps: int) -> RunConfig:
        """The settings of one run."""
        plan, name = self.plan, re.sub(r"[^A-Za-z0-9.]+", "-", each.loss).strip("-")[:60]
        place = next((i for i, c in enumerate(self.candidates, start=1) if c is each), 0)
        return RunConfig(
            model=self.state.get("start", plan.model), data=self.state["data"], loss=each.loss, kind=self.kind, seed=seed,
            out=str(self.out / "runs" / f"{place:02}-{name}-seed{seed}-steps{steps}"), map=plan.mapping, drop=each.drop,
            scale_labels=each.scale_labels, max_length=plan.max_length, batch_size=plan.batch_size, max_steps=steps,
            learning_rate=plan.learning_rate, logging_steps=max(steps // 20, 1), save_steps=0, overwrite=True,
        )  # fmt: skip

    def _check(self, each: Candidate) -> None:
        from embedloss.training.run import prepare

        prepare(self.config(each, 0, 1), silent)

    def start(self) -> dict[str, dict[str, float]]:
        """The one start of all runs, and what it and the baselines reach."""
        if "baselines" not in self.state:
            from embedloss.training.run import make_encoder, prepare

            config = self.config(self.candidates[0], 0, 1)
            ready = prepare(config, silent)
            encoder = make_encoder(config, ready.sources, self.kind, ready.num_classes, silent)
            start = self.plan.model
            if self.kind == "bi-encoder":  # a cross-encoder's new head depends on the loss
                start = str(self.out / "start")
                encoder.save(start)
            begin = time.perf_counter()
            found = {"untrained": self.task.measure(encoder)}
            seconds = time.perf_counter() - begin
            minutes = self.plan.minutes
            if minutes is not None and minutes * 60 < seconds:
                raise EmbedlossError(
                    "E501",
                    f"a budget of {minutes * 60:.1f} s is less than one evaluation takes: {seconds:.1f} s. Type --minutes N.",
                )
            self.state |= {"start": start, "baselines": {**found, **self.task.baselines()}}
            self._write()
        found = self.state["baselines"]
        known = list(found["untrained"])
        if self.plan.metric is None:  # of several similarities, the model's own
            self.metric = next((name for name in self.names if name in known), self.metric)
        check_metric(self.metric, known, f"'{self.task.source}' ({self.task.format})")
        return dict(found)

    def budget(self) -> None:
        """Steps of every loss: the same number, or as many as take the same minutes."""
        if self.plan.max_steps is not None:
            for each in self.candidates:
                each.steps = self.plan.max_steps
            return
        assert self.plan.minutes is not None
        known = self.state.setdefault("steps", {})
        for each in self.candidates:
            if each.loss not in known:
                folder = replace(self.config(each, 0, TIMED_STEPS), out=str(self.out / "timing"))
                found = train_one(asdict(folder), asdict(self.plan), self.state, measure=False)
                seconds = found.get("seconds", math.inf) / TIMED_STEPS
                known[each.loss] = 0 if "error" in found else int(self.plan.minutes * 60 / seconds)
                shutil.rmtree(self.out / "timing", ignore_errors=True)
                least = KEEP_ONE_OF ** (ROUNDS - 1) if self.plan.halving else 1
                if "error" not in found and known[each.loss] < least:
                    raise EmbedlossError(
                        "E501",
                        f"a step of '{each.loss}' takes {seconds:.1f} s: {self.plan.minutes:g} minutes are too few. Type "
                        f"--minutes {math.ceil(seconds * least / 6) / 10:g} or more.",
                    )
                self._write()
            each.steps = max(known[each.loss], 1)

    def rounds(self) -> Iterator[tuple[list[Candidate], int, list[int]]]:
        """Losses, divisor of the steps, and seeds of each round; the next one depends on what the last one gave."""
        left, seeds = list(self.candidates), list(range(self.plan.seeds))
        for number in range(ROUNDS if self.plan.halving else 1):
            last = not self.plan.halving or number == ROUNDS - 1
            yield left, 1 if last else KEEP_ONE_OF ** (ROUNDS - 1 - number), seeds if last else seeds[:1]
            order = [s.loss for s in self.standings() if not s.error]
            kept = order[: max(math.ceil(len(left) / KEEP_ONE_OF), 1)]
            left = [c for c in left if c.loss in kept]

    def run(self, jobs: int = 1) -> list[Standing]:
        """Train what is not trained yet; the standings, the best first."""
        self._write()
        if known := self.records():  # without the half of a line that a kill may have left
            (self.out / RUNS_FILE).write_text("".join(json.dumps(r) + "\n" for r in known), encoding="utf-8")
        self.start()
        self.budget()
        for left, divisor, seeds in self.rounds():
            done = {(r["loss"], r["seed"], r["steps"]) for r in self.records()}
            failed = {r["loss"] for r in self.records() if "error" in r}
            waiting = [(c, seed, c.steps // divisor) for seed in seeds for c in left if c.loss not in failed]
            waiting = [job for job in waiting if (job[0].loss, job[1], job[2]) not in done]
            arguments = (
                (asdict(self.config(*job)), asdict(self.plan), self.state) for job in waiting if job[0].loss not in failed
            )
            for number, record in enumerate(results(arguments, jobs), start=1):
                with (self.out / RUNS_FILE).open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
                failed.update([record["loss"]] if "error" in record else [])
                result = record.get("error") or f"{self.metric} {record['metrics'][self.metric]:.4f}, {record['seconds']:.1f} s"
                self.say(f"{number}/{len(waiting)} {record['loss']}, seed {record['seed']}, {record['steps']} steps: {result}")
        return self.standings()

    # -- what it gave --------------------------------------------------------------------------------------------------
    def standings(self) -> list[Standing]:
        """Every loss: those with the most steps first, then by the metric; failed ones last."""
        sign = 1 if self.metric.rsplit("/", 1)[-1] in LOWER_IS_BETTER else -1
        found = []
        for each in self.candidates:
            mine = [r for r in self.records() if r["loss"] == each.loss]
            good = [r for r in mine if "error" not in r]
            last = [r for r in good if r["steps"] == max(g["steps"] for g in good)]
            if last:
                values, seconds = [r["metrics"][self.metric] for r in last], [r["seconds"] for r in last]
                memory = max(r["memory"] for r in last)
                steps = last[0]["steps"]
                complete = steps == each.steps
                found.append(Standing(each.loss, steps, values, sum(seconds) / len(seconds), memory, complete=complete))
            elif mine:
                found.append(Standing(each.loss, mine[-1]["steps"], error=mine[-1]["error"]))
        share = {c.loss: 1 / max(c.steps, 1) for c in self.candidates}  # by minutes, every loss has its own number of steps
        found.sort(key=lambda s: (bool(s.error), -s.steps * share[s.loss], sign * s.mean if s.values else 0.0, s.loss))
        mark_noise(found)
        return found

    def folders(self, standings: list[Standing]) -> list[str]:
        """The folder of one run of every loss that was trained, in the order given."""
        records = [r for r in self.records() if "error" not in r]
        found = [next((r["folder"] for r in records if (r["loss"], r["steps"]) == (s.loss, s.steps)), None) for s in standings]
        return [folder for folder in found if folder]

    def winner_command(self, best: str) -> str:
        """What to type to train the best loss in full."""
        plan, each = self.plan, next(c for c in self.candidates if c.loss == best)
        parts = ["embedloss", "train", "--model", plan.model, "--data", plan.data]
        parts += [part for role, column in plan.mapping.items() for part in ("--map", f"{role}={column}")]
        parts += [part for column in each.drop for part in ("--drop", column)]
        parts += (["--kind", plan.kind] if plan.kind else []) + (["--scale-labels"] if each.scale_labels else [])
        parts += ["--max-length", str(plan.max_length)] if plan.max_length else []
        parts += ["--learning-rate", f"{plan.learning_rate:g}"] if plan.learning_rate else []
        return shlex.join([*parts, "--loss", best, "--batch-size", str(plan.batch_size), "--out", str(self.out / "winner")])
