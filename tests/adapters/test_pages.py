"""The pages on other libraries: the plugin file runs, the table of migration has every loss of sentence-transformers."""

import importlib
import json
import re
from pathlib import Path

import pytest
import torch

from embedloss import Embeddings, create_loss, list_losses
from embedloss.adapters.migration import BEGIN, END, differences, losses_table, refreshed
from embedloss.plugins import plugin_manager
from embedloss.testing.models import SENTENCES, tiny_bert
from embedloss.training.config import RunConfig
from embedloss.training.run import run_training

DOCS = Path(__file__).parents[2] / "docs"


def names_on(page):
    return set(re.findall(r"\b[A-Z]\w+", (DOCS / page).read_text(encoding="utf-8")))


def test_losses_of_other_kinds_of_models_are_named():
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.multi_vector_encoder import losses as multi
    from sentence_transformers.sparse_encoder import losses as sparse

    names = [*multi.__all__, *sparse.__all__]
    assert len(names) > 10
    assert set(names) - names_on("migrating.md") == set()


def test_every_loss_of_the_peer_has_a_row():
    pytest.importorskip("sentence_transformers")
    from sentence_transformers.cross_encoder import losses as cross
    from sentence_transformers.sentence_transformer import losses as bi

    table = losses_table()
    page = (DOCS / "migrating.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    for kind, module in (("bi-encoder", bi), ("cross-encoder", cross)):
        names = [name for name in module.__all__ if name.endswith("Loss") or name.endswith("LossInBatchNegatives")]
        assert len(names) > 10
        for name in names:
            assert any(row.startswith(f"| `{name}`") and kind in row.split("|")[4] for row in rows), (name, kind)
            assert f"| `{name}`" in page


def test_the_expressions_of_the_table_work():
    for expression in re.findall(r"\[`(.*?)`\]\(losses/", losses_table()):
        create_loss(expression)


def test_the_generated_part_can_be_made_anew():
    page = f"before\n{BEGIN}\nSTALE PART\n{END}\nafter\n"
    once = refreshed(page)
    assert once.startswith("before\n")
    assert once.endswith("\nafter\n")
    assert "STALE PART" not in once
    assert refreshed(once) == once
    with_section = [s for s in list_losses() if "Differences from sentence-transformers" in s.doc]
    assert len(with_section) > 20
    assert all(differences(s) and "**Example**" not in differences(s) for s in with_section)


@pytest.fixture
def plugin_file(tmp_path):
    page = (DOCS / "plugins" / "pytorch_metric_learning.md").read_text(encoding="utf-8")
    code = re.search(r"```py title=\"metric_learning.py\"\n(.*?)```", page, re.DOTALL).group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    file = tmp_path / "metric_learning.py"
    file.write_text(code, encoding="utf-8")
    return file


@pytest.fixture
def plugin(plugin_file):
    pytest.importorskip("pytorch_metric_learning", reason="pytorch-metric-learning is not installed")
    loaded = plugin_manager().load_file(plugin_file)
    yield plugin_file
    plugin_manager().unregister(loaded)


PML = "plugins/pytorch_metric_learning.md"


def test_every_name_of_pytorch_metric_learning_is_on_the_page():
    library = pytest.importorskip("pytorch_metric_learning", reason="pytorch-metric-learning is not installed")
    missing = {}
    for part in ("losses", "miners", "distances", "reducers", "regularizers", "samplers"):
        names = {n for n in vars(importlib.import_module(f"{library.__name__}.{part}")) if n[0].isupper()}
        assert len(names) > 3
        missing[part] = names - names_on(PML) - {"BaseMiner", "BaseDistance", "BaseReducer", "BaseRegularizer"}
    assert not any(missing.values()), missing


def test_what_the_page_calls_equal_is_equal(plugin):
    from pytorch_metric_learning import losses, miners, reducers
    from pytorch_metric_learning.distances import CosineSimilarity, LpDistance

    torch.manual_seed(0)
    text, labels = torch.randn(8, 16, dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    plain, one = LpDistance(normalize_embeddings=False), Embeddings.of(text=text)
    hardest = miners.BatchHardMiner(distance=plain)(text, labels)
    mean = {"distance": plain, "reducer": reducers.MeanReducer()}
    first, second = text[::2], text[1::2]
    pairs, swapped = Embeddings.of(anchor=first, positive=second), Embeddings.of(anchor=second, positive=first)
    summed = losses.MultipleLosses([losses.NPairsLoss(), losses.ContrastiveLoss()], weights=[0.7, 0.3])
    two = "0.7 * metric_learning('NPairsLoss') + 0.3 * metric_learning('ContrastiveLoss')"
    one_way = losses.SelfSupervisedLoss(losses.NTXentLoss(temperature=0.05), symmetric=False)
    rows = [
        (losses.TripletMarginLoss(margin=2, distance=plain)(text, labels), "batch_all_triplet(margin=2)", one),
        (
            losses.TripletMarginLoss(margin=0.2, distance=CosineSimilarity())(text, labels),
            "batch_all_triplet(margin=0.2, distance='cosine')",
            one,
        ),
        (losses.TripletMarginLoss(margin=5, **mean)(text, labels, hardest), "batch_hard_triplet(margin=5)", one),
        (
            losses.TripletMarginLoss(margin=0, smooth_loss=True, **mean)(text, labels, hardest),
            "batch_hard_soft_margin_triplet()",
            one,
        ),
        (one_way(first, second), "mnrl(scale=20)", pairs),
        (losses.NPairsLoss()(text, labels), "mnrl(scale=1)", pairs),
        (summed(text, labels), two, one),
    ]
    page = (DOCS / PML).read_text(encoding="utf-8")
    for expected, expression, emb in rows:
        assert expected > 0.1
        value = create_loss(expression)(emb, labels if emb is one else None).total
        assert float(value) == pytest.approx(float(expected), abs=1e-10), expression
        assert expression is two or f"| `{expression}` |" in page
    both = losses.SelfSupervisedLoss(losses.NTXentLoss(temperature=0.05))(first, second)
    half = create_loss("mnrl(directions=['query_to_doc', 'query_to_query'])")
    assert float(half(pairs).total + half(swapped).total) / 2 == pytest.approx(float(both), abs=1e-10)


@pytest.mark.filterwarnings("ignore")
def test_each_loss_that_the_file_brings_has_a_gradient(plugin):
    page = (DOCS / PML).read_text(encoding="utf-8").split("what the file above brings")[1]
    rows = re.findall(r"^\| (`.*?`) \| (`\{.*?\}`|none needed) \|$", page, re.MULTILINE)
    tried = [(name, options.strip("`")) for names, options in rows for name in names.split(", ")]
    assert len(tried) > 30
    for name, options in tried:
        torch.manual_seed(0)
        text = torch.randn(8, 16, requires_grad=True)
        loss = create_loss(f"metric_learning('{name.strip('`')}', {'{}' if options == 'none needed' else options})")
        loss(Embeddings.of(text=text), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])).total.backward()
        assert 1e-4 < float(text.grad.abs().max()) < 1e3, name


def test_the_plugin_gives_the_librarys_loss_and_composes(plugin):
    from pytorch_metric_learning import losses

    torch.manual_seed(0)
    text, labels = torch.randn(8, 16, requires_grad=True), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    expected = losses.TripletMarginLoss(margin=0.3)(text, labels)
    found = create_loss("metric_learning('TripletMarginLoss', {'margin': 0.3})")(Embeddings.of(text=text), labels)
    assert float(expected) > 0
    assert torch.equal(found.total, expected)
    expression = "matryoshka(metric_learning('NTXentLoss', miner='MultiSimilarityMiner'), dims=[16, 8]) + 0.1 * gor()"
    loss = create_loss(expression)
    loss(Embeddings.of(text=text), labels).total.backward()
    assert float(text.grad.abs().max()) > 0
    assert create_loss(loss.to_expression()).to_expression() == loss.to_expression()


def test_the_plugin_trains_with_a_weight_of_its_own(plugin, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"text": s, "label": i % 3}) + "\n" for i, s in enumerate(SENTENCES)))
    config = RunConfig(
        model=tiny_bert(tmp_path / "model"),
        data=str(data),
        loss="metric_learning('ProxyAnchorLoss', {'num_classes': 3, 'embedding_size': 32})",
        out=str(tmp_path / "out"),
        plugins=[str(plugin)],
        max_steps=3,
        batch_size=6,
        recompute=True,
    )
    result = run_training(config, say=lambda text: None)
    assert result.steps == 3
    from safetensors.torch import load_file

    assert set(load_file(tmp_path / "out" / "loss.safetensors")) == {"inner.proxies"}
