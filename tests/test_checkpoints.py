"""Checkpoints that are not whole, a disk that is full, and kills at random points (the long form: tests/chaos.py)."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from embedloss import EmbedlossError
from embedloss.testing.models import SENTENCES, tiny_bert
from embedloss.training import RunConfig, run_training
from embedloss.training.checkpoints import checkpoints, facts_of, fault, last_checkpoint, rotate, seal


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    tiny_bert(folder / "model", layers=1, hidden=16, vocabulary=150)
    rows = [{"anchor": f"{SENTENCES[i % 17]} {i}", "positive": SENTENCES[i % 16 + 1]} for i in range(40)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return folder


def settings(inputs, out, **more):
    values = {"max_steps": 4, "save_steps": 2, "batch_size": 8, "save_total_limit": 5, "sampler": "random", **more}
    return RunConfig(
        model=str(inputs / "model"), data=str(inputs / "pairs.jsonl"), loss="mnrl", out=str(out), logging_steps=1, **values
    )


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    run_training(settings(inputs, out), say=lambda text: None)
    return out


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished, tmp_path / "run"))


def damage(folder, how):
    if how == "cut":
        file = folder / "optimizer.pt"
        file.write_bytes(file.read_bytes()[:-7])
        return "optimizer.pt has "
    if how == "missing":
        (folder / "model.safetensors").unlink()
        return "model.safetensors is missing"
    if how == "unlisted":
        (folder / "contents.json").unlink()
        return "no readable contents.json"
    (folder / "contents.json").write_text('{"files": {"model.saf', encoding="utf-8")
    return "no readable contents.json"


@pytest.mark.parametrize("how", ["cut", "missing", "unlisted", "half a list"])
def test_a_half_written_checkpoint_is_skipped_with_a_message(inputs, run, how):
    reason = damage(run / "checkpoint-4", how)
    said = []
    found = last_checkpoint(run, said.append)
    assert found.name == "checkpoint-2"
    assert len(said) == 1
    assert said[0].startswith("checkpoint-4 is not whole (")
    assert reason in said[0]


def test_a_run_goes_on_from_the_last_whole_checkpoint_and_says_so(inputs, run):
    damage(run / "checkpoint-4", "cut")
    (run / ".saving" / "checkpoint-6").mkdir(parents=True)
    said = []
    run_training(settings(inputs, run, resume=True), say=said.append)
    text = "\n".join(said)
    assert "note: checkpoint-6 was never finished" in text
    assert "note: checkpoint-4 is not whole (optimizer.pt has " in text
    assert f"from {run / 'checkpoint-2'}" in text
    assert fault(run / "checkpoint-4") is None
    assert not (run / ".saving").exists()
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "loss" in record] == [1, 2, 3, 4]
    assert [record["step"] for record in records if "probe/similarity" in record] == [0, 4]
    assert [record["step"] for record in records if "train_runtime" in record] == [4]


def test_without_any_whole_checkpoint_resuming_is_refused(inputs, run):
    for folder in checkpoints(run):
        damage(folder, "missing")
    with pytest.raises(EmbedlossError, match="there is no checkpoint in") as caught:
        run_training(settings(inputs, run, resume=True), say=lambda text: None)
    assert caught.value.code == "E403"


def test_save_total_limit_never_counts_or_deletes_for_the_sake_of_broken_ones(tmp_path):
    for number in (2, 4, 6, 8):
        folder = tmp_path / f"checkpoint-{number}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text("{}", encoding="utf-8")
        seal(folder, step=number, processes=1)
        if number > 4:
            (folder / "trainer_state.json").unlink()
    assert facts_of(tmp_path / "checkpoint-4")["step"] == 4
    rotate(tmp_path, 2, [tmp_path / "checkpoint-4"])
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-4", "checkpoint-6", "checkpoint-8"]
    rotate(tmp_path, 1, [tmp_path / "checkpoint-2"])  # the best one; also the newest good one would exceed the limit
    assert fault(tmp_path / "checkpoint-2") is None
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-6", "checkpoint-8"]


def test_a_file_that_cannot_be_written_stops_the_run_and_the_checkpoint_before_is_intact(inputs, run):
    before = {p.name: p.read_bytes() for p in (run / "checkpoint-4").iterdir() if p.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, hard))  # the optimizer's state is larger
    try:
        with pytest.raises(EmbedlossError) as caught:
            run_training(settings(inputs, run, max_steps=8, resume=True), say=lambda text: None)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.code == "E402"
    assert "checkpoint-6 could not be written" in str(caught.value)
    assert "The last whole checkpoint is checkpoint-4; free some space" in str(caught.value)
    assert {p.name: p.read_bytes() for p in (run / "checkpoint-4").iterdir() if p.is_file()} == before
    assert not (run / ".saving").exists()
    run_training(settings(inputs, run, max_steps=8, resume=True), say=lambda text: None)
    assert fault(run / "checkpoint-8") is None


def test_a_full_disk_stops_the_run_and_the_checkpoint_before_is_intact(inputs, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        with pytest.raises(EmbedlossError) as caught:
            run_training(settings(inputs, disk / "run", max_steps=40, save_total_limit=20), say=lambda text: None)
        assert caught.value.code == "E402"
        kept = last_checkpoint(disk / "run")
        assert kept is not None
        assert f"The last whole checkpoint is {kept.name}" in str(caught.value)
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        step = facts_of(kept)["step"]
        again = settings(inputs, disk / "run", max_steps=step + 2, save_total_limit=20, resume=True)
        assert run_training(again, say=lambda text: None).steps == step + 2
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_another_number_of_processes_is_refused(inputs, run):
    facts = facts_of(run / "checkpoint-4")
    (run / "checkpoint-4" / "contents.json").write_text(json.dumps({**facts, "processes": 2}), encoding="utf-8")
    with pytest.raises(EmbedlossError, match=r"was saved by 2 process\(es\), this run has 1"):
        run_training(settings(inputs, run, max_steps=8, resume=True), say=lambda text: None)


def test_other_settings_are_refused(inputs, run):
    with pytest.raises(EmbedlossError, match="batch_size was 8, is 4; seed was 42, is 1") as caught:
        run_training(settings(inputs, run, max_steps=8, resume=True, batch_size=4, seed=1), say=lambda text: None)
    assert caught.value.code == "E403"


def test_killed_runs_of_every_kind_end_as_undisturbed_ones():
    script = Path(__file__).parent / "chaos.py"
    done = subprocess.run([sys.executable, str(script), "--short", "--seed", "3"], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "all runs equal" in done.stdout
