"""The specs of this family. Imports no torch."""

from __future__ import annotations

from embedloss import LossSpec, hookimpl

_PROJECTION = """\
- `projection_dim = None`: an integer puts a linear map with bias between student and teacher, from the student's size to this
  one. It is trained along, saved and resumed with the loss, and written or read alone by `save_projection(path)` and
  `load_projection(path)` (safetensors). It is made when training starts, or at the first call on ready embeddings, from the
  seed of the process. Embeddings that a modifier has cut to d coordinates use its first d inputs, and labels cut to d meet
  its first d outputs.
"""

_VECTORS = """\
**Inputs**

`text+embedding`: a text and the teacher's vector. `texts+embedding`: several texts a row (columns, such as languages) and one
vector for all of them, (rows, dim), or one for each, (rows, texts, dim). Vectors are computed beforehand, with whatever
prompt the teacher needs; they receive no gradient. `matryoshka` cuts them with the embeddings, because their kind of label
says what they are.
"""

_SCORES = """\
- `activation_fn = "identity"`: applied to the scores; also `"sigmoid"`, `"tanh"`, `"relu"`, None (the same as identity).
"""

_HOFSTAETTER = (
    "Hofstätter et al. 2020, Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation, "
    "arXiv 2010.02666"
)

EMBED_DISTILL = LossSpec(
    name="embed-distill",
    row_weights=True,
    recommended=70,
    advice="a teacher's vectors by any similarity, through a projection where dimensions differ",
    aliases=("embedding-distillation",),
    field_name="EmbedDistillLoss",
    target="embedloss_distillation.losses:EmbedDistillLoss",
    summary="embeddings close to a teacher's vectors, by cosine, Euclidean distance or squared difference",
    family="distillation",
    formats=["text+embedding", "texts+embedding"],
    citation="Kim et al. 2023, EmbedDistill: A Geometric Knowledge Distillation for Information Retrieval, arXiv 2301.12005",
    doc=f"""\
**Formula**

`L = mean over texts of d(P e, t)`, e the student's embedding, t the teacher's vector, P the projection if there is one, and

- `cosine`: `1 - cos(P e, t)`
- `l2`: `|P e - t|`
- `mse`: mean over coordinates of `(P e - t)^2`

{_VECTORS}
**Parameters**

- `distance_metric = "cosine"`: or `"l2"`, `"mse"`.
{_PROJECTION}
**When to use it**

To make a small model stand in for a large one: the student's vectors can then be searched against an index of the teacher's
(`l2`, `mse`, or `cosine` where both are normalised). Needs texts only, no labels and no negatives.

**Relations**

`mse` is this with `distance_metric="mse"`. `margin_mse` and `distill_kl_div` learn a teacher's scores and not its vectors.

**Differences from sentence-transformers**

- Texts of a row may differ in number; every text counts the same. With equal numbers it is the mean over columns, as there.
- A zero embedding has cosine 0 and gradient 0 instead of a gradient near 1e8; half precision is summed in float32.
- A wrong size of the vectors is refused before training, with the projection to type.

**Example**

```python
import torch
from embedloss import Embeddings, create_loss

loss = create_loss("embed_distill(distance_metric='cosine', projection_dim=16)")
output = loss(Embeddings.of(text=torch.randn(4, 8)), torch.randn(4, 16))
two_columns = loss(Embeddings.of(texts=torch.randn(4, 2, 8)), torch.randn(4, 2, 16))
print(output.total, two_columns.total)
```
""",
)

MSE = LossSpec(
    name="mse",
    row_weights=True,
    recommended=90,
    advice="the student's vector becomes the teacher's: smaller models, other languages",
    aliases=("embedding-mse",),
    field_name="MSELoss",
    target="embedloss_distillation.losses:MSELoss",
    summary="embeddings equal to a teacher's vectors, coordinate by coordinate",
    family="distillation",
    formats=["text+embedding", "texts+embedding"],
    citation="Reimers and Gurevych 2020, Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation, "
    "arXiv 2004.09813",
    doc=f"""\
**Formula**

`L = mean over texts and coordinates of (P e - t)^2`, e the student's embedding, t the teacher's vector, P the projection if
there is one.

{_VECTORS}
**Parameters**

{_PROJECTION}
**When to use it**

To teach a model further languages: the texts of a row are a sentence and its translations, the vector is the teacher's of the
sentence it understands, and one target for all of them pulls translations together.

**Relations**

`embed_distill(distance_metric="mse")` is the same. `score_mse` is about scores of pairs, although cross-encoder libraries call
both MSELoss.

**Differences from sentence-transformers**

- Texts of a row may differ in number; every text counts the same. With equal numbers it is the mean over columns, as there.
- In `matryoshka` the vectors are cut and normalised because their kind of label says so; there, if their size equals the
  model's, they are cut but not normalised, so that even a student equal to its teacher has a loss above 0.

**Example**

```python
import torch
from embedloss import Embeddings, create_loss

loss = create_loss("mse")
english_and_german = torch.randn(4, 2, 8)
print(loss(Embeddings.of(texts=english_and_german), torch.randn(4, 8)).total)
```
""",
)

SCORE_MSE = LossSpec(
    name="score-mse",
    recommended=40,
    advice="the score itself is learnt, not only the order of scores",
    aliases=("ce-mse",),
    field_name="MSELoss",
    target="embedloss_distillation.losses:ScoreMSELoss",
    summary="scores of pairs equal to given scores",
    family="distillation",
    formats=["pairs+score"],
    models=("bi-encoder", "cross-encoder"),
    consumes="scores",
    citation=_HOFSTAETTER,
    doc=f"""\
**Formula**

`L = mean over rows of (s - y)^2`, s the logit of the pair on a cross-encoder, `scale` times its similarity on a bi-encoder.

**Inputs**

`pairs+score`: two texts and any real number.

**Parameters**

{_SCORES}- `reduction = "mean"`: or `"sum"`.
- `similarity_fct = "cosine"`, `scale = 1.0`: the score of a bi-encoder; not used on a cross-encoder.

**When to use it**

To learn a teacher's scores, or human ones, as numbers. With scores in [0, 1] `activation_fn="sigmoid"` keeps a cross-encoder in
range; `binary_cross_entropy` is then usually better.

**Relations**

On a bi-encoder the defaults are `cosine_similarity`. `margin_mse` learns differences of scores, which is easier where teacher
and student use different scales.

**Differences from sentence-transformers**

- It trains bi-encoders too. `reduction` is the only setting of torch's MSELoss that is taken.

**Example**

```python
import torch
from embedloss import Embeddings, create_loss
from embedloss.embeddings import Scores

loss = create_loss("score_mse(activation_fn='sigmoid')")
print(loss(Scores.of(torch.randn(4)), torch.rand(4)).total)
print(create_loss("score_mse")(Embeddings.of(first=torch.randn(4, 8), second=torch.randn(4, 8)), torch.rand(4)).total)
```
""",
)

MARGIN_MSE = LossSpec(
    name="margin-mse",
    recommended=90,
    advice="the teacher's margins; its scale does not matter",
    aliases=("mmse",),
    field_name="MarginMSELoss",
    target="embedloss_distillation.losses:MarginMSELoss",
    summary="differences of scores equal to a teacher's differences",
    family="distillation",
    formats=["triplets+margin", "n-tuples+margins", "n-tuples+scores"],
    models=("bi-encoder", "cross-encoder"),
    consumes="scores",
    citation=_HOFSTAETTER,
    doc=f"""\
**Formula**

`L = mean over rows and negatives of ((s(q, p) - s(q, n)) - m)^2`, m the teacher's margin `M(q, p) - M(q, n)`. Both differences
keep their sign; the positive need not be the better one.

**Inputs**

`triplets+margin` (labels (rows,) or (rows, 1)), `n-tuples+margins` (labels (rows, negatives)) or `n-tuples+scores` (labels
(rows, 1 + negatives), the positive's score first, turned into margins). The number of negatives may differ from row to row;
labels are then padded and the padding is not read.

**Parameters**

- `similarity_fct = "dot"`, `scale = 1.0`: the score of a bi-encoder; not used on a cross-encoder.
{_SCORES}- `reduction = "mean"`: over all margins; or `"sum"`.

**When to use it**

To distil a cross-encoder into a model of either kind with mined negatives, also badly mined ones: a negative that is in fact
relevant has a margin near 0. With cosines, which lie within [-1, 1], margins of logits are out of reach: keep the dot product
or scale the labels.

**Relations**

`distill_kl_div` asks for the teacher's distribution over the candidates and not for its differences. `score_mse` asks for the
scores themselves.

**Differences from sentence-transformers**

- One loss for bi-encoders and cross-encoders, with every shape of labels for both, and numbers of negatives that differ.
- Labels are cast to the dtype of the scores; there float64 labels make the whole loss float64.

**Example**

```python
import torch
from embedloss import Embeddings, create_loss
from embedloss.embeddings import Scores

loss = create_loss("margin_mse")
texts = Embeddings.of(query=torch.randn(4, 8), positive=torch.randn(4, 8), negative=torch.randn(4, 2, 8))
print(loss(texts, torch.randn(4, 2)).total)  # margins
print(loss(texts, torch.randn(4, 3)).total)  # scores
print(loss(Scores.of(torch.randn(4, 3)), torch.randn(4, 2)).total)  # logits of a cross-encoder, the positive's first
```
""",
)

DISTILL_KL_DIV = LossSpec(
    name="distill-kl-div",
    recommended=85,
    advice="the teacher's distribution over the documents of a query",
    aliases=("kl-div", "distill-kl"),
    leaves_out=True,
    field_name="DistillKLDivLoss",
    target="embedloss_distillation.losses:DistillKLDivLoss",
    summary="the teacher's distribution over a query's candidates",
    family="distillation",
    formats=["n-tuples+scores"],
    models=("bi-encoder", "cross-encoder"),
    consumes="scores",
    citation="Lin, Yang and Lin 2020, Distilling Dense Representations for Ranking using Tightly-Coupled Teachers, "
    "arXiv 2010.11386; Hinton, Vinyals and Dean 2015, Distilling the Knowledge in a Neural Network, arXiv 1503.02531",
    doc=f"""\
**Formula**

`p = softmax(M / T_t)`, `q = softmax(s / T_s)` over the candidates c of a row;
`L = T_s^2 * mean over rows of sum_c p_c (log p_c - log q_c)`

**Inputs**

`n-tuples+scores`: a query, its positive and negatives, and one teacher score a candidate, the positive's first; at least two
candidates. Their number may differ from row to row; padding takes part in neither softmax. A score of -inf gives a candidate
the target 0, while the student still has to score it low; a row of nothing but -inf is refused.

**Parameters**

- `similarity_fct = "dot"`, `scale = 1.0`: the score of a bi-encoder; not used on a cross-encoder.
- `temperature = 1.0`: both scores are divided by it. `student_temperature = None`, `teacher_temperature = None`: for one of
  them alone. All above 0.
{_SCORES}
**When to use it**

To distil a teacher that scores several candidates a query. It matters how candidates compare and not on which scale, so it
suits a teacher whose logits the student cannot reach. Scores that lie more than 100 temperatures below the best one have
target 0 in float32; a warning gives the temperature to type.

**Relations**

`margin_mse` is stricter about differences of scores. `list_net` is the cross entropy of the same two distributions, with grades
as scores.

**Differences from sentence-transformers**

- It trains cross-encoders too, and rows may have different numbers of candidates.
- NaN scores are refused in every batch, not in the first one only; a row of -inf is refused instead of making the loss NaN.

**Example**

```python
import torch
from embedloss import Embeddings, create_loss
from embedloss.embeddings import Scores

loss = create_loss("distill_kl_div(temperature=2)")
texts = Embeddings.of(query=torch.randn(4, 8), positive=torch.randn(4, 8), negative=torch.randn(4, 2, 8))
print(loss(texts, torch.randn(4, 3)).total)
print(loss(Scores.of(torch.randn(4, 3)), torch.randn(4, 3)).total)  # logits of a cross-encoder
```
""",
)

SPECS: list[LossSpec] = [EMBED_DISTILL, MSE, SCORE_MSE, MARGIN_MSE, DISTILL_KL_DIV]


@hookimpl
def embedloss_register_losses() -> list[LossSpec]:
    """The losses of this distribution."""
    return SPECS
