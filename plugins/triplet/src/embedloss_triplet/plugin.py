"""The specs of this family. Imports no torch."""

from __future__ import annotations

from embedloss import LossSpec, hookimpl

_HERMANS = "Hermans, Beyer and Leibe 2017, In Defense of the Triplet Loss for Person Re-Identification, arXiv 1703.07737"
_SCHROFF = (
    "Schroff, Kalenichenko and Philbin 2015, FaceNet: A Unified Embedding for Face Recognition and Clustering, arXiv 1503.03832"
)

_DISTANCES = """- `distance = "euclidean"`: `euclidean`, `squared-euclidean`, `manhattan` or `cosine` (1 - cosine). Names and
  functions of sentence-transformers (`BatchHardTripletLossDistanceFunction.cosine_distance`, `TripletDistanceMetric.MANHATTAN`,
  `SiameseDistanceMetric.EUCLIDEAN`) are understood; its keyword is `distance_metric`."""
_MARGIN = """- `margin = 5.0`: at least 0, in units of the distance. 5 suits Euclidean distances of vectors that are not
  normalised. On unit vectors, where distances end at 2, and with `cosine`, every triplet stays inside a margin of 5: try 0.2 to
  0.5."""
_CLASSES = """`single+class`: role `text`, embeddings (rows, dim); labels (rows,) or (rows, 1), any numbers, of which only
equality matters. Every text is an anchor; with gathering, the texts of all processes are its positives and negatives. The batch
should hold two classes with two rows each, which the `group-by-label` sampler sees to."""
_MEMORY = """Anchors are taken in blocks and the gradient is found on the way: memory is (256 x texts), never
(texts x texts) or more."""

_CLASS_EXAMPLE = """```python
import torch
from embedloss import Embeddings, create_loss

texts = torch.randn(6, 8, requires_grad=True)
output = create_loss("{name}")(Embeddings.of(text=texts), torch.tensor([0, 0, 1, 1, 2, 2]))
output.total.backward()
print(output.total.item(), output.metrics["active"].item())
```"""

BATCH_ALL = LossSpec(
    name="batch-all-triplet",
    recommended=75,
    advice="every triplet of the batch",
    aliases=("batch-all",),
    field_name="BatchAllTripletLoss",
    target="embedloss_triplet.losses:BatchAllTripletLoss",
    summary="every triplet of the batch that violates the margin",
    family="triplet",
    formats=("single+class",),
    scope="batch",
    sampler="group-by-label",
    citation=_HERMANS,
    doc=f"""**Formula**

A triplet (a, p, n) is valid if a and p are different texts of one class and n is of another class. It is active if
d(a, p) - d(a, n) + margin > 0. The loss is the mean of that number over the *active* triplets, and 0 if none is active.

**Inputs**

{_CLASSES}

**Parameters**

{_DISTANCES}
{_MARGIN}

**When to use it**

Texts with classes, several of each class a batch. It uses all that a batch knows, so it is smoother than the mining losses;
as the mean is over active triplets, its value need not fall while the number of active triplets (metric `active`) does.

**Relations**

`batch-hard-triplet` keeps one triplet an anchor, `batch-semi-hard-triplet` one a positive pair, `triplet` takes triplets as
given. The number of triplets is cubic in the batch, the cost here is not: counts in sorted rows give value and gradient in
O(texts² log texts). {_MEMORY}

**Example**

{_CLASS_EXAMPLE.format(name="batch_all_triplet(margin=1)")}
""",
)

BATCH_HARD = LossSpec(
    name="batch-hard-triplet",
    recommended=85,
    advice="the hardest positive and negative of each row in the batch: few rows a class are enough",
    aliases=("batch-hard",),
    field_name="BatchHardTripletLoss",
    target="embedloss_triplet.losses:BatchHardTripletLoss",
    summary="for every text its farthest positive and its nearest negative",
    family="triplet",
    formats=("single+class",),
    scope="batch",
    sampler="group-by-label",
    citation=_HERMANS,
    doc=f"""**Formula**

With P the distance of an anchor to its farthest positive and N that to its nearest negative, the loss is the mean of
max(P - N + margin, 0) over the anchors that have both; 0 if none has.

**Inputs**

{_CLASSES}

**Parameters**

{_DISTANCES}
{_MARGIN}

**When to use it**

Clean classes. One wrong label makes the hardest triplet of many anchors, so prefer `batch-semi-hard-triplet` or
`batch-all-triplet` on noisy labels, and for the first steps of a model that knows nothing: hardest triplets can collapse it.

**Relations**

`batch-hard-soft-margin-triplet` replaces the hinge by softplus. {_MEMORY}

**Differences from sentence-transformers**

There, all rows are averaged: an anchor without a positive still pushes its nearest negative away, and a batch of one class has
the margin as its value. Here such anchors do not count (all labels distinct, or one class: 0). On batches of the
`group-by-label` sampler both are equal.

**Example**

{_CLASS_EXAMPLE.format(name="batch_hard_triplet(margin=1)")}
""",
)

BATCH_HARD_SOFT = LossSpec(
    name="batch-hard-soft-margin-triplet",
    recommended=80,
    advice="as batch-hard-triplet, with no margin to choose",
    aliases=("batch-hard-soft", "soft-margin-triplet"),
    field_name="BatchHardSoftMarginTripletLoss",
    target="embedloss_triplet.losses:BatchHardSoftMarginTripletLoss",
    summary="batch-hard with softplus instead of a margin",
    family="triplet",
    formats=("single+class",),
    scope="batch",
    sampler="group-by-label",
    citation=_HERMANS,
    doc=f"""**Formula**

With P the distance of an anchor to its farthest positive and N that to its nearest negative, the loss is the mean of
log(1 + exp(P - N)) over the anchors that have both; 0 if none has.

**Inputs**

{_CLASSES}

**Parameters**

{_DISTANCES}

**When to use it**

As `batch-hard-triplet`, where no good margin is known. It never stops pulling, so classes go on shrinking.

**Relations**

`batch-hard-triplet` stops at a margin. {_MEMORY}

**Differences from sentence-transformers**

Anchors without a positive or without a negative do not count; there, a batch of one class has the value log 2.

**Example**

{_CLASS_EXAMPLE.format(name="batch_hard_soft_margin_triplet")}
""",
)

BATCH_SEMI_HARD = LossSpec(
    name="batch-semi-hard-triplet",
    recommended=83,
    advice="negatives farther than the positive: steadier where labels have errors",
    aliases=("batch-semi-hard", "semi-hard"),
    field_name="BatchSemiHardTripletLoss",
    target="embedloss_triplet.losses:BatchSemiHardTripletLoss",
    summary="for every positive pair the nearest negative beyond the positive",
    family="triplet",
    formats=("single+class",),
    scope="batch",
    sampler="group-by-label",
    citation=_SCHROFF,
    doc=f"""**Formula**

For every ordered pair (a, p) of different texts of one class, n is the negative nearest to a among those with
d(a, n) > d(a, p); where no negative is that far away, n is the farthest negative. The loss is the mean of
max(d(a, p) - d(a, n) + margin, 0) over the pairs whose anchor has a negative; 0 if there is none. Pairs whose term is 0 count.

A triplet is *semi-hard* if d(a, p) < d(a, n) < d(a, p) + margin: in the right order, but not by the margin. By the second rule
hard triplets take part as well.

**Inputs**

{_CLASSES}

**Parameters**

{_DISTANCES}
{_MARGIN}

**When to use it**

A good first choice of this family: hardest negatives are often wrong labels, and easy ones teach nothing.

**Relations**

`batch-hard-triplet` takes the nearest negative whatever the positive's distance, `batch-all-triplet` takes all. {_MEMORY}

**Differences from sentence-transformers**

There, in a batch of one class the missing negative counts as the nearest distance of the row, which pulls the class together
(value 8.4 on a random batch at margin 5). Here such a batch is 0.

**Example**

{_CLASS_EXAMPLE.format(name="batch_semi_hard_triplet(margin=1)")}
""",
)

TRIPLET = LossSpec(
    name="triplet",
    row_weights=True,
    recommended=70,
    advice="the given negative alone, at a margin; independent of the batch",
    aliases=("triplet-margin",),
    field_name="TripletLoss",
    target="embedloss_triplet.losses:TripletLoss",
    summary="the anchor nearer to its positive than to its negative, by a margin",
    family="triplet",
    formats=("triplets", "n-tuples"),
    scope="row",
    citation=_SCHROFF,
    doc=f"""**Formula**

Mean over the triplets of max(d(anchor, positive) - d(anchor, negative) + margin, 0).

**Inputs**

`triplets`: roles `anchor`, `positive`, `negative`, each (rows, dim); no label. `n-tuples`: each negative of a row makes a
triplet with the row's anchor and positive, and the mean is over triplets.

**Parameters**

{_DISTANCES}
{_MARGIN} The keyword of sentence-transformers, `triplet_margin`, is understood.

**When to use it**

Triplets whose negatives were chosen with care. Where rows are merely pairs with mined negatives,
`multiple-negatives-ranking` uses the other rows as negatives too and usually learns more.

**Relations**

The batch losses of this family find triplets themselves, from classes. The metric `active` says what share of triplets
violates the margin; near 0 the negatives have become too easy.

**Differences from sentence-transformers**

`squared-euclidean` and n-tuples are additions. A zero vector has cosine 0 with everything and gradient 0; there its gradient is
about 5e11.

**Example**

```python
import torch
from embedloss import Embeddings, create_loss

a, p, n = (torch.randn(4, 8, requires_grad=True) for _ in range(3))
output = create_loss("triplet(distance='cosine', margin=0.3)")(Embeddings.of(anchor=a, positive=p, negative=n))
output.total.backward()
print(output.total.item(), output.metrics["active"].item())
```
""",
)

SPECS: list[LossSpec] = [BATCH_ALL, BATCH_HARD, BATCH_HARD_SOFT, BATCH_SEMI_HARD, TRIPLET]


@hookimpl
def embedloss_register_losses() -> list[LossSpec]:
    """The losses of this distribution."""
    return SPECS
