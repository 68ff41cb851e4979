"""`compare`: one start, one budget, the same order every time; what is refused; what goes on after an interruption."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from embedloss.comparison import Comparison, Plan, Standing
from embedloss.comparison.plan import candidates, hold_out
from embedloss.comparison.standings import mark_noise
from embedloss.errors import EmbedlossError

torch.set_num_threads(1)

THINGS = ("door", "box", "car", "lamp", "clock", "table", "chair", "book")
VERBS = ("open", "close", "paint", "sell", "find", "wash")
LOSSES = ["mnrl", "mega-batch-margin", "mnrl(scale=1)"]


def silent(text: str) -> None:
    pass


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("data") / "pairs.jsonl"
    rows = [{"anchor": f"how do I {v} a {t}", "positive": f"to {v} the {t}, ask {t} people"} for v in VERBS for t in THINGS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.fixture
def plan(data: str, tmp_path: Path) -> Plan:
    return Plan(
        data, str(tmp_path / "runs"), "static(dimension=8, vocab_size=200)", losses=LOSSES, max_steps=4, seeds=2, batch_size=8,
        learning_rate=0.03,
    )  # fmt: skip


def figures(standings: list[Standing]) -> list[tuple[str, int, list[float]]]:
    return [(s.loss, s.steps, s.values) for s in standings]


def test_a_second_run_gives_the_same_order_and_an_interrupted_one_goes_on(plan: Plan, tmp_path: Path) -> None:
    said: list[str] = []
    plan = replace(plan, losses=LOSSES[:2])
    job = Comparison(plan, said.append)
    first = job.run()
    assert len(said) == 4
    assert {s.loss for s in first} == set(LOSSES[:2])
    values = [s.mean for s in first]
    assert values == sorted(values, reverse=True)
    assert len({v for s in first for v in s.values}) > 2  # losses and seeds differ
    start = job.state["baselines"]["untrained"]["ndcg@10"]
    assert values[0] > start + 0.02
    assert all(s.seconds > 0 and s.memory > 2**20 and s.noise is not None for s in first)
    folders = sorted(path.name for path in (tmp_path / "runs" / "runs").iterdir())
    assert folders[0] == "01-mnrl-seed0-steps4"
    assert json.loads((tmp_path / "runs/runs" / folders[0] / "results.json").read_text())["before"]["ndcg@10"] == start

    again = Comparison(replace(plan, out=str(tmp_path / "again")), silent).run()
    assert figures(again) == figures(first)

    # what an interruption leaves: fewer records, half of a line, half of a run
    records = tmp_path / "runs" / "runs.jsonl"
    lines = records.read_text().splitlines()
    records.write_text("\n".join(lines[:2]) + "\n" + lines[2][:20])
    said.clear()
    assert figures(Comparison(plan, said.append).run()) == figures(first)
    assert len(said) == 2
    said.clear()
    assert figures(Comparison(plan, said.append).run()) == figures(first)
    assert said == []
    with pytest.raises(EmbedlossError, match=r"E402: .* a comparison with another max_steps"):
        Comparison(replace(plan, max_steps=5), silent)


def test_halving_trains_few_losses_in_full(plan: Plan) -> None:
    job = Comparison(replace(plan, max_steps=9, halving=True), silent)
    found = job.run()
    done = [(r["loss"], r["seed"], r["steps"]) for r in job.records()]
    assert done[:3] == [(loss, 0, 1) for loss in LOSSES]
    best = found[0].loss
    assert done[3:] == [(best, 0, 3), (best, 0, 9), (best, 1, 9)]
    assert [s.steps for s in found] == [9, 1, 1]
    assert [s.complete for s in found] == [True, False, False]
    at_first = {r["loss"]: r["metrics"]["ndcg@10"] for r in job.records()[:3]}
    assert at_first[best] == max(at_first.values())


def test_a_loss_that_fails_costs_no_other(plan: Plan) -> None:
    job = Comparison(replace(plan, losses=["gist(guide='./gone')", "mnrl"], max_steps=2), silent)
    good, bad = job.run()
    assert (good.loss, len(good.values)) == ("mnrl", 2)
    assert bad.error.startswith("E301")
    assert len(job.records()) == 3  # one seed is enough to know


@pytest.mark.slow
def test_several_at_a_time_give_what_one_at_a_time_gives(plan: Plan, tmp_path: Path) -> None:
    small = replace(plan, losses=LOSSES[:2], seeds=1)
    together = Comparison(replace(small, out=str(tmp_path / "two")), silent).run(jobs=2)
    assert figures(together) == figures(Comparison(small, silent).run())


def test_minutes_become_steps(plan: Plan) -> None:
    job = Comparison(replace(plan, max_steps=None, minutes=0.01, losses=["mnrl"], seeds=1), silent)
    [found] = job.run()
    assert found.steps == job.state["steps"]["mnrl"] > 0
    assert 0.05 < found.seconds < 5
    assert not (Path(job.plan.out) / "timing").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": None}, "E401: give one budget"),
        ({"minutes": 1.0}, "E401: give one budget"),
        ({"max_steps": 0}, "E401: a budget of 0 steps is too small. Type --max-steps 1"),
        ({"max_steps": 8, "halving": True}, "E401: a budget of 8 steps is too small: the first of 3 rounds .* --max-steps 9"),
        ({"max_steps": None, "minutes": 0.0}, "E401: --minutes must be above 0"),
        ({"seeds": 0}, "E401: --seeds must be at least 1"),
        ({"losses": ["mnlr"]}, "E201"),
        ({"losses": ["mnrl(scal=3)"]}, "E203"),
        ({"losses": ["cosent"]}, "E10[12]"),
        ({"metric": "spearman_cosine"}, "E501: 'spearman_cosine' is not measured on .*ndcg@10"),
        ({"kind": "cross-encoder", "losses": []}, "E"),
        ({"data": "gone.jsonl"}, "E103"),
    ],
)
def test_mistakes_are_refused_before_anything_is_trained(plan: Plan, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EmbedlossError, match=message):
        Comparison(replace(plan, **changes), silent)
    assert not Path(plan.out).exists()


def test_what_every_loss_refuses_is_said(plan: Plan, tmp_path: Path) -> None:
    file = tmp_path / "lists.jsonl"
    row = {"query": "how to paint a door", "docs": ["with paint", "with a saw"], "grades": [1, 0]}
    file.write_text("".join(json.dumps(r) + "\n" for r in [row] * 3 + [{**row, "docs": ["with paint", ""]}]))
    with pytest.raises(EmbedlossError, match=r"E101: .* as it is\..* Not .*: column 'docs', row 4: an empty text"):
        Comparison(replace(plan, data=str(file), losses=[]), silent)


def test_a_budget_below_one_evaluation_is_refused(plan: Plan) -> None:
    job = Comparison(replace(plan, max_steps=None, minutes=1e-7), silent)
    with pytest.raises(EmbedlossError, match=r"E501: a budget of 0.0 s is less than one evaluation takes"):
        job.run()


def test_a_folder_with_other_things_is_left_alone(plan: Plan) -> None:
    Path(plan.out).mkdir()
    (Path(plan.out) / "x").write_text("x")
    with pytest.raises(EmbedlossError, match=r"E402: .* holds something else"):
        Comparison(plan, silent)
    assert (Path(plan.out) / "x").is_file()
    with pytest.raises(EmbedlossError, match="E501"):
        Comparison(replace(plan, metric="nonsense"), silent, overwrite=True)
    assert [path.name for path in Path(plan.out).iterdir()] == ["x"]  # a mistake costs nothing
    Comparison(plan, silent, overwrite=True)
    assert not (Path(plan.out) / "x").exists()
    assert [path.name for path in Path(plan.out).parent.iterdir()] == ["runs"]


def test_all_that_fit_take_part(plan: Plan) -> None:
    found, left_out = candidates(replace(plan, losses=[]))
    names = [each.loss for each in found]
    assert "multiple-negatives-ranking" in names[:2]
    assert len(names) >= 3
    assert not any(name.startswith("cached") for name in names)
    assert left_out["cached-multiple-negatives-ranking"] == "the same loss with recomputation"


def test_held_out_rows_share_no_first_text(plan: Plan, data: str, tmp_path: Path) -> None:
    from embedloss.data import load_rows

    doubled = tmp_path / "double.jsonl"
    doubled.write_text(Path(data).read_text() * 2)
    train, test = (load_rows(name) for name in hold_out(replace(plan, data=str(doubled)), tmp_path / "held"))
    assert len(train) + len(test) == 96
    assert 9 <= len(test) <= 11
    assert not set(train["anchor"][:]) & set(test["anchor"][:])
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(Path(data).read_text().splitlines()[:30]))
    with pytest.raises(EmbedlossError, match=r"E106: .* 30 rows, too few .* --eval-data"):
        hold_out(replace(plan, data=str(few)), tmp_path / "few")


def test_noise_is_the_least_significant_difference() -> None:
    from scipy.stats import ttest_ind

    def standings(*values: list[float]) -> list[Standing]:
        found = [Standing(str(i), 10, list(v)) for i, v in enumerate(values)]
        mark_noise(found)
        return found

    best, other = [0.52, 0.50, 0.54], [0.49, 0.47, 0.51]
    for shift in (0.0, 0.01, 0.02, 0.05):  # of two losses, the test is Student's
        moved = [v - shift for v in other]
        assert standings(best, moved)[1].noise == (ttest_ind(best, moved).pvalue >= 0.05)
    assert [s.noise for s in standings(best, other, [0.1, 0.12, 0.11])] == [True, True, False]
    assert [s.noise for s in standings([0.5], [0.4])] == [None, None]  # one seed: nothing is known
    some = [Standing("a", 9, best), Standing("b", 3, other, complete=False)]
    mark_noise(some)
    assert some[1].noise is None


def test_the_command_of_the_winner_trains_it(plan: Plan, tmp_path: Path) -> None:
    import shlex

    job = Comparison(replace(plan, losses=["mnrl(scale=5)"], seeds=1, max_steps=1), silent)
    job.run()
    command = shlex.split(job.winner_command("mnrl(scale=5)"))
    assert command[:3] == ["embedloss", "train", "--model"]
    for option, value in (
        ("--loss", "mnrl(scale=5)"),
        ("--data", plan.data),
        ("--batch-size", "8"),
        ("--learning-rate", "0.03"),
    ):
        assert command[command.index(option) + 1] == value
    shutil.rmtree(tmp_path / "runs")
