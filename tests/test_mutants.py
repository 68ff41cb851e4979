"""Proof that the conformance kit bites: wrong losses, after kinds of bugs that embedding libraries shipped, and the check that
is meant to catch each. The correct losses that they are made from pass every check.
"""

import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from embedloss import Embeddings, LossSpec
from embedloss.distributed import sum_over_processes
from embedloss.loss import Loss, LossOutput, Modifier, Requirements, ScoreLoss
from embedloss.similarity import safe_sqrt, unit
from embedloss.testing import CHECKS, check_loss


def spec(name, formats, **more):
    more = {"summary": "for tests", "family": "tests", "citation": "none", "target": f"{__name__}:{name}", **more}
    return LossSpec(name=name.lower(), formats=formats, **more)


# -- correct losses ------------------------------------------------------------------------------------------------------------
class InBatch(Loss):
    """Every anchor must find its positive among all positives and negatives of the batch."""

    spec = spec("InBatch", ["pairs", "n-tuples"], scope="batch")

    def __init__(self, scale: float = 5.0) -> None:
        super().__init__()
        self.scale = scale

    def candidates(self, emb):
        return torch.cat([emb.pool(role) for role in emb.roles[1:]])

    def targets(self, emb):
        return torch.arange(len(emb)) + emb.offset("positive")

    def scores(self, emb):
        return self.scale * unit(emb.own("anchor")) @ unit(self.candidates(emb)).T

    def reduce(self, terms, emb):
        return terms.sum() * emb.world_size / emb.pool_size

    def compute(self, emb, labels):
        return self.reduce(F.cross_entropy(self.scores(emb), self.targets(emb), reduction="none"), emb)


class Triplets(Loss):
    """Mean hinge over given triplets."""

    spec = spec("Triplets", ["triplets"])

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def distance(self, x, y):
        return torch.linalg.vector_norm(x - y, dim=1)

    def hinge(self, near, far):
        return (near - far + self.margin).relu()

    def compute(self, emb, labels):
        anchor, positive, negative = (emb.own(role) for role in ("anchor", "positive", "negative"))
        terms = self.hinge(self.distance(anchor, positive), self.distance(anchor, negative))
        return terms.sum() * emb.world_size / max(len(emb.pool_rows_of("negative")), 1)


class Regression(Loss):
    """Cosine against a score."""

    spec = spec("Regression", ["pairs+score"])

    def cosine(self, x, y):
        return (unit(x) * unit(y)).sum(1)

    def reduce(self, terms, emb):
        return terms.sum() * emb.world_size / emb.pool_size

    def compute(self, emb, labels):
        return self.reduce((self.cosine(emb.own("first"), emb.own("second")) - labels).pow(2), emb)


class HardTriplets(Loss):
    """For every text with a positive and a negative, the farthest and the nearest."""

    spec = spec("HardTriplets", ["single+class"], scope="batch", sampler="group-by-label")

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def distances(self, x, y):
        return safe_sqrt((x[:, None] - y[None]).pow(2).sum(2))

    def count(self, valid):
        return sum_over_processes(valid.sum()).clamp(min=1)

    def compute(self, emb, labels):
        own, pool, begin = emb.own("text"), emb.pool("text"), emb.offset("text")
        labels_of_pool = emb.gathered(labels)
        same = labels[:, None] == labels_of_pool[None]
        itself = (torch.arange(len(own)) + begin)[:, None] == torch.arange(len(pool))[None]
        d = self.distances(own, pool)
        farthest = d.masked_fill(~same | itself, -math.inf).max(1).values
        nearest = d.masked_fill(same, math.inf).min(1).values
        return self.mean(self.hinge(farthest, nearest, same, itself), d, emb)

    def hinge(self, farthest, nearest, same, itself):
        valid = (same & ~itself).any(1) & (~same).any(1)
        return (farthest[valid] - nearest[valid] + self.margin).relu(), valid

    def mean(self, terms_and_valid, d, emb):
        terms, valid = terms_and_valid
        return (terms.sum() + 0 * d.sum()) * emb.world_size / self.count(valid)


class Listwise(ScoreLoss):
    """Softmax of grades against softmax of scores, over lists that have documents."""

    spec = spec("Listwise", ["listwise"], consumes="scores", models=("bi-encoder", "cross-encoder"))

    def log_softmax(self, scores, mask):
        return F.log_softmax(torch.where(mask, scores, torch.finfo(scores.dtype).min), 1)

    def per_list(self, scores, labels, mask):
        wanted = labels.masked_fill(~mask, torch.finfo(labels.dtype).min).softmax(1)
        return -torch.where(mask, wanted * self.log_softmax(scores, mask), 0.0).sum(1)

    def count(self, mask):
        return sum_over_processes(mask.any(1).sum()).clamp(min=1)

    def compute(self, emb, labels):
        self.world = emb.world_size if isinstance(emb, Embeddings) and emb.world_size > 1 else 1
        return super().compute(emb, labels)

    def compute_scores(self, scores, labels, mask):
        if scores.shape[1] == 0:
            return scores.sum() * 0
        return self.per_list(scores, labels, mask).sum() * self.world / self.count(mask)


class Margins(ScoreLoss):
    """Squared difference of the student's and the teacher's signed margin."""

    spec = spec("Margins", ["triplets+margin"], consumes="scores", models=("bi-encoder", "cross-encoder"))

    def margins(self, scores, labels):
        return scores[:, 0] - scores[:, 1], labels

    def compute_scores(self, scores, labels, mask):
        student, teacher = self.margins(scores, labels)
        return (student - teacher).pow(2).mean()


class Vectors(Loss):
    """Mean squared distance to a teacher's vectors."""

    spec = spec("Vectors", ["text+embedding"])

    def teacher(self, labels):
        return labels

    def compute(self, emb, labels):
        terms = (emb.own("text") - self.teacher(labels)).pow(2).mean(1)
        return terms.sum() * emb.world_size / emb.pool_size


class Classifier(Loss):
    """A linear classifier on both embeddings."""

    spec = spec("Classifier", ["pairs+class"])

    def __init__(self, num_labels: int = 3) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.linear = None

    def prepare(self, info):
        if self.linear is None:
            self.linear = torch.nn.Linear(2 * info.dimension, self.num_labels)

    def features(self, emb):
        return torch.cat([emb.own("first"), emb.own("second")], 1)

    def compute(self, emb, labels):
        features = self.features(emb)
        logits = self.linear(features.to(self.linear.weight.dtype))
        terms = F.cross_entropy(logits, labels.long(), reduction="none")
        return terms.sum() * emb.world_size / emb.pool_size


class RandomView(Loss):
    """Anchors and positives agree, most of all on a half of the dimensions that is drawn anew every step."""

    spec = spec("RandomView", ["pairs"])

    def draw(self, emb, width):
        return torch.rand(width, generator=emb.generator("view"))

    def compute(self, emb, labels):
        difference = emb.own("anchor") - emb.own("positive")
        weights = 0.1 + (self.draw(emb, difference.shape[1]) < 0.5)
        return (difference * weights).pow(2).sum() * emb.world_size / emb.pool_size


class Guided(Loss):
    """As `InBatch` on pairs, but candidates that a guide finds nearer to the anchor than its positive are left out."""

    spec = spec("Guided", ["pairs"], scope="batch")

    def requires(self):
        return Requirements(guides=("guide",))

    def compute(self, emb, labels):
        guide = emb.guide("guide")
        theirs = unit(guide.own("anchor")) @ unit(guide.pool("positive")).T
        rows = torch.arange(len(emb))
        own = rows + emb.offset("positive")
        threshold = theirs[rows, own][:, None]
        left_out = theirs > threshold
        left_out[rows, own] = False
        scores = 5 * unit(emb.own("anchor")) @ unit(emb.pool("positive")).T + 0 * theirs
        terms = F.cross_entropy(scores.masked_fill(left_out, torch.finfo(scores.dtype).min), own, reduction="none")
        return terms.sum() * emb.world_size / emb.pool_size


class Smoothed(Modifier):
    """The inner loss on the embeddings and on their hyperbolic tangents."""

    spec = spec("Smoothed", [], modifier=True)

    def compute(self, emb, labels):
        return LossOutput.weighted(
            [(1.0, "plain", self.loss(emb, labels)), (0.5, "tanh", self.loss(emb.map(torch.tanh), labels))]
        )


CORRECT = [
    InBatch(), Triplets(), Regression(), HardTriplets(), Listwise(), Margins(), Vectors(), Classifier(), RandomView(), Guided(),
    Smoothed(Triplets()),
]  # fmt: skip


@pytest.mark.parametrize("loss", CORRECT, ids=lambda loss: loss.spec.name)
def test_the_correct_losses_pass(loss):
    check_loss(loss).raise_if_failed()


# -- wrong losses --------------------------------------------------------------------------------------------------------------
MUTANTS = []  # (class, check meant for it, what is wrong)


def mutant(check, **changes):
    """Register a wrong loss, with a spec of its own."""

    def add(cls):
        cls.spec = replace(cls.spec, **{"name": cls.__name__.lower(), "target": f"{__name__}:{cls.__name__}", **changes})
        MUTANTS.append((cls, check, cls.__doc__))
        return cls

    return add


@mutant("processes")
class NoOffset(InBatch):
    """targets forget where this process's rows begin in the gathered candidates"""

    def targets(self, emb):
        return torch.arange(len(emb))


@mutant("processes")
class OwnCandidates(InBatch):
    """negatives of other processes are left out"""

    def candidates(self, emb):
        return torch.cat([emb.own(role) for role in emb.roles[1:]])

    def targets(self, emb):
        return torch.arange(len(emb))


@mutant("processes")
class MeanOfMeans(Regression):
    """each process divides by its own rows, though they differ in number"""

    def reduce(self, terms, emb):
        return terms.mean()


@mutant("learns")
class NegativesAsTargets(InBatch):
    """anchors are aligned to the hard negatives"""

    def scores(self, emb):
        return self.scale * unit(emb.own("anchor")) @ unit(torch.cat([emb.pool(role) for role in emb.roles[:0:-1]])).T


@mutant("learns")
class FlippedMargin(Triplets):
    """the sign of the hinge is turned: positives are pushed away"""

    def hinge(self, near, far):
        return (far - near + self.margin).relu()


@mutant("learns")
class SimilarityAsDistance(Triplets):
    """a similarity is used where a distance is meant"""

    def distance(self, x, y):
        return (unit(x) * unit(y)).sum(1)


@mutant("labels_matter")
class AbsoluteMargins(Margins):
    """the signs of both margins are dropped"""

    def margins(self, scores, labels):
        return (scores[:, 0] - scores[:, 1]).abs(), labels.abs()


@mutant("finite_differences")
class LastMiniBatch(InBatch):
    """computed in mini-batches, of which only the last one's gradient arrives"""

    def scores(self, emb):
        scores = super().scores(emb)
        return torch.cat([scores[:-3].detach(), scores[-3:]])


@mutant("every_role")
class DetachedPositive(Triplets):
    """one side is detached"""

    def distance(self, x, y):
        return torch.linalg.vector_norm(x - y.detach(), dim=1)


@mutant("finite_differences")
class ForgottenFactor(Regression):
    """a hand-written backward lacks the factor 2"""

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x * x

        @staticmethod
        def backward(ctx, gradient):
            return gradient * ctx.saved_tensors[0]

    def compute(self, emb, labels):
        return self.reduce(self.Square.apply(self.cosine(emb.own("first"), emb.own("second")) - labels), emb)


@mutant("labels_constant")
class TeacherNotDetached(Vectors):
    """the teacher's vectors are trained as well"""

    def check_labels(self, labels, embeddings, device):
        super().check_labels(labels, embeddings, device)
        return labels


@mutant("scope")
class PaddingCounted(Listwise):
    """the mean runs over padding as well, so a short list counts less beside a long one"""

    def per_list(self, scores, labels, mask):
        return super().per_list(scores, labels, mask) * mask.sum(1) / mask.shape[1]


@mutant("mask")
class PaddingInSoftmax(Listwise):
    """padding takes part in the softmax"""

    def log_softmax(self, scores, mask):
        return F.log_softmax(scores, 1)


@mutant("mask")
class PaddingTimesZero(Listwise):
    """padding is multiplied by 0, which keeps NaN and infinity"""

    def per_list(self, scores, labels, mask):
        return super().per_list(scores, labels, mask) + 0 * scores.sum(1)


@mutant("identical_vectors")
class RootAtZero(Triplets):
    """the square root of the squared distance, at distance 0"""

    def distance(self, x, y):
        return (x - y).pow(2).sum(1).sqrt()


@mutant("zero_vectors")
class NormalizeAtZero(Regression):
    """a norm that is floored at 1e-12: the gradient of a zero vector is 1e12"""

    def cosine(self, x, y):
        return (F.normalize(x, dim=1) * F.normalize(y, dim=1)).sum(1)


@mutant("row_order")
class SortedLabels(Regression):
    """embeddings are sorted for speed, their labels are not"""

    def compute(self, emb, labels):
        order = emb.own("first").sum(1).argsort()
        cosines = self.cosine(emb.own("first")[order], emb.own("second")[order])
        return self.reduce((cosines - labels).pow(2), emb)


@mutant("candidate_order")
class SortedGrades(Listwise):
    """documents stay where they are while their grades are sorted"""

    def per_list(self, scores, labels, mask):
        return super().per_list(scores, labels.masked_fill(~mask, -1).sort(1, descending=True).values, mask)


@mutant("nothing_to_learn")
class MeanOfNothing(HardTriplets):
    """a mean over no anchors"""

    def count(self, valid):
        return valid.sum()


@mutant("nothing_to_learn")
class ConstantMargin(HardTriplets):
    """an anchor without positive or negative contributes the margin"""

    def hinge(self, farthest, nearest, same, itself):
        valid = (same & ~itself).any(1) & (~same).any(1)
        terms = torch.where(valid, farthest - nearest, torch.zeros_like(farthest)) + self.margin
        return terms.relu(), torch.ones_like(valid)


@mutant("nothing_to_learn")
class FreshLeaf(Listwise):
    """a new leaf instead of a connected zero where there is nothing to learn"""

    def compute_scores(self, scores, labels, mask):
        if not bool((mask.sum(1) > 1).any()):
            return torch.zeros((), dtype=scores.dtype, requires_grad=True)
        return super().compute_scores(scores, labels, mask)


@mutant("nothing_to_learn")
class EmptyLists(Listwise):
    """a mean over the documents of an empty list"""

    def per_list(self, scores, labels, mask):
        return super().per_list(scores, labels, mask) / mask.sum(1)


@mutant("inputs_unchanged")
class NormalizedInPlace(InBatch):
    """embeddings are normalised in place"""

    def compute(self, emb, labels):
        for role in emb.roles:
            with torch.no_grad():
                emb.own(role).div_(emb.own(role).norm(dim=1, keepdim=True).clamp(min=1e-12))
        return super().compute(emb, labels)


@mutant("inputs_unchanged")
class LabelsInPlace(Regression):
    """labels are shifted in place"""

    def compute(self, emb, labels):
        return super().compute(emb, labels.sub_(0.1))


@mutant("half")
class HalfSum(Regression):
    """terms are reduced in the precision that the embeddings came in"""

    def reduce(self, terms, emb):
        given = emb._leaves.layers["first"][-1].dtype
        return super().reduce(terms.to(given).sum().to(terms.dtype), emb)


@mutant("float32")
class Cancellation(Regression):
    """a small difference of large numbers"""

    def reduce(self, terms, emb):
        return super().reduce((1e6 + terms) - 1e6, emb)


@mutant("repeatable")
class SeedNotShared(RandomView):
    """random numbers from the global generator, which differs between processes and recomputed steps"""

    def draw(self, emb, width):
        return torch.rand(width)


@mutant("nan")
class NanHidden(Triplets):
    """NaN is replaced by 0"""

    def hinge(self, near, far):
        return super().hinge(near, far).nan_to_num()


@mutant("nan")
class NanCompared(HardTriplets):
    """a selection by comparison, which NaN never passes"""

    def mean(self, terms_and_valid, d, emb):
        terms, valid = terms_and_valid
        return (terms[terms > 0].sum() + 0 * d.nan_to_num().sum()) * emb.world_size / self.count(valid)


@mutant("norms")
class NaiveExponential(Triplets):
    """log(1 + exp(t)) without care for large t"""

    def hinge(self, near, far):
        return torch.log1p(torch.exp(near - far + self.margin))


@mutant("upstream")
class ReadyGradient(InBatch):
    """a gradient computed in the forward pass that ignores the factor it is called with"""

    class Ready(torch.autograd.Function):
        @staticmethod
        def forward(ctx, terms):
            ctx.shape = terms
            return terms.mean()

        @staticmethod
        def backward(ctx, gradient):
            return torch.full_like(ctx.shape, 1 / len(ctx.shape))

    def reduce(self, terms, emb):
        return self.Ready.apply(terms)


@mutant("two_forwards")
class Remembers(InBatch):
    """a backward that reads what the latest forward left on the loss"""

    def scores(self, emb):
        self.latest = unit(self.candidates(emb)).detach()
        loss = self

        class Product(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x, y):
                ctx.save_for_backward(x)
                return x @ y.T

            @staticmethod
            def backward(ctx, gradient):
                return gradient @ loss.latest, gradient.T @ ctx.saved_tensors[0]

        return self.scale * Product.apply(unit(emb.own("anchor")), unit(self.candidates(emb)))


@mutant("two_forwards")
class MemoryBank(Vectors):
    """keeps a running mean that changes later losses and is in no state dict"""

    running = 1.0

    def compute(self, emb, labels):
        value = super().compute(emb, labels)
        result = value / self.running
        self.running = 0.9 * self.running + 0.1 * float(value.detach())
        return result


@mutant("state_dict")
class PlainWeight(Vectors):
    """a running value that is a plain attribute, so that a checkpoint loses it"""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def compute(self, emb, labels):
        self.seen += 1
        return super().compute(emb, labels) * (1 + 0.1 * self.seen)


@mutant("prepare")
class WeightNotRegistered(Classifier):
    """the classifier is in a list, so nothing trains or saves it"""

    def prepare(self, info):
        self.linear = None
        self.weight = [torch.randn(self.num_labels, 2 * info.dimension, dtype=torch.float64).requires_grad_()]

    def compute(self, emb, labels):
        features = self.features(emb)
        return F.cross_entropy(features @ self.weight[0].to(features.dtype).T, labels.long())


@mutant("parameters")
class RenamedParameter(Triplets):
    """the parameter is kept under another name"""

    def __init__(self, gap: float = 1.0) -> None:
        super().__init__(gap)


@mutant("expression")
class ChangedParameter(Triplets):
    """the constructor changes its parameter, so that writing and reading it changes it again"""

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__(margin * 2)


@mutant("scope", scope="row")
class UndeclaredNegatives(InBatch):
    """uses other rows as negatives but declares that rows are independent"""


@mutant("scope", scope="batch")
class DeclaredNegatives(Triplets):
    """declares in-batch negatives but uses none"""


@mutant("scope")
class SquaredDivisor(Regression):
    """a mean of a mean: divided by the number of rows twice"""

    def reduce(self, terms, emb):
        return super().reduce(terms, emb) / len(emb)


@mutant("views")
class BehindTheView(Triplets):
    """reads the full embeddings behind a truncating view, so that Matryoshka trains nothing"""

    def compute(self, emb, labels):
        return super().compute(Embeddings(emb._leaves), labels)


@mutant("width")
class HardCodedWidth(Triplets):
    """the width of one model is written into the loss"""

    def distance(self, x, y):
        return super().distance(x.view(-1, 2, 4).flatten(1), y.view(-1, 2, 4).flatten(1))


@mutant("recompute")
class OwnBackward(Vectors):
    """cuts the graph and puts the gradient on the embeddings by itself, once"""

    def compute(self, emb, labels):
        total = super().compute(emb, labels)
        leaf = emb.own("text")
        if leaf.is_leaf:
            return total
        return total.detach() + 0 * leaf.sum()


@mutant("labels_matter")
class GradesIgnored(Listwise):
    """grades are never read"""

    def per_list(self, scores, labels, mask):
        return super().per_list(scores, torch.zeros_like(labels), mask)


@mutant("labels")
class SilentBroadcast(Regression):
    """labels as a column broadcast to rows x rows"""

    def check_labels(self, labels, embeddings, device):
        super().check_labels(labels, embeddings, device)
        return torch.as_tensor(labels, dtype=torch.float64)

    def compute(self, emb, labels):
        return (self.cosine(emb.own("first"), emb.own("second")) - labels).pow(2).mean()


@mutant("roles")
class AnyRoles(Triplets):
    """takes whatever roles come, by their position"""

    def check_inputs(self, embeddings):
        if not isinstance(embeddings, Embeddings):
            super().check_inputs(embeddings)

    def compute(self, emb, labels):
        x, y, *rest = (emb.own(role) for role in emb.roles)
        return self.hinge(self.distance(x, y), self.distance(x, rest[0] if rest else y)).mean()


@mutant("nan")
class GuideNan(Guided):
    """a NaN of the guide leaves nothing out and goes unseen"""

    def compute(self, emb, labels):
        guide = emb.guide("guide")
        theirs = (unit(guide.own("anchor")) @ unit(guide.pool("positive")).T).nan_to_num()
        own = torch.arange(len(emb)) + emb.offset("positive")
        left_out = theirs > theirs[torch.arange(len(emb)), own][:, None]
        scores = 5 * unit(emb.own("anchor")) @ unit(emb.pool("positive")).T
        terms = F.cross_entropy(scores.masked_fill(left_out, torch.finfo(scores.dtype).min), own, reduction="none")
        return terms.sum() * emb.world_size / emb.pool_size


@mutant("output")
class TermsWithGraph(Triplets):
    """a metric keeps the graph, and with it the memory of every step"""

    def compute(self, emb, labels):
        value = super().compute(emb, labels)
        return LossOutput(value, {"loss": value})


@mutant("sum")
class CachedOutput(Triplets):
    """the second of two equal terms gets the first one's value without its graph"""

    latest = (None, None)

    def compute(self, emb, labels):
        if self.latest[0] is emb:
            return self.latest[1].detach()
        self.latest = emb, super().compute(emb, labels)
        return self.latest[1]


@mutant("pickle")
class LocalFunction(Triplets):
    """keeps a function that cannot be pickled, so the loss cannot go to another process"""

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__(margin)
        self.square = lambda x: x * x


@mutant("spec", summary="")
class NoSummary(Triplets):
    """the spec is not filled in"""


@mutant("target", target=f"{__name__}:Triplets")
class WrongTarget(Triplets):
    """the spec points at another class"""


@pytest.mark.parametrize(("cls", "check"), [(cls, check) for cls, check, _ in MUTANTS], ids=lambda v: getattr(v, "__name__", v))
def test_each_wrong_loss_is_caught_by_the_check_meant_for_it(cls, check):
    result = check_loss(cls(), checks=[check])[check]
    CAUGHT[cls.__name__] = result.message.split("\n")[0]
    assert result.status == "failed", result


CAUGHT = {}


def test_every_check_catches_something():
    assert len(MUTANTS) >= 20
    assert {check for _, check, _ in MUTANTS} == set(CHECKS)


@pytest.mark.parametrize("loss", [InBatch(), Triplets(), Regression(), HardTriplets()], ids=lambda loss: loss.spec.name)
def test_correct_losses_pass_on_two_processes(loss):
    check_loss(loss, checks=["processes"]).raise_if_failed()


def test_the_page_lists_them():
    page = json.loads((Path(__file__).parents[1] / "docs" / "plugins" / "mutants.json").read_text(encoding="utf-8"))
    listed = [(row["loss"], row["check"], row["wrong"]) for row in page]
    assert listed == [(cls.__name__, check, wrong) for cls, check, wrong in MUTANTS]


@pytest.fixture(scope="module", autouse=True)
def _table():
    """Which check caught which wrong loss, and what it said: the data of docs/plugins/mutants.md."""
    yield
    path = os.environ.get("EMBEDLOSS_MUTANT_TABLE")
    if path:
        rows = [
            {"loss": cls.__name__, "wrong": wrong, "check": check, "message": CAUGHT[cls.__name__]}
            for cls, check, wrong in MUTANTS
            if cls.__name__ in CAUGHT
        ]
        Path(path).write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
