"""Kill runs with SIGKILL at random points, resume them, and compare everything with a run that nobody disturbed.

    python tests/chaos.py                  at least 20 kills over all kinds of run
    python tests/chaos.py --write docs/results/chaos.md
    python tests/chaos.py --fork           in forks of this process, which start faster than interpreters
    python tests/chaos.py --short          one kill a kind, in forks
    python tests/chaos.py --seed 7         the kills of an earlier session

A kill is drawn as (step, n) or (save, n): the process kills itself at the n-th function call, of Python or C, after the step or
the writing of the checkpoint began. Each attempt is a process (or two) of its own, which is killed or comes to the end.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS = 22
SAVE = 4
WORDS = "river train bread cat sugar matrix window paris cold light spring vote water gzip dog order city plant yeast sun"
TIMES = ("runtime", "per_second", "total_flos")  # of the log, what a clock or the number of starts decides


@dataclass(frozen=True)
class Kind:
    """One kind of run.

    Args:
        loss: with weights of its own wherever possible.
        settings: what differs from `BASE`.
        processes: how many train together.
    """

    loss: str
    settings: dict[str, Any]
    processes: int = 1


KINDS = {
    "plain": Kind("softmax", {"data": "classes.jsonl", "eval_steps": 6, "sampler": "random", "loss_learning_rate": 0.01}),
    "recompute": Kind(
        "contrastive_tension_in_batch_negatives()",
        {"data": "texts.jsonl", "recompute": True, "chunk_tokens": 60, "gradient_accumulation": 2, "scheduler": "cosine"},
    ),
    "several data sets": Kind(
        "",
        {
            "data": {
                "classes": {"path": "classes.jsonl", "loss": "softmax()", "weight": 2.0},
                "vectors": {"path": "vectors.jsonl", "loss": "embed_distill(projection_dim=12)", "weight": 1.0},
            },
            "mix": "weights",
        },
    ),
    "streaming": Kind("embed_distill(projection_dim=12)", {"data": "vectors.jsonl", "streaming": True, "shuffle_buffer": 20}),
    "two processes": Kind("embed_distill(projection_dim=12)", {"data": "vectors.jsonl", "gather": True}, 2),
}


def write_data(folder: Path) -> None:
    """Three small data sets, always the same."""
    rng = random.Random(0)

    def text() -> str:
        return " ".join(rng.choices(WORDS.split(), k=rng.randint(2, 9)))

    rows = {
        "classes.jsonl": [{"first": text(), "second": text(), "label": rng.randrange(3)} for _ in range(45)],
        "texts.jsonl": [{"text": f"{text()} {i}"} for i in range(70)],
        "vectors.jsonl": [{"text": text(), "embedding": [rng.gauss(0, 1) for _ in range(12)]} for _ in range(61)],
    }
    for name, content in rows.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")


# -- in the processes that train ---------------------------------------------------------------------------------------------
class Fuse:
    """Counts function calls from a step, or from the writing of a checkpoint, on; kills its process at the n-th.

    Args:
        kill: {"at": "step" or "save", "step": number, "calls": n}; None only counts.
    """

    def __init__(self, kill: dict[str, Any] | None) -> None:
        from embedloss.training.trainer import Trainer

        self.kill = kill
        self.codes = {Trainer.training_step.__code__: "step", Trainer._save_checkpoint.__code__: "save"}
        self.now: str | None = None
        self.counts: dict[str, list[int]] = {"step": [], "save": []}

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in self.codes:
            self.now = self.codes[frame.f_code]
            self.step = frame.f_locals["self"].state.global_step
            self.counts[self.now].append(0)
        if self.now is None or event not in ("call", "c_call"):
            return
        self.counts[self.now][-1] += 1
        kill = self.kill
        if kill and kill["at"] == self.now and self.step >= kill["step"] and self.counts[self.now][-1] >= kill["calls"]:
            os.kill(os.getpid(), signal.SIGKILL)


def train(job: dict[str, Any]) -> None:
    """Run a configuration in this process, with a fuse."""
    import torch

    torch.set_num_threads(1)
    from embedloss.distributed import leave
    from embedloss.training.config import RunConfig
    from embedloss.training.run import run_training

    fuse = Fuse(job["kill"])
    sys.setprofile(fuse)
    run_training(RunConfig(**job["config"]), say=lambda text: print(text, flush=True))
    sys.setprofile(None)
    if job["counts"]:
        Path(job["counts"]).write_text(json.dumps(fuse.counts), encoding="utf-8")
    leave()


# -- in the process that watches ---------------------------------------------------------------------------------------------
class Started:
    """A process that trains: a new interpreter, or a fork of this one, which starts faster."""

    def __init__(self, job: dict[str, Any], environment: dict[str, str], log: Path, fork: bool) -> None:
        self.popen: subprocess.Popen[bytes] | None = None
        if not fork:
            with log.open("ab") as stream:
                self.popen = subprocess.Popen(
                    [sys.executable, __file__, "--job", json.dumps(job)],
                    stdout=stream, stderr=stream, env={**os.environ, **environment},
                )  # fmt: skip
            self.pid = self.popen.pid
            return
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                os.dup2(handle, 1)
                os.dup2(handle, 2)
                os.environ.update(environment)
                train(job)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)

    def poll(self) -> int | None:
        """The exit status (negative: a signal), or None while it runs."""
        if self.popen is not None:
            return self.popen.poll()
        if not hasattr(self, "status"):
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid == 0:
                return None
            self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def kill(self) -> None:
        """End it, and wait for that."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            while self.poll() is None:
                time.sleep(0.01)


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class Session:
    """All runs of one session.

    Args:
        folder: for data, model and runs.
        seed: of the kills.
        fork: fork processes rather than start interpreters.
    """

    def __init__(self, folder: Path, seed: int, fork: bool) -> None:
        self.folder, self.fork, self.rng = folder, fork, random.Random(seed)
        self.kills = {"step": 0, "save": 0}
        self.resumed = 0
        self.places: list[str] = []
        from embedloss.testing.models import tiny_bert

        tiny_bert(folder / "model", layers=1, hidden=16, vocabulary=150)
        write_data(folder)

    def config(self, kind: Kind, out: Path) -> dict[str, Any]:
        """The settings of a run as keywords of `RunConfig`."""
        settings = {
            "model": str(self.folder / "model"), "loss": kind.loss, "out": str(out), "max_steps": STEPS, "batch_size": 8,
            "learning_rate": 1e-3, "logging_steps": 3, "probe_steps": 5, "save_steps": SAVE, "save_total_limit": 2, "seed": 5,
            **kind.settings,
        }  # fmt: skip
        if isinstance(settings["data"], str):
            settings["data"] = str(self.folder / settings["data"])
        else:
            settings["data"] = {k: {**v, "path": str(self.folder / v["path"])} for k, v in settings["data"].items()}
        if settings.get("eval_steps"):
            settings["eval_data"] = settings["data"]
        return settings

    def attempt(self, kind: Kind, config: dict[str, Any], kill: dict[str, Any] | None, counts: str = "") -> bool:
        """Train until the end (True) or until killed (False); an error is raised with what the process said."""
        victim = kill["victim"] if kill else 0
        log = Path(config["out"] + ".log")
        port = str(free_port())
        processes = []
        for rank in range(kind.processes):
            environment = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
            if kind.processes > 1:
                environment |= {
                    "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(kind.processes), "MASTER_PORT": port,
                    "MASTER_ADDR": "127.0.0.1", "LOCAL_WORLD_SIZE": str(kind.processes),
                }  # fmt: skip
            job = {"config": config, "kill": kill if rank == victim else None, "counts": counts and f"{counts}-{rank}"}
            processes.append(Started(job, environment, log, self.fork))
        try:
            while any(p.poll() is None for p in processes) and not any(p.poll() for p in processes):
                time.sleep(0.02)
        finally:
            for process in processes:
                process.kill()
        status = processes[victim].poll()
        if status == -signal.SIGKILL and kill:
            return False
        if any(p.poll() for p in processes):
            raise RuntimeError(log.read_text(encoding="utf-8")[-20000:])
        return True

    def run(self, name: str, kind: Kind, kills: int) -> list[str]:
        """Kill and resume one run `kills` times; what differs in the end from the run that nobody disturbed."""
        from embedloss.training.checkpoints import last_checkpoint

        slug = name.replace(" ", "-")
        whole, broken = self.folder / f"{slug}-whole", self.folder / f"{slug}-broken"
        counts = self.folder / f"{slug}.json"
        self.attempt(kind, self.config(kind, whole), None, str(counts))
        calls = [json.loads(Path(f"{counts}-{rank}").read_text(encoding="utf-8")) for rank in range(kind.processes)]
        for number in range(kills + 1):
            checkpoint = last_checkpoint(broken)
            step = int(checkpoint.name.split("-")[1]) if checkpoint else 0
            self.resumed += checkpoint is not None
            config = self.config(kind, broken) | {"resume": checkpoint is not None, "overwrite": checkpoint is None}
            if number == kills:
                self.attempt(kind, config, None)
                break
            at = self.rng.choice(["step", "save"]) if step < STEPS - 2 else "step"
            ahead = SAVE if number % 2 == 0 and step + SAVE < STEPS - 2 else 0  # so that what is resumed is a checkpoint, too
            latest = min(step + ahead + SAVE + 1, STEPS - 1)
            goal = self.rng.randint(step + ahead, latest) if at == "step" else step + ahead + 1
            victim = self.rng.randrange(kind.processes)  # a process that does not write has fewer calls in a save
            kill = {"at": at, "step": goal, "calls": self.rng.randint(1, min(calls[victim][at])), "victim": victim}
            if self.attempt(kind, config, kill):
                raise RuntimeError(f"{name}: the run came to its end before {kill}")
            self.kills[at] += 1
            staged = sorted(p.name for p in (broken / ".saving").rglob("*")) if (broken / ".saving").is_dir() else []
            where = f"step {goal + 1}" if at == "step" else f"saving step {min(p for p in marks(step) if p >= goal)}"
            half = f", {len(staged)} files staged" if staged else ""
            self.places.append(where)
            print(f"  {name}: from {step or 'the start'}, killed at {where}, call {kill['calls']:,}{half}", flush=True)
        return differences(whole, broken)


def marks(step: int) -> list[int]:
    """The steps at which a checkpoint is due."""
    return [*range(SAVE, STEPS, SAVE), STEPS]


def differences(whole: Path, broken: Path) -> list[str]:
    """What is not equal in two finished runs: weights, optimizer, scheduler, generators, counters, log."""
    import torch
    from safetensors.torch import load_file

    from embedloss.reporting.runs import read_entries
    from embedloss.training.checkpoints import checkpoints

    found: list[str] = []
    names = [sorted(str(p.relative_to(f)) for p in f.rglob("*") if p.is_file()) for f in (whole, broken)]
    if names[0] != names[1]:
        found.append(f"files: {sorted(set(names[0]) ^ set(names[1]))}")
    if not checkpoints(whole):
        found.append("no checkpoint in the run that nobody disturbed")
    for name in names[0]:
        one, two = whole / name, broken / name
        if not two.is_file():
            continue
        if name.endswith(".safetensors"):
            same = equal(load_file(one), load_file(two))
        elif name.endswith((".pt", ".pth")):  # files of these runs
            same = equal(*(torch.load(file, weights_only=False) for file in (one, two)))
        elif name.endswith("trainer_state.json"):
            same = equal(*(clean(json.loads(file.read_text(encoding="utf-8"))) for file in (one, two)))
        elif name.endswith("metrics.jsonl"):
            same = equal(*(clean(read_entries(file)) for file in (one, two)))
        elif "progress_" in name or name.endswith("stream.json"):
            same = one.read_bytes() == two.read_bytes()
        else:
            continue
        if not same:
            found.append(name)
    return found


def clean(value: Any) -> Any:
    """Without what a clock decides, and without the folder's name."""
    if isinstance(value, dict):
        skipped = ("best_model_checkpoint",)
        return {k: clean(v) for k, v in value.items() if k not in skipped and not any(k.endswith(t) for t in TIMES)}
    return [clean(v) for v in value] if isinstance(value, list) else value


def equal(one: Any, two: Any) -> bool:
    """Bit for bit, through dictionaries, lists, tensors and arrays."""
    if isinstance(one, dict):
        return isinstance(two, dict) and list(one) == list(two) and all(equal(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return isinstance(two, (list, tuple)) and len(one) == len(two) and all(map(equal, one, two))
    if hasattr(one, "shape"):
        return hasattr(two, "shape") and one.shape == two.shape and one.dtype == two.dtype and bool((one == two).all())
    return bool(one == two)


def main() -> int:
    """The command line; 0 if every resumed run equals the undisturbed one."""
    parser = argparse.ArgumentParser(description="Kill runs at random points, resume them, compare.")
    parser.add_argument("--short", action="store_true", help="one kill a kind, in forks")
    parser.add_argument("--fork", action="store_true", help="fork processes rather than start interpreters")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--kinds", default=",".join(KINDS), help="comma-separated")
    parser.add_argument("--write", default=None, help="a page")
    parser.add_argument("--job", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        train(json.loads(options.job))
        return 0
    os.environ["HF_HUB_OFFLINE"] = "1"
    seed = random.SystemRandom().randrange(10**6) if options.seed is None else options.seed
    names = [name.strip() for name in options.kinds.split(",")]
    each = 1 if options.short else -(-20 // len(names))
    print(f"seed {seed}: {each} kill(s) of each of {len(names)} kinds of run ({', '.join(names)})", flush=True)
    begin = time.perf_counter()
    bad, resumed, rows = 0, 0, []
    with tempfile.TemporaryDirectory() as folder:
        fork = options.fork or options.short
        session = Session(Path(folder), seed, fork)
        if fork:
            import embedloss.training.run
            import embedloss.training.trainer  # noqa: F401  before the first fork, so that it is done once
        for name in names:
            found = session.run(name, KINDS[name], each)
            bad += bool(found)
            result = "different: " + ", ".join(found) if found else "equal"
            rows.append(f"| {name} | {'; '.join(session.places)} | {session.resumed} | {result} |")
            resumed += session.resumed
            session.places, session.resumed = [], 0
            print(f"{name}: {'equal' if not found else 'DIFFERENT: ' + '; '.join(found)}", flush=True)
    kills = sum(session.kills.values())
    where = f"{session.kills['step']} in steps, {session.kills['save']} while saving"
    print(f"{kills} kills ({where}), {resumed} starts from a checkpoint, {time.perf_counter() - begin:.0f} s")
    print("all runs equal" if not bad else f"{bad} kinds differ")
    if options.write:
        head = [
            "# Killed runs", "",
            f"{kills} times SIGKILL ({where}), at a random function call after the step or the saving began; then the run is",
            "resumed, from its last whole checkpoint if there is one, and killed again. In the end weights, optimizer,",
            "scheduler, generators, the loss's own weights, order of rows and log are compared, bit for bit, with a run that",
            "nobody disturbed.",
            f"{STEPS} steps, a checkpoint every {SAVE}; models are tiny. Made by", "", "```text",
            f"python tests/chaos.py {'--fork ' if fork else ''}--seed {seed} --write docs/results/chaos.md", "```", "",
            "| run | killed at | starts from a checkpoint | in the end |", "| --- | --- | ---: | --- |",
        ]  # fmt: skip
        Path(options.write).write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
