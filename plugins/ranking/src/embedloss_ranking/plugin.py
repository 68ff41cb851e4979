"""The specs of this family. Imports no torch."""

from __future__ import annotations

from typing import Any

from embedloss import LossSpec, hookimpl

_OORD = "van den Oord, Li and Vinyals 2018, Representation Learning with Contrastive Predictive Coding, arXiv 1807.03748"
_HENDERSON = "Henderson et al. 2017, Efficient Natural Language Response Suggestion for Smart Reply, arXiv 1705.00652"
_GAO = "Gao et al. 2021, Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, arXiv 2101.06983"
_GIST = (
    "Solatorio 2024, GISTEmbed: Guided In-sample Selection of Training Negatives for Text Embedding Fine-tuning, "
    "arXiv 2402.16829"
)
_WIETING = (
    "Wieting and Gimpel 2018, ParaNMT-50M: Pushing the Limits of Paraphrastic Sentence Embeddings with Millions of Machine "
    "Translations, doi 10.18653/v1/P18-1042"
)

_ROWS = """`pairs`, `triplets` or `n-tuples`: roles `anchor` and `positive`, (rows, dim), and `negative`, with one text a row or
several, whose number may differ from row to row (a list of (n, dim) tensors, or (rows, n, dim)). No label."""

_PROCESSES = """With several processes each scores its own rows against the texts of all (gathering is a setting of the training
step, not of the loss), and divides the sum over its rows by (rows of all processes / processes). So the mean over processes is
the mean over all rows, whether or not every process has as many."""

_EQUAL = """- `mask_same_text = False`: if true, a document whose text is that of the row's positive, or a query whose text is
  that of the row's anchor, is no negative of that row.
- `mask_same_id = False`: if true, anchors and positives of rows with the same id (`--map id=COLUMN`, which may be a label)
  are no negatives of each other."""

_POSITIVES = """- `positives = "first"`: the row's own. Rows whose anchors are equal texts share their positives, and have
  none of them as a negative, with `mean` (each row scores its own, so that a group learns the mean over its positives) and
  with `sum` (the probabilities of all are added)."""

_JUDGED = """- `guide = None`: a frozen model (folder or hub id) whose cosines judge candidates, or `"self"`: the embeddings
  that are trained, as constants, by the similarity of the loss. A candidate is dropped that it finds closer than the row's
  positive less the margin.
- `margin = 0`: larger drops more; -0.1 drops what is closer by more than 0.1.
- `margin_strategy = "absolute"`: or `relative`, a share of the size of the positive's similarity.
- `guide_prompt = None`: text put before every text that the guide sees."""

_PAIRS_EXAMPLE = """```python
import torch
from embedloss import Embeddings, create_loss

anchor, positive = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
output = create_loss('{loss}')(Embeddings.of(anchor=anchor, positive=positive))
output.total.backward()
print(output.total.item(), output.metrics["active"].item())
```"""

_CHUNKS = """`mini_batch_size = 32`, `mini_batch_num_tokens = None` and `show_progress_bar = False` are accepted, so that
settings
of sentence-transformers can be kept, and have no effect: the encoder cuts every batch into chunks of bounded tokens
(`--chunk-tokens`)."""

_PAIRWISE_CHUNKS = """`mini_batch_size = 32` and `show_progress_bar = False` are accepted and have no effect: the model cuts
every
batch into chunks of bounded tokens (`--chunk-tokens`)."""


def _cached(plain: str, what: str, example: str, chunks: str = _CHUNKS) -> str:
    return f"""**Formula**

That of `{plain}`. Value and gradient are the same; the name only switches recomputation on: each chunk of texts is run through
the
model once more during the backward pass, so that the activations of a single chunk live at a time.

**Inputs**

As `{plain}`.

**Parameters**

Those of `{plain}`. {chunks}

**When to use it**

For batches whose activations do not fit: {what} It costs one more forward pass of nearly all chunks.

**Relations**

`{plain}` with `--recompute` is the same run.

**Differences from sentence-transformers**

There this is a training loop of its own inside the loss; here any loss can be recomputed, and this name exists for those who
know it.

**Example**

{example}
"""


def _spec(class_name: str, **fields: Any) -> LossSpec:
    defaults: dict[str, Any] = {
        "target": f"embedloss_ranking.losses:{class_name}",
        "field_name": class_name.replace("Cross", ""),
        "family": "ranking",
        "formats": ("pairs", "triplets", "n-tuples"),
        "scope": "batch",
        "sampler": "no-duplicates",
        "row_weights": not class_name.removeprefix("Cached").startswith("Cross"),
    }
    return LossSpec(**{**defaults, **fields})


MULTIPLE_NEGATIVES_RANKING = _spec(
    "MultipleNegativesRankingLoss",
    name="multiple-negatives-ranking",
    recommended=90,
    advice="the first choice for search: the other rows of the batch are negatives",
    optional=("negative",),
    aliases=("mnrl", "infonce", "in-batch-negatives", "simcse"),
    summary="score each positive above every other document of the batch (InfoNCE)",
    citation=f"{_OORD}; {_HENDERSON}",
    doc=f"""**Formula**

With s = scale · similarity, anchor q_i, positive d_i and a set C_i of candidates that holds d_i,

    loss = mean over i of  log Σ_(c in C_i) exp(s(c)) - s(q_i, d_i)

| direction | candidates of row i | left out |
| --- | --- | --- |
| `query_to_doc` | q_i with every positive and hard negative of the batch | nothing |
| `query_to_query` | q_i with every anchor | q_i |
| `doc_to_query` | d_i with every anchor | nothing |
| `doc_to_doc` | d_i with every positive and hard negative | the documents of row i |

`joint` puts all chosen directions into one sum; with both `query_to_doc` and `doc_to_query` the positive is in it twice, so
that
the loss cannot fall below log 2. `per_direction` is the mean of one loss a direction. With a hardness mode, the logits it names
become scale · sim + hardness_strength · sim, the second sim without gradient.

**Inputs**

{_ROWS}

**Parameters**

- `scale = 20`: inverse temperature, above 0. 20 suits cosines; take 1 for `dot`.
- `similarity_fct = "cosine"`: `cosine`, `dot`, `euclidean`, `manhattan` (the last two negated).
- `directions = ("query_to_doc",)`: must contain `query_to_doc`.
- `partition_mode = "joint"`: or `per_direction`, for `query_to_doc` and `doc_to_query` only, since the others lack the
  positive.
- `hardness_mode = None`: `in_batch_negatives` (documents of other rows), `hard_negatives` (the row's own) or `all_negatives`;
  only
  in `query_to_doc`.
- `hardness_strength = 0`: at least 0; 9 and 5 are published for the first two modes.
- `negatives = "both"`: `own` takes only the row's own hard negatives as candidates, `in-batch` leaves these out.
{_EQUAL}
{_POSITIVES}
{_JUDGED}

**When to use it**

The first choice for search and paraphrase data without labels: (query, answer), (title, body), (text, translation). Larger
batches
give more negatives; see `cached-multiple-negatives-ranking` for those that do not fit. Use the `no-duplicates` sampler, or
`mask_same_text`, since a second copy of a document would be its own negative. SimCSE is this loss on (text, same text) with
dropout.

**Relations**

`gist-embed` lets a guide remove false negatives. `cross-multiple-negatives-ranking` is the same idea for cross-encoders.
`triplet` compares with one negative only. Symmetric InfoNCE is `directions=["query_to_doc", "doc_to_query"],
partition_mode="per_direction"`; the loss of GTE is all four directions, `joint`.

**Differences from sentence-transformers**

None in value and gradient where it takes the input, but for two: a zero vector gets gradient 0 from a cosine (there about
1e12), and
processes with different numbers of rows give the gradient of one process. The parameters from `negatives` on and a different
number of hard negatives in each row are ours. {_PROCESSES} Memory does not hold the matrix of similarities.

**Example**

{_PAIRS_EXAMPLE.format(loss="mnrl(scale=20)")}
""",
)

CACHED_MULTIPLE_NEGATIVES_RANKING = _spec(
    "CachedMultipleNegativesRankingLoss",
    name="cached-multiple-negatives-ranking",
    recommended=70,
    advice="as multiple-negatives-ranking, for batches larger than memory",
    optional=("negative",),
    aliases=("cmnrl", "cached-mnrl"),
    summary="multiple-negatives-ranking with recomputation: large batches in little memory",
    recompute=True,
    citation=f"{_GAO}; {_HENDERSON}",
    doc=_cached(
        "multiple-negatives-ranking",
        "thousands of in-batch negatives on one small device.",
        _PAIRS_EXAMPLE.format(loss="cached_mnrl(scale=20)"),
    ),
)

_SYMMETRIC = '(directions=["query_to_doc", "doc_to_query"], partition_mode="per_direction")'


def _symmetric(replacement: str, example: str, chunks: str = "") -> str:
    return f"""**Formula**

The mean of two losses: each anchor against all documents, and each positive against all anchors. It is
`{replacement}{_SYMMETRIC}` under its old name.

**Inputs**

{_ROWS} Hard negatives take part in the first of the two losses.

**Parameters**

- `scale = 20`: inverse temperature, above 0.
- `similarity_fct = "cosine"`: `cosine`, `dot`, `euclidean` or `manhattan`.
{chunks}
**When to use it**

In old configurations only; each use warns and prints the expression above.

**Relations**

`{replacement}`.

**Example**

{example}
"""


MULTIPLE_NEGATIVES_SYMMETRIC_RANKING = _spec(
    "MultipleNegativesSymmetricRankingLoss",
    name="multiple-negatives-symmetric-ranking",
    aliases=("mnsrl",),
    summary="old name of multiple-negatives-ranking in both directions",
    status="deprecated",
    deprecated_by=f"multiple_negatives_ranking{_SYMMETRIC}",
    citation=_HENDERSON,
    doc=_symmetric("multiple_negatives_ranking", _PAIRS_EXAMPLE.format(loss="mnsrl()")),
)

CACHED_MULTIPLE_NEGATIVES_SYMMETRIC_RANKING = _spec(
    "CachedMultipleNegativesSymmetricRankingLoss",
    name="cached-multiple-negatives-symmetric-ranking",
    aliases=("cmnsrl",),
    summary="old name of cached-multiple-negatives-ranking in both directions",
    status="deprecated",
    deprecated_by=f"cached_multiple_negatives_ranking{_SYMMETRIC}",
    recompute=True,
    citation=f"{_GAO}; {_HENDERSON}",
    doc=_symmetric("cached_multiple_negatives_ranking", _PAIRS_EXAMPLE.format(loss="cmnsrl()"), f"- {_CHUNKS}\n"),
)

_GUIDED_EXAMPLE = """```python
import torch
from embedloss import Embeddings, create_loss

anchor, positive = torch.randn(4, 8, requires_grad=True), torch.randn(4, 8, requires_grad=True)
guide = Embeddings.of(anchor=torch.randn(4, 6), positive=torch.randn(4, 6))  # the trainer makes these with the guide
output = create_loss('{loss}')(Embeddings.of(anchor=anchor, positive=positive).with_guide(guide))
output.total.backward()
print(output.total.item(), output.metrics["active"].item())
```"""

GIST_EMBED = _spec(
    "GISTEmbedLoss",
    name="gist-embed",
    recommended=80,
    advice="a guide model masks negatives that are positives in truth: where queries or documents repeat",
    aliases=("gist",),
    summary="in-batch negatives without those that a frozen guide model finds closer than the positive",
    citation=_GIST,
    example='gist_embed(guide="sentence-transformers/all-MiniLM-L6-v2")',
    doc=f"""**Formula**

With cosines c of the model and g of the guide, row i has the threshold θ_i = g(a_i, p_i) - margin (`absolute`) or
g(a_i, p_i) - |g(a_i, p_i)| · margin (`relative`). Its candidates are the positive p_i, and those of the following whose guide
cosine
is not above θ_i:

- p_j of other rows, judged by g(a_i, p_j);
- a_j of other rows, judged by g(a_i, a_j), if `contrast_anchors`;
- p_j of other rows, compared with p_i and judged by g(p_i, p_j), if `contrast_positives`;
- all hard negatives, the row's own too, judged by g(a_i, n).

The loss is the mean over rows of log Σ exp(c / temperature) - c(a_i, p_i) / temperature.

**Inputs**

{_ROWS} In addition the guide's embeddings of the same texts, of any dimension, which the trainer makes.

**Parameters**

- `guide`: folder or hub id of a model, or an `Encoder`. Frozen, never trained or saved; it tokenises for itself. Or `"self"`:
  the embeddings that are trained, as constants.
- `temperature = 0.01`: above 0.
- `margin_strategy = "absolute"`: or `relative`.
- `margin = 0`: any number; a larger one drops more candidates.
- `contrast_anchors = True`, `contrast_positives = True`: see above.
- `guide_prompt = None`: text put before every text that the guide sees, such as `"query: "`.
{_EQUAL}
{_POSITIVES}

**When to use it**

Where documents of other rows often answer the query as well (questions about few topics, mined pairs), and a good general model
is at hand as the guide. It costs one forward pass of the guide.

**Relations**

Without the guide it is `multiple-negatives-ranking` with a temperature of 0.01. `cached-gist-embed` is the same with
recomputation.

**Differences from sentence-transformers**

- A text is never its own negative: there, anchor-anchor and positive-positive pairs of a row with itself become candidates
  where the
  guide gives the positive a cosine of 1 or its vectors are zero.
- Not-a-number from the guide makes the loss not-a-number; there it drops nothing and stays unseen.
- n-tuples, also with a different number of negatives in each row; the guide sees the texts without the trained model's prompt.
- Anchors are gathered over processes too. {_PROCESSES}
- A copy of the positive is never dropped at margin 0 because of rounding.

**Example**

{_GUIDED_EXAMPLE.format(loss='gist(guide="guide")')}
""",
)

CACHED_GIST_EMBED = _spec(
    "CachedGISTEmbedLoss",
    name="cached-gist-embed",
    recommended=60,
    advice="as gist-embed, for batches larger than memory",
    aliases=("cgist", "cached-gist"),
    summary="gist-embed with recomputation: large batches in little memory",
    recompute=True,
    citation=f"{_GIST}; {_GAO}",
    example='cached_gist_embed(guide="sentence-transformers/all-MiniLM-L6-v2")',
    doc=_cached(
        "gist-embed",
        "many guided negatives on one small device.",
        _GUIDED_EXAMPLE.format(loss='cached_gist(guide="guide")'),
    ),
)

MEGA_BATCH_MARGIN = _spec(
    "MegaBatchMarginLoss",
    name="mega-batch-margin",
    recommended=30,
    advice="the hardest negative of a very large batch",
    aliases=("mega-batch",),
    summary="margins on the positive and on the hardest other positive of a large batch",
    formats=("pairs",),
    citation=_WIETING,
    doc=f"""**Formula**

With h_i the largest cosine of anchor i with the positive of another row,

    loss = mean over i of  max(0, positive_margin - cos(a_i, p_i)) + max(0, h_i - negative_margin)

A batch of one row has the first term only.

**Inputs**

`pairs`: roles `anchor` and `positive`, (rows, dim). No label.

**Parameters**

- `positive_margin = 0.8`, `negative_margin = 0.3`: cosines, in [-1, 1].
- `use_mini_batched_version = True`, `mini_batch_size = 50`: look at that many rows at a time. Value and gradient do not depend
  on
  it. Any size works.
{_EQUAL}
{_JUDGED}

**When to use it**

Paraphrases in batches of 500 rows and more (use `--recompute`), where the hardest of many is a useful negative.

**Relations**

`multiple-negatives-ranking` weighs all negatives of the batch instead of the hardest one and is the better first choice.

**Differences from sentence-transformers**

Texts are gathered over processes. {_PROCESSES}

**Example**

{_PAIRS_EXAMPLE.format(loss="mega_batch_margin()")}
""",
)

_SCORES_EXAMPLE = """```python
import torch
from embedloss import create_loss
from embedloss.embeddings import Scores

logits = torch.randn(4, 6, requires_grad=True)  # the positive's first, then five negatives
output = create_loss('{loss}')(Scores.of(logits))
output.total.backward()
print(output.total.item(), output.metrics["saturated"].item())
```"""

CROSS_MULTIPLE_NEGATIVES_RANKING = _spec(
    "CrossMultipleNegativesRankingLoss",
    name="cross-multiple-negatives-ranking",
    recommended=85,
    advice="a reranker from pairs alone, random documents as negatives",
    aliases=("ce-mnrl",),
    summary="score each positive above sampled documents of other rows, with a cross-encoder",
    models=("cross-encoder",),
    consumes="scores",
    scope="row",
    citation=_HENDERSON,
    doc=f"""**Formula**

Row i has its positive, its own hard negatives and `num_negatives` documents drawn from the other rows of the batch. With
z = scale · activation(logit), the loss is the mean over rows of log Σ exp(z) - z of the positive.

**Inputs**

`pairs`, `triplets` or `n-tuples` of texts, no label. The documents are drawn before tokenisation; the loss itself takes
scores (rows, candidates), the positive's first, and a mask.

**Parameters**

- `num_negatives = 4`: documents drawn for each row, uniformly and without replacement; 0 for own negatives only, None for all.
- `scale = 10`: 0 or None for none.
- `activation_fn = "sigmoid"`: `identity` or None for none.

**When to use it**

Rerankers from (query, answer) pairs. Every row costs as many forward passes as it has candidates, so a few good hard negatives
with a small `num_negatives` go far.

With the sigmoid the loss is flat where logits are large: at ±30 a wrong order no longer has a gradient. The metric
`saturated`, the
share of scores where the slope of the sigmoid is below 1e-4, shows it; use `activation_fn=None, scale=1` then.

**Relations**

`multiple-negatives-ranking` for bi-encoders; `binary-cross-entropy` on labelled pairs. It is ListNet with one relevant
document.

**Differences from sentence-transformers**

`num_negatives=0` works. A text that the row has already, or that is a positive of the same query in another row, is never
drawn, and no text twice. Documents are drawn from this process's rows, there as here.

**Example**

{_SCORES_EXAMPLE.format(loss="ce_mnrl()")}
""",
)

CACHED_CROSS_MULTIPLE_NEGATIVES_RANKING = _spec(
    "CachedCrossMultipleNegativesRankingLoss",
    name="cached-cross-multiple-negatives-ranking",
    recommended=55,
    advice="as cross-multiple-negatives-ranking, for batches larger than memory",
    aliases=("ce-cmnrl",),
    summary="cross-multiple-negatives-ranking with recomputation: large batches in little memory",
    models=("cross-encoder",),
    consumes="scores",
    scope="row",
    recompute=True,
    citation=f"{_HENDERSON}; {_GAO}",
    doc=_cached(
        "cross-multiple-negatives-ranking",
        "many candidates a row with a large reranker.",
        _SCORES_EXAMPLE.format(loss="ce_cmnrl()"),
        _PAIRWISE_CHUNKS,
    ),
)

SPECS: list[LossSpec] = [
    MULTIPLE_NEGATIVES_RANKING,
    CACHED_MULTIPLE_NEGATIVES_RANKING,
    MULTIPLE_NEGATIVES_SYMMETRIC_RANKING,
    CACHED_MULTIPLE_NEGATIVES_SYMMETRIC_RANKING,
    GIST_EMBED,
    CACHED_GIST_EMBED,
    MEGA_BATCH_MARGIN,
    CROSS_MULTIPLE_NEGATIVES_RANKING,
    CACHED_CROSS_MULTIPLE_NEGATIVES_RANKING,
]


@hookimpl
def embedloss_register_losses() -> list[LossSpec]:
    """The losses of this distribution."""
    return SPECS
