"""Which texts of other rows are no negatives, and rows that share positives, against loops that look at one text at a time."""

import functools
import subprocess
import sys

import pytest
import torch

from embedloss import Embeddings, EmbedlossError, create_loss

torch.set_num_threads(1)

COUNTS = [2, 0, 1, 3, 1, 1, 0]  # hard negatives of each row
ANCHORS, POSITIVES = [1, 2, 1, 3, 4, 1, 2], [11, 12, 11, 13, 14, 11, 15]
NEGATIVES, ROWS = [11, 20, 21, 12, 22, 23, 24, 14], [5, 6, 7, 5, 8, 9, 9]
EXPRESSIONS = [
    "mnrl(scale=3, mask_same_id=True)",
    "mnrl(scale=3, mask_same_id=True, mask_same_text=True, directions={all})",
    "mnrl(scale=3, positives='mean')",
    "mnrl(scale=3, positives='mean', directions={all})",
    "mnrl(scale=3, positives='sum')",
    "mnrl(scale=0.5, positives='sum', similarity_fct='manhattan')",
    "mnrl(scale=3, positives='sum', mask_same_text=True, mask_same_id=True, guide='self', margin=-0.2, "
    "hardness_mode='all_negatives', hardness_strength=2)",
    "mnrl(scale=3, guide='self', margin=0.1, directions={all})",
    "mnrl(scale=3, guide='self', margin=-0.3)",
    "mnrl(scale=3, guide='self', margin=0.4, margin_strategy='relative', similarity_fct='dot', negatives='in-batch')",
    "mnrl(scale=1, guide='self', margin=-0.5, similarity_fct='euclidean')",
    "mnrl(scale=3, guide='g', margin=0.2, similarity_fct='dot', directions={all})",
    "mnrl(scale=3, guide='g', margin=-0.3, margin_strategy='relative', mask_same_text=True)",
    "mnrl(scale=3, guide='g', negatives='own')",
    "mnrl(scale=3, guide='self', margin=0.1, negatives='own', similarity_fct='euclidean', hardness_mode='hard_negatives', "
    "hardness_strength=2)",
    "gist(guide='g', temperature=0.4, mask_same_text=True)",
    "gist(guide='g', temperature=0.4, mask_same_id=True, margin=-0.5)",
    "gist(guide='g', temperature=0.4, positives='mean', margin=-0.5)",
    "gist(guide='g', temperature=0.4, positives='sum', margin=-0.5, contrast_anchors=False)",
    "gist(guide='self', temperature=0.4, margin=-0.3, margin_strategy='relative')",
    "mega_batch(negative_margin=-0.5, mask_same_text=True, mini_batch_size=3)",
    "mega_batch(negative_margin=-0.5, mask_same_id=True)",
    "mega_batch(negative_margin=-0.5, guide='g', margin=-0.1)",
    "mega_batch(negative_margin=-0.5, guide='self', margin=0.05, margin_strategy='relative')",
]
EXPRESSIONS = [e.replace("{all}", "['query_to_doc', 'query_to_query', 'doc_to_query', 'doc_to_doc']") for e in EXPRESSIONS]


def similarity(name, x, y):
    if name == "euclidean":
        return -(x - y).pow(2).sum().sqrt()
    if name == "manhattan":
        return -(x - y).abs().sum()
    return x @ y if name == "dot" else (x @ y) / (x.norm() * y.norm())


def definition(loss, texts, guide):
    """One candidate at a time; texts and guide: role -> vectors, the hard negatives flat."""
    kind = loss.spec.name
    gist, mega = kind == "gist-embed", kind == "mega-batch-margin"
    name = "cosine" if gist or mega else loss.similarity_fct
    scale = 1 / loss.temperature if gist else 1.0 if mega else loss.scale
    judge, judged = {"self": (texts, name), "g": (guide, "cosine"), None: (None, "")}[loss.guide]
    owner = [i for i, n in enumerate(COUNTS) for _ in range(n)]
    value = 0.0
    for i in range(len(COUNTS)):

        def same(role, j, i=i):
            """Whether text j of a role is no negative of row i."""
            found = role != "negative" and i != j and loss.mask_same_id and ROWS[i] == ROWS[j]
            found = found or (role != "negative" and i != j and loss.positives != "first" and ANCHORS[i] == ANCHORS[j])
            if loss.mask_same_text and not (role != "negative" and i == j):
                found = (
                    found
                    or {
                        "anchor": lambda: ANCHORS[j] == ANCHORS[i],
                        "positive": lambda: POSITIVES[j] == POSITIVES[i],
                        "negative": lambda: NEGATIVES[j] == POSITIVES[i],
                    }[role]()
                )
            return found

        def close(left, role, j, i=i):
            """Whether the guide, or the model itself, finds that text closer than the row's positive."""
            if judge is None:
                return False
            limit = similarity(judged, judge["anchor"][i], judge["positive"][i])
            limit = limit - (loss.margin if loss.margin_strategy == "absolute" else loss.margin * abs(limit))
            return similarity(judged, judge[left][i], judge[role][j]) > limit + 1e-12

        sets = [("anchor", "positive")] + [("anchor", "negative")] * (not mega)
        if gist:
            sets += [("anchor", "anchor")] * loss.contrast_anchors + [("positive", "positive")] * loss.contrast_positives
        elif not mega and len(loss.directions) > 1:
            sets += [("anchor", "anchor"), ("positive", "anchor"), ("positive", "positive"), ("positive", "negative")]
        negatives = "both" if gist or mega else loss.negatives
        others = []
        for left, role in sets:
            for j, text in enumerate(texts[role]):
                own = (owner[j] if role == "negative" else j) == i
                if own and (role == left or (left, role) == ("anchor", "positive")):
                    continue  # the text itself, and the positive
                if own and role == "negative" and (left == "positive" or negatives == "in-batch"):
                    continue
                if negatives == "own" and not own:
                    continue
                if same(role, j) or (not (own and (left, role) == ("positive", "anchor")) and close(left, role, j)):
                    continue
                s = similarity(name, texts[left][i], text)
                raised = kind == "multiple-negatives-ranking" and loss.hardness_mode and left == "anchor" and role != "anchor"
                others.append(scale * s + (loss.hardness_strength * s.detach() if raised else 0))
        if mega:
            value = value + (loss.positive_margin - similarity(name, texts["anchor"][i], texts["positive"][i])).relu()
            value = value + (max(others) - loss.negative_margin).relu() if others else value
            continue
        shared = [j for j in range(len(COUNTS)) if j == i or (loss.positives == "sum" and ANCHORS[i] == ANCHORS[j])]
        positive = [scale * similarity(name, texts["anchor"][i], texts["positive"][j]) for j in shared]
        value = value + torch.stack([*positive, *others]).logsumexp(0) - torch.stack(positive).logsumexp(0)
    return value / len(COUNTS)


def example(expression, begin=0, end=len(COUNTS)):
    """Leaves, the guide's embeddings and both together, of some rows; mega-batch margin takes pairs."""
    wanted = 2 if expression.startswith("mega") else 3
    g = torch.Generator().manual_seed(1)
    flat = slice(sum(COUNTS[:begin]), sum(COUNTS[:end]))
    leaves, guide, ids = {}, {}, {}
    for role, texts, rows in (
        ("anchor", ANCHORS, slice(begin, end)),
        ("positive", POSITIVES, slice(begin, end)),
        ("negative", NEGATIVES, flat),
    )[:wanted]:
        made = torch.randn(len(texts), 5, generator=g, dtype=torch.float64), torch.randn(len(texts), 3, generator=g).double()
        if role == "positive":
            made = (made[0] + 0.7 * leaves["all"], made[1])
        leaves["all"] = made[0] if role == "anchor" else leaves["all"]
        leaves[role] = made[0][rows].clone().requires_grad_()
        guide[role], ids[role] = made[1][rows].clone(), torch.tensor(texts[rows], dtype=torch.int64)
    del leaves["all"]

    def wrapped(x):
        return Embeddings.of(**x if wanted == 2 else {**x, "negative": x["negative"].split(COUNTS[begin:end])})

    emb = wrapped(leaves).with_guide(wrapped(guide)).with_text_ids(**ids).with_row_ids(torch.tensor(ROWS[begin:end]))
    return leaves, guide, emb


def gradients(value, leaves):
    return torch.autograd.grad(value, list(leaves.values()))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_against_the_definition(expression):
    loss = create_loss(expression)
    leaves, guide, emb = example(expression)
    output, wanted = loss(emb), definition(loss, leaves, guide)
    torch.testing.assert_close(output.total, wanted, rtol=1e-10, atol=1e-12)
    expected = gradients(wanted, leaves)
    assert max(float(g.abs().max()) for g in expected) > 1e-3
    for found, g in zip(gradients(output.total, leaves), expected, strict=True):
        torch.testing.assert_close(found, g, rtol=1e-8, atol=1e-11)
    plain = {"similarity_fct": loss.similarity_fct} if expression.startswith("mnrl") else {"guide": "g", "margin": -9.0}
    kept = ("scale", "temperature", "directions", "hardness_mode", "hardness_strength", "contrast_anchors", "negative_margin")
    plain |= {name: getattr(loss, name) for name in (*kept, "negatives") if name in loss.parameters_of_expression()}
    unmasked = create_loss(loss.spec.name, **plain)(emb).total
    assert abs(float((output.total - unmasked).detach())) > 1e-4  # the example has something to mask


def test_the_mean_over_a_group_is_the_mean_over_its_positives():
    g = torch.Generator().manual_seed(0)
    anchor, other = torch.randn(2, 4, generator=g).double()
    positives = torch.randn(4, 4, generator=g).double()
    emb = Embeddings.of(anchor=torch.stack([anchor] * 3 + [other]), positive=positives)
    emb = emb.with_text_ids(anchor=torch.tensor([1, 1, 1, 2]))
    cosines = torch.nn.functional.cosine_similarity(anchor, positives, dim=1) * 20
    wanted = sum(torch.stack([cosines[i], cosines[3]]).logsumexp(0) - cosines[i] for i in range(3))
    last = torch.nn.functional.cosine_similarity(other, positives, dim=1) * 20
    wanted = (wanted + last.logsumexp(0) - last[3]) / 4
    torch.testing.assert_close(create_loss("mnrl(positives='mean')")(emb).total, wanted)


def test_without_equal_texts_nothing_changes():
    _, _, emb = example("")
    emb = emb.with_text_ids(anchor=torch.arange(7), positive=torch.arange(7, 14), negative=torch.arange(20, 28))
    emb = emb.with_row_ids(torch.arange(7))
    for name in ("mnrl(", "gist(guide='g', "):
        wanted = create_loss(f"{name})" if name == "mnrl(" else "gist(guide='g')")(emb).total
        for options in ("positives='mean'", "positives='sum'", "mask_same_id=True, mask_same_text=True"):
            torch.testing.assert_close(create_loss(f"{name}{options})")(emb).total, wanted, rtol=1e-12, atol=1e-12)


def test_everything_masked_teaches_nothing():
    leaves, _, emb = example("")
    emb = emb.with_row_ids(torch.zeros(7, dtype=torch.int64))
    pairs = Embeddings.of(anchor=leaves["anchor"], positive=leaves["positive"]).with_row_ids(torch.zeros(7, dtype=torch.int64))
    output = create_loss("mnrl(mask_same_id=True)")(pairs)
    assert float(output.total.detach()) == 0
    assert float(output.metrics["active"]) == 0
    for g in gradients(output.total, {k: leaves[k] for k in ("anchor", "positive")}):
        assert not g.any()


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("mnrl(positives='all')", "positives must be one of first, mean, sum"),
        ("mnrl(positives='sum', directions=['query_to_doc', 'doc_to_doc'])", "positives='sum' goes with query_to_doc alone"),
        ("mnrl(negatives='own', mask_same_id=True)", "uses no other rows"),
        ("mnrl(guide='self', margin=1e999)", "margin must be finite"),
        ("mnrl(margin_strategy='x')", "margin_strategy must be one of absolute, relative"),
        ("mnrl(margin=0.1)", "margin has no effect without a guide"),
        ("mega_batch(guide_prompt='query: ')", "guide_prompt has no effect without a guide"),
        ("gist(guide='g', positives='x')", "positives must be one of"),
        ("mega_batch(guide=3)", "guide must name a model"),
    ],
)
def test_wrong_parameters(expression, message):
    with pytest.raises(EmbedlossError, match=message):
        create_loss(expression)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("mask_same_id=True", "needs to know the ids of the rows for mask_same_id. Type: --map id=COLUMN"),
        ("positives='sum'", "needs to know equal texts for positives='sum'"),
        ("mask_same_text=True", "needs to know equal texts for mask_same_text"),
    ],
)
@pytest.mark.parametrize("name", ["mnrl(", "gist(guide='g', "])
def test_ids_that_are_not_there(name, option, message):
    emb = Embeddings.of(anchor=torch.eye(3), positive=torch.eye(3)).with_guide(
        Embeddings.of(anchor=torch.eye(3), positive=torch.eye(3))
    )
    with pytest.raises(EmbedlossError, match=message):
        create_loss(f"{name}{option})")(emb)


def worker(rank, store):
    import torch.distributed as dist

    from embedloss.distributed import leave

    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    for share in ((4, 3), (6, 1)):
        begin, end = (0, share[0]) if rank == 0 else (share[0], 7)
        for expression in EXPRESSIONS:
            leaves, _, emb = example(expression, begin, end)
            value = create_loss(expression)(emb.with_gathering()).total
            found = gradients(value, leaves)
            mean = value.detach() / 2
            dist.all_reduce(mean)
            joint, _, alone = example(expression)
            wanted = create_loss(expression)(alone).total
            torch.testing.assert_close(mean, wanted.detach(), rtol=1e-10, atol=1e-12)
            parts = (slice(begin, end), slice(begin, end), slice(sum(COUNTS[:begin]), sum(COUNTS[:end])))
            for g, w, part in zip(found, gradients(wanted, joint), parts, strict=False):
                torch.testing.assert_close(g / 2, w[part], rtol=1e-8, atol=1e-11, msg=f"{expression} {share}")
            del value, emb
    dist.barrier()
    leave()


def test_two_processes_mask_each_others_rows(tmp_path):
    start = functools.partial(subprocess.Popen, stderr=subprocess.PIPE, text=True)
    processes = [start([sys.executable, __file__, str(rank), str(tmp_path / "store")]) for rank in range(2)]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
