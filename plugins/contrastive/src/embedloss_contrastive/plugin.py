"""The specs of this family. Imports no torch."""

from __future__ import annotations

from embedloss import LossSpec, hookimpl

_CARLSSON = "Carlsson et al. 2021, Semantic Re-tuning with Contrastive Tension, ICLR 2021, openreview.net/forum?id=Ov_sMNau-PF"

_DISTANCE = """- `distance = "cosine"`: `cosine` (1 - cosine), `euclidean`, `squared-euclidean` or `manhattan`. Names and
  functions of sentence-transformers (`SiameseDistanceMetric.MANHATTAN`) are understood; its keyword is `distance_metric`.
- `margin = 0.5`: greater than 0, in units of the distance; cosine distances end at 2."""

_EPSILON = """`squared-euclidean` is an addition. `euclidean` and `manhattan` are plain: there, 1e-6 is added to every
coordinate of the difference, so that equal vectors are not at distance 0 and have a gradient. Labels other than 0, 1, false
and true are refused; there, """

CONTRASTIVE = LossSpec(
    name="contrastive",
    row_weights=True,
    recommended=70,
    advice="pulls pairs of label 1 together and pushes those of label 0 beyond a margin",
    aliases=("siamese",),
    field_name="ContrastiveLoss",
    target="embedloss_contrastive.losses:ContrastiveLoss",
    summary="pairs with label 1 drawn together, pairs with label 0 pushed apart up to a margin",
    family="contrastive",
    formats=("pairs+binary",),
    scope="row",
    label_range=(0, 1),
    citation=(
        "Hadsell, Chopra and LeCun 2006, Dimensionality Reduction by Learning an Invariant Mapping, doi 10.1109/CVPR.2006.100"
    ),
    doc=f"""**Formula**

With d the distance of a pair and y its label, the loss is the mean over rows of (y d² + (1 - y) max(margin - d, 0)²) / 2.

**Inputs**

`pairs+binary`: roles `first`, `second`, each (rows, dim); labels 0 or 1, (rows,) or (rows, 1).

**Parameters**

{_DISTANCE}
- `reduction = "mean"`: or `sum`, over rows. The keyword of sentence-transformers, `size_average` (true or false), is
  understood.

**When to use it**

Pairs that were judged to belong together or not, such as duplicate questions. Pairs with label 0 should be near misses: beyond
the margin they teach nothing (metric `active`: the share of pairs that do).

**Relations**

`online-contrastive` keeps the hard pairs of a batch and often does better. `cosent` takes graded labels.

**Differences from sentence-transformers**

{_EPSILON}others become weights after a warning, and false and true fail.

**Example**

```python
import torch
from embedloss import Embeddings, create_loss

a, b = (torch.randn(4, 8, requires_grad=True) for _ in range(2))
output = create_loss("contrastive")(Embeddings.of(first=a, second=b), torch.tensor([1, 0, 1, 0]))
output.total.backward()
print(output.total.item(), output.metrics["active"].item())
```
""",
)

ONLINE_CONTRASTIVE = LossSpec(
    name="online-contrastive",
    recommended=80,
    advice="learns from the pairs of a batch that are still on the wrong side, so easy pairs cost nothing",
    field_name="OnlineContrastiveLoss",
    target="embedloss_contrastive.losses:OnlineContrastiveLoss",
    summary="contrastive, of the hard pairs of a batch only",
    family="contrastive",
    formats=("pairs+binary",),
    scope="batch",
    label_range=(0, 1),
    citation="no paper; introduced by the sentence-transformers library",
    doc=f"""**Formula**

Let P be the distances of the pairs with label 1 and Q those of the pairs with label 0. The hard ones are p > min Q and
q < max P; with no Q, p > mean P, and with no P, q < mean Q. The loss is the sum of p² over hard p plus the sum of
max(margin - q, 0)² over hard q. It is a sum without the factor 1/2, so its value grows with the batch. Thresholds carry no
gradient. Of a single pair, or of pairs that are separated already, nothing is hard and the loss is 0.

**Inputs**

`pairs+binary`: roles `first`, `second`, each (rows, dim); labels 0 or 1, (rows,) or (rows, 1). With gathering, hard pairs are
found among the pairs of all processes.

**Parameters**

{_DISTANCE}

**When to use it**

As `contrastive`, with batches large enough to hold hard pairs of both kinds. The metric `active` is the share of pairs that
have a gradient.

**Relations**

`contrastive` takes all pairs and averages.

**Differences from sentence-transformers**

{_EPSILON}pairs with others are left out. A vector that is not a number makes the loss so; there, its pair is left
out. Sums run in float32 whatever the embeddings' precision.

**Example**

```python
import torch
from embedloss import Embeddings, create_loss

a, b = (torch.randn(6, 8, requires_grad=True) for _ in range(2))
output = create_loss("online_contrastive(margin=1)")(Embeddings.of(first=a, second=b), torch.tensor([1, 0, 1, 0, 1, 0]))
output.total.backward()
print(output.total.item(), output.metrics["active"].item())
```
""",
)

CT = LossSpec(
    name="contrastive-tension",
    recommended=65,
    advice="texts alone: a text and itself against a text and another",
    aliases=("ct",),
    field_name="ContrastiveTensionLoss",
    target="embedloss_contrastive.losses:ContrastiveTensionLoss",
    summary="two copies of the encoder agree on equal texts and disagree on different ones",
    family="contrastive",
    formats=("single", "pairs", "pairs+binary"),
    scope="batch",
    equal_texts="some",
    label_range=(0, 1),
    citation=_CARLSSON,
    doc="""**Formula**

A copy f1 of the encoder f2 is made when training starts, and both are trained; f2 is kept. For a pair (a, b) the score is the
inner product s = f1(a) · f2(b), of vectors as they are. The loss is the *sum* over pairs of log(1 + exp(-s)) where the texts
are equal, and log(1 + exp(s)) where they are not.

**Inputs**

- `single`: role `text`. Pairs are drawn from the batch: each text with itself, and with `pos_neg_ratio - 1` other texts,
  anew each step and equally on every process. Texts are encoded once by each encoder, however many pairs they are in. With
  gathering, the others come from all processes.
- `pairs`: roles `anchor`, `positive`, without labels: equal if the texts are equal. Where ready-made embeddings are given, type
  `.with_text_ids(anchor=..., positive=...)`.
- `pairs+binary`: roles `first`, `second`, and labels: 1 equal, 0 different.

All need the embeddings of the copy, `.with_twin(...)`, which the trainer provides; it doubles the memory for weights.

**Parameters**

- `pos_neg_ratio = 8`: pairs each single text makes, one of which is with itself; at least 1. Unused on pairs.

**When to use it**

Texts without any labels. Start from a pretrained language model and use a small learning rate: the first steps undo the copies'
initial agreement. The embeddings must not be scaled to length 1, or no score leaves the range -1 to 1: `--no-normalize`, or
`load_encoder(..., normalize=False)`. The metric `positives` is the share of pairs of equal texts; a batch without any only
pushes apart.

**Relations**

`contrastive-tension-in-batch-negatives` uses the whole batch as negatives and usually learns more. The other unsupervised
losses are `denoising-auto-encoder`, and `multiple-negatives-ranking` on pairs of equal texts.

**Differences from sentence-transformers**

Single texts are taken as they are; there, a data loader makes the pairs, each text takes part in one pair only, and a batch is
counted in pairs. On given pairs both are equal.

**Example**

```python
import torch
from embedloss import Embeddings, create_loss

f1, f2 = (torch.randn(8, 16, requires_grad=True) for _ in range(2))
embeddings = Embeddings.of(text=f2).with_twin(Embeddings.of(text=f1))
output = create_loss("contrastive_tension")(embeddings)
output.total.backward()
print(output.total.item(), output.metrics["positives"].item())
```
""",
)

CT_IN_BATCH = LossSpec(
    name="contrastive-tension-in-batch-negatives",
    recommended=60,
    advice="texts alone, the others of the batch as negatives",
    aliases=("ct-in-batch", "ctib"),
    field_name="ContrastiveTensionLossInBatchNegatives",
    target="embedloss_contrastive.losses:ContrastiveTensionLossInBatchNegatives",
    summary="each text finds itself among the batch as the other copy of the encoder sees it",
    family="contrastive",
    formats=("single", "pairs"),
    scope="batch",
    equal_texts="all",
    sampler="no-duplicates",
    citation=_CARLSSON,
    doc="""**Formula**

A copy f1 of the encoder f2 is made when training starts, and both are trained; f2 is kept. With
S(i, j) = scale · sim(f1(x_i), f2(x_j)), the loss is the mean over texts of the cross-entropy of finding i in row i, averaged
with that of finding i in column i.

**Inputs**

`single`: role `text`, no label. `pairs`: roles `anchor`, `positive`, whose texts must be equal (refused otherwise, E105).
Both need the embeddings of the copy, `.with_twin(...)`, which the trainer provides; it doubles the memory for weights. With
gathering, the texts of all processes are candidates. No text should occur twice in a batch, which the `no-duplicates`
sampler sees to.

**Parameters**

- `scale = 20.0`: start value of the factor, greater than 0. Its logarithm is a parameter of the loss, trained, saved and
  resumed with the rest, and not bounded (metric `scale`).
- `learnable_scale = True`: false keeps the factor as it is.
- `similarity_fct = "cosine"`: or `dot` (with scale 1), `euclidean`, `manhattan`.
- `mask_same_text = False`: if true, equal texts of a batch are no negatives of each other.

**When to use it**

Texts without any labels, in batches as large as possible. Dropout and the growing difference of the copies are all that tells a
text from itself, so a batch of one teaches nothing (0).

**Relations**

`contrastive-tension` draws single pairs instead of using the whole batch. With one encoder in place of two it is
`multiple-negatives-ranking` in both directions on pairs of equal texts. Beyond 256 rows, similarities are computed again in the
backward pass: memory is (256 x texts).

**Differences from sentence-transformers**

The factor can be fixed. A second column is checked to be equal; there, only the first column is read.

**Example**

```python
import torch
from embedloss import Embeddings, create_loss

f1, f2 = (torch.randn(8, 16, requires_grad=True) for _ in range(2))
embeddings = Embeddings.of(text=f2).with_twin(Embeddings.of(text=f1))
output = create_loss("contrastive_tension_in_batch_negatives")(embeddings)
output.total.backward()
print(output.total.item())
```
""",
)

SPECS: list[LossSpec] = [CONTRASTIVE, ONLINE_CONTRASTIVE, CT, CT_IN_BATCH]


@hookimpl
def embedloss_register_losses() -> list[LossSpec]:
    """The losses of this distribution."""
    return SPECS
