"""Two gloo processes that stay, and evaluate losses together. Started on first use, ended with the program."""

from __future__ import annotations

import atexit
import contextlib
import datetime
import importlib
import importlib.util
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import traceback
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist

from embedloss.distributed import leave
from embedloss.embeddings import Embeddings
from embedloss.loss import Loss, LossOutput
from embedloss.testing.case import Batch, Run, run

COUNT = 2


def _send(stream: IO[bytes], value: Any) -> None:
    data = pickle.dumps(value)
    stream.write(struct.pack("<Q", len(data)) + data)
    stream.flush()


def _receive(stream: IO[bytes]) -> Any:
    head = stream.read(8)
    if len(head) < 8:
        raise EOFError("the process has ended")
    return pickle.loads(stream.read(struct.unpack("<Q", head)[0]))


class _Workers:
    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "embedloss.testing.workers", self.folder.name]
        self.processes = [
            subprocess.Popen([*command, str(rank)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
            for rank in range(COUNT)
        ]

    def evaluate(self, jobs: list[Any]) -> list[tuple[bool, Any]]:
        for process, job in zip(self.processes, jobs, strict=True):
            assert process.stdin is not None
            _send(process.stdin, job)
        return [_receive(process.stdout) for process in self.processes if process.stdout is not None]

    def close(self) -> None:
        for process in self.processes:
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(OSError):
                        stream.close()
        for process in self.processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.folder.cleanup()


_workers: _Workers | None = None


@atexit.register
def close_workers() -> None:
    """End the processes, if there are any."""
    global _workers
    if _workers is not None:
        _workers.close()
    _workers = None


def run_on_processes(loss: Loss, batches: list[Batch]) -> list[Run]:
    """Each process's forward and backward on its rows, candidates pooled over both (`Embeddings.with_gathering`).

    Raises:
        RuntimeError: what a process said, if one failed.
    """
    global _workers
    if _workers is None:
        _workers = _Workers()
    modules = {
        module.__name__: module.__file__
        for name in {type(m).__module__ for m in loss.modules()}
        if (module := sys.modules.get(name)) is not None and getattr(module, "__file__", None)
    }
    payload = [{"modules": modules, "data": pickle.dumps((loss, batch))} for batch in batches]
    try:
        results = _workers.evaluate(payload)
    except (EOFError, OSError):
        close_workers()
        raise
    failed = [text for fine, text in results if not fine]
    if failed:
        close_workers()  # the other process may hang in a collective call
        raise RuntimeError(failed[0])
    return [result for _, result in results]


def _import(name: str, file: str) -> None:
    """Import a module by name, or from its file where the name is a test runner's or a local plugin's."""
    try:
        importlib.import_module(name)
    except ImportError:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)


class _Gathering(Batch):
    """A batch whose embeddings are pooled over processes."""

    def build(self, leaves: Any = None) -> Any:
        built = super().build(leaves)
        return built.with_gathering() if isinstance(built, Embeddings) else built


def _without_graph(result: Run) -> Run:
    return replace(result, output=LossOutput(result.value))


def _serve(folder: str, rank: int) -> None:
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a loss prints must not get between the answers
    torch.set_num_threads(1)
    timeout = datetime.timedelta(seconds=20)
    store = f"file://{Path(folder).resolve()}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=COUNT, timeout=timeout)
    while True:
        try:
            job = _receive(requests)
        except EOFError:
            break
        try:
            for name, file in job["modules"].items():
                _import(name, file)
            loss, batch = pickle.loads(job["data"])
            batch = _Gathering(**{name: getattr(batch, name) for name in batch.__dataclass_fields__})
            _send(answers, (True, _without_graph(run(loss, batch))))
        except Exception:
            _send(answers, (False, traceback.format_exc()))
        loss = batch = None
    leave()


if __name__ == "__main__":
    # Under its importable name, so that pickled results can be read by the process that started this one.
    from embedloss.testing import workers

    workers._serve(sys.argv[1], int(sys.argv[2]))
