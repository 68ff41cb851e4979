import pickle

import numpy as np
import pytest
import torch

from embedloss import Loss, LossSpec, TrainingStep, load_encoder
from embedloss.collate import Collator
from embedloss.errors import EmbedlossError
from embedloss.loss import Requirements
from embedloss.testing.models import SENTENCES, tiny_bert
from embedloss.training import guides
from embedloss.training.guides import GuideCache, fingerprint


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return tiny_bert(folder / "model"), tiny_bert(folder / "guide", layers=1, hidden=16, seed=5)


@pytest.fixture
def guide(folders):
    return load_encoder(folders[1])


def test_embeddings_come_back_by_text(guide, tmp_path, monkeypatch):
    monkeypatch.setattr(guides, "PART", 5)  # several files
    cache = GuideCache(guide, "query: ", tmp_path)
    assert cache.fill(guide, [*SENTENCES, SENTENCES[0]]) == len(SENTENCES)
    asked = [SENTENCES[i] for i in (7, 0, 17, 7)]
    wanted = guide.encode(asked, prompt="query: ")
    assert np.abs(wanted).max() > 0.1
    assert not np.allclose(wanted, guide.encode(asked), atol=1e-3)  # the prompt matters
    for copy in (cache, pickle.loads(pickle.dumps(cache)), GuideCache(guide, "query: ", tmp_path)):
        np.testing.assert_allclose(copy.lookup(asked).numpy(), wanted, atol=1e-6)
    assert len(list(cache.folder.iterdir())) == 4
    assert cache.lookup([]).shape == (0, 16)


def test_only_what_is_missing_is_computed(guide, tmp_path, monkeypatch):
    seen = []
    encode = guide.encode
    monkeypatch.setattr(guide, "encode", lambda texts, **options: seen.append(list(texts)) or encode(texts, **options))
    GuideCache(guide, "", tmp_path).fill(guide, SENTENCES[:4])
    cache = GuideCache(guide, "", tmp_path)
    assert cache.fill(guide, SENTENCES[2:6]) == 2
    assert cache.fill(guide, SENTENCES[:6]) == 0
    assert seen == [list(SENTENCES[:4]), list(SENTENCES[4:6])]
    np.testing.assert_allclose(cache.lookup(SENTENCES[:6]).numpy(), encode(SENTENCES[:6]), atol=1e-6)


def test_a_progress_bar_where_there_is_work(guide, tmp_path, capsys):
    cache = GuideCache(guide, "", tmp_path)
    cache.fill(guide, SENTENCES, show_progress=True)
    assert f"{len(SENTENCES)}/{len(SENTENCES)}" in capsys.readouterr().err
    cache.fill(guide, SENTENCES, show_progress=True)
    assert capsys.readouterr().err == ""


def test_the_key_is_what_the_embeddings_depend_on(folders, guide):
    key = fingerprint(guide, "")
    assert fingerprint(load_encoder(folders[1]), "") == key
    other = load_encoder(folders[1])
    with torch.no_grad():
        next(other.parameters())[3, 3] += 1e-3
    keys = {key, fingerprint(guide, "query: "), fingerprint(load_encoder(folders[1], max_length=8), ""), fingerprint(other, "")}
    assert len(keys) == 4


def test_a_text_that_was_never_given(guide, tmp_path):
    cache = GuideCache(guide, "", tmp_path)
    with pytest.raises(EmbedlossError, match="E405: the guide's cache lacks the text 'new'"):
        cache.lookup(["new"])
    cache.fill(guide, SENTENCES[:3])
    with pytest.raises(EmbedlossError, match="lacks the text 'new'"):
        cache.lookup([SENTENCES[0], "new", SENTENCES[1]])


@pytest.mark.parametrize("content", [b"", b"ARROW1", b"x" * 4096])
def test_a_damaged_file(guide, tmp_path, content):
    cache = GuideCache(guide, "", tmp_path)
    cache.folder.mkdir()
    (cache.folder / "a.arrow").write_bytes(content)
    with pytest.raises(EmbedlossError, match=r"E405: .*a\.arrow' is no guide cache, or damaged"):
        cache.lookup(["a"])


def test_where_it_is(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("EMBEDLOSS_CACHE", raising=False)
    assert guides.cache_folder() == tmp_path / "embedloss"
    monkeypatch.setenv("EMBEDLOSS_CACHE", str(tmp_path / "here"))
    assert guides.cache_folder() == tmp_path / "here"


class Guided(Loss):
    spec = LossSpec(name="guided", target="x:Guided", summary="s", family="t", formats=["n-tuples"])

    def requires(self):
        return Requirements(guides=("guide",), guide_prompts={"guide": "query: "})

    def compute(self, emb, labels):
        guide, parts = emb.guide("guide"), []
        for role in emb.roles:
            like = emb.own(role) @ emb.own("anchor").T - 30 * guide.own(role) @ guide.own("anchor").T
            parts.append(like.pow(2).mean())
        return torch.stack(parts).sum()


def test_a_step_is_the_same_with_and_without(folders, guide, tmp_path):
    rows = [{"anchor": SENTENCES[i], "positive": SENTENCES[i + 5], "negative": list(SENTENCES[: i + 1])} for i in range(4)]
    cache = GuideCache(guide, "query: ", tmp_path)
    cache.fill(guide, SENTENCES)
    found = []
    for given, batched in (({"guide": guide}, (guide.processor, "query: ")), ({"guide": None}, cache)):
        step = TrainingStep(load_encoder(folders[0]), Guided(), guides=given).eval()
        batch = Collator(step.encoder.processor, step.loss, "n-tuples", 60, guides={"guide": batched})(rows)
        output = step(batch)
        output["loss"].backward()
        found.append([output["loss"].detach(), *(p.grad for p in step.parameters() if p.grad is not None)])
        assert ("chunks" in batch["guides"][0]) == (batched is not cache)
    largest = max(float(g.abs().max()) for g in found[0][1:])
    assert largest > 1e-3
    for live, cached in zip(*found, strict=True):
        assert float((cached - live).abs().max()) <= 1e-5 * max(largest, float(live.abs().max()))
