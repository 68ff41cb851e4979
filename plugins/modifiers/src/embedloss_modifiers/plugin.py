"""The specs of this family. Imports no torch."""

from __future__ import annotations

from embedloss import LossSpec, hookimpl

MATRYOSHKA = LossSpec(
    name="matryoshka",
    aliases=("mrl",),
    field_name="MatryoshkaLoss",
    target="embedloss_modifiers.losses:MatryoshkaLoss",
    summary="a loss over several prefixes of the embeddings, so that they can be truncated",
    family="modifiers",
    modifier=True,
    example="matryoshka(mnrl(), dims=[384, 192, 96])",
    citation="Kusupati et al. 2022, Matryoshka Representation Learning, arXiv 2205.13147",
    doc="""\
**Formula**

`L = sum over d in S of w_d * inner(E_d)` with `E_d = x[:d] / |x[:d]|` for every embedding x; S holds all `dims`, or
`n_dims_per_step` of them drawn anew each step. The embeddings are normalised at every d, the full width included.

**Inputs**

What the inner loss takes. Labels that are declared to be a teacher's vectors (`text+embedding`, `texts+embedding`) are
truncated and normalised as the embeddings are; all other labels are passed on. Guides keep their full width.

**Parameters**

- `loss`: any loss, also a sum, a modifier, a loss of several terms or one that recomputes.
- `dims`: sizes of the prefixes, each once, from 1 to the model's dimension D. Without D a warning says that embeddings of
  full width are not trained.
- `weights = None`: one number a dimension; None stands for 1 each.
- `n_dims_per_step = -1`: dimensions drawn each step, equal on every process; at most 0, or all: every one. The draw is not
  rescaled, so k of n dimensions give k / n of the full loss on average.

**When to use it**

When one model has to serve indexes of different sizes: store short vectors, search them first, rank again with long ones.
All dimensions share one pass through the encoder, so five of them cost little more than one.

**Relations**

`adaptive_layer` does for layers what this does for dimensions; `matryoshka_2d` is both. They nest in any order. A loss on dot
products or Euclidean distances sees unit vectors in here, so `triplet()` and `matryoshka(triplet(), dims=[D])` differ.

**Differences from sentence-transformers**

- Teacher vectors are recognised by the declared kind of label, not by a last size that happens to equal D, and are normalised
  after truncation, as the embeddings are. Otherwise a student that equals its teacher would have a loss above zero.
- Losses of several terms, sums and `adaptive_layer` can be inside.
- A repeated dimension is refused; give it a larger weight.
- A vector whose prefix is zero has cosine 0 and gradient 0 instead of a gradient near 1e12.

**Example**

```python
import torch
from embedloss import Embeddings, create_loss

loss = create_loss("matryoshka(cosent(), dims=[8, 4], weights=[1, 0.5])")
output = loss(Embeddings.of(first=torch.randn(6, 8), second=torch.randn(6, 8)), torch.rand(6))
print(output.total, sorted(output.terms))  # ['matryoshka/4/loss', 'matryoshka/8/loss']
```
""",
)

ADAPTIVE_LAYER = LossSpec(
    name="adaptive-layer",
    aliases=("adaptive-layers",),
    field_name="AdaptiveLayerLoss",
    target="embedloss_modifiers.losses:AdaptiveLayerLoss",
    summary="a loss on the final and on earlier layers, so that layers can be cut off",
    family="modifiers",
    modifier=True,
    example="adaptive_layer(mnrl())",
    deviations={"finite_differences": "the final layer teaches the earlier ones and is a constant there"},
    citation="Li et al. 2024, 2D Matryoshka Sentence Embeddings, arXiv 2402.14776",
    doc="""\
**Formula**

`E_i` are the embeddings made from layer i (0: the embedding layer, n: the final one), each through pooling and all later
modules. S holds the prior layers drawn this step.

`L = last_layer_weight * inner(E_n) + sum over i in S of [prior_layers_weight * omega(i) / |S| * inner(E_i)
+ T * kl_div_weight * KL(softmax(E_n / T) || softmax(E_i / T))]`

The divergence runs over the coordinates of every text of every role, is averaged over texts and sends no gradient to the final
layer. It is neither divided by |S| nor weighted by omega.

**Inputs**

What the inner loss takes, and an encoder that gives all its layers; a static encoder has none (E302).

**Parameters**

- `loss`: any loss, also one that recomputes.
- `n_layers_per_step = 1`: prior layers drawn each step, equal on every process; at most 0, or n: all.
- `last_layer_weight = 1.0`, `prior_layers_weight = 1.0`: weights of the final layer and of the mean of the prior ones.
- `kl_div_weight = 1.0`, `kl_temperature = 0.3`: weight and temperature T of the divergence; T = 0 leaves it out.
- `layer_weighting = "uniform"`: omega, 1; `"log"`: 1 / (1 + ln(1 + i)); `"linear"`: 1 / (1 + i); in Python a function of i.

**When to use it**

When a part of the layers is to be cut off after training for speed.

**Relations**

`matryoshka` cuts dimensions, `matryoshka_2d` both. In `matryoshka(adaptive_layer(...))` the divergence sees truncated
embeddings, in `adaptive_layer(matryoshka(...))` those of full width. On unit vectors it is small: before the factor T
0.03 for random vectors of 384 dimensions at T = 0.3.

**Differences from sentence-transformers**

- Recomputing losses, losses of several terms and sums can be inside, and `matryoshka` outside.
- The drawn layers come from the run's seed and step instead of the global generator, so processes agree.

**Example**

```python
import torch
from embedloss import Embeddings, create_loss

layers = {role: [torch.randn(6, 8) for _ in range(4)] for role in ("first", "second")}
emb = Embeddings.of(first=layers["first"][-1], second=layers["second"][-1]).with_layers(**layers)
print(create_loss("adaptive_layer(cosent(), n_layers_per_step=2)")(emb, torch.rand(6)).terms)
```
""",
)

MATRYOSHKA_2D = LossSpec(
    name="matryoshka-2d",
    aliases=("2dmse",),
    field_name="Matryoshka2dLoss",
    target="embedloss_modifiers.losses:Matryoshka2dLoss",
    summary="adaptive layers round Matryoshka dimensions: embeddings that can be cut in both directions",
    family="modifiers",
    modifier=True,
    example="matryoshka_2d(mnrl(), dims=[384, 192, 96])",
    deviations={"finite_differences": "the final layer teaches the earlier ones and is a constant there"},
    citation="Li et al. 2024, 2D Matryoshka Sentence Embeddings, arXiv 2402.14776",
    doc="""\
**Formula**

`adaptive_layer(matryoshka(inner, dims))`: see there. Dimensions are drawn anew for every layer; the divergence sees embeddings
of full width.

**Inputs**

What the inner loss takes, and an encoder that gives all its layers.

**Parameters**

- `loss`: any loss.
- `dims`, `weights = None`: as in `matryoshka`.
- `n_layers_per_step = 1`, `n_dims_per_step = 1`: prior layers a step, and dimensions for each layer; at most 0: all.
- `last_layer_weight = 1.0`, `prior_layers_weight = 1.0`, `kl_div_weight = 1.0`, `kl_temperature = 0.3`,
  `layer_weighting = "uniform"`: as in `adaptive_layer`.

**When to use it**

When both the size of the vectors and the number of layers are to be chosen after training.

**Relations**

The same as `adaptive_layer(matryoshka(inner, dims, n_dims_per_step=1))`, in one name.

**Differences from sentence-transformers**

Those of its two parts.

**Example**

```python
import torch
from embedloss import Embeddings, create_loss

layers = {role: [torch.randn(6, 8) for _ in range(4)] for role in ("first", "second")}
emb = Embeddings.of(first=layers["first"][-1], second=layers["second"][-1]).with_layers(**layers)
print(create_loss("matryoshka_2d(cosent(), dims=[8, 4])")(emb, torch.rand(6)).terms)
```
""",
)

SPECS = [MATRYOSHKA, ADAPTIVE_LAYER, MATRYOSHKA_2D]


@hookimpl
def embedloss_register_losses() -> list[LossSpec]:
    """The losses of this distribution."""
    return SPECS
