"""Runs of a comparison: train one loss with one seed, measure it, and several at a time."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from embedloss.comparison.plan import Plan, measured_on
from embedloss.errors import EmbedlossError
from embedloss.training.config import RunConfig


def train_one(
    config: dict[str, Any], plan: dict[str, Any], state: dict[str, Any], measure: bool = True, threads: int = 0
) -> dict[str, Any]:
    """One run: trained, measured, recorded in its folder as well; a loss that fails is a record with an error."""
    import torch

    from embedloss.encoders import load_encoder
    from embedloss.reporting.runs import RESULTS_FILE
    from embedloss.training.memory import peak_memory, reset_peak
    from embedloss.training.run import run_training

    if threads:
        torch.set_num_threads(threads)
    run = RunConfig.from_mapping(config)
    record: dict[str, Any] = {"loss": run.loss, "seed": run.seed, "steps": run.max_steps, "folder": run.out}
    try:
        reset_peak()
        result = run_training(run, silent, quiet=True)
        record |= {"seconds": result.seconds, "memory": peak_memory()}
        if measure:
            record["metrics"] = measured_on(Plan(**plan), state["eval_data"]).measure(load_encoder(run.out))
            result.before, result.after = state["baselines"]["untrained"], record["metrics"]
            (Path(run.out) / RESULTS_FILE).write_text(json.dumps(vars(result), indent=2) + "\n", encoding="utf-8")
            for weights in Path(run.out).rglob("*.safetensors"):  # dozens of models would fill the disk
                weights.unlink()
    except EmbedlossError as error:
        record["error"] = str(error)
    except Exception as error:  # a stranger's loss may raise anything; it must not cost the other runs
        record["error"] = f"{type(error).__name__}: {error}"
    return record


def results(arguments: Iterable[tuple[Any, ...]], jobs: int) -> Iterator[dict[str, Any]]:
    """Records of runs, in order; each in a process of its own where several run at a time."""
    if jobs <= 1:
        yield from (train_one(*each) for each in arguments)
        return
    threads = max((os.cpu_count() or 1) // jobs, 1)
    with multiprocessing.get_context("spawn").Pool(jobs, maxtasksperchild=1) as pool:
        yield from pool.imap(_apart, [(each, threads) for each in arguments], chunksize=1)


def _apart(job: tuple[tuple[Any, ...], int]) -> dict[str, Any]:
    (config, plan, state), threads = job
    return train_one(config, plan, state, threads=threads)


def silent(text: str) -> None:
    """Nothing is said."""
    return None
