"""The same batch through every front end gives the same loss and the same gradients of the encoder's parameters."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("sentence_transformers")

import transformers
from accelerate import Accelerator
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments

import embedloss
from embedloss import Embeddings, Trainer, TrainingArguments, TrainingStep, create_loss, load_encoder
from embedloss.collate import Collator
from embedloss.plugins import plugin_manager
from embedloss.testing.models import SENTENCES, tiny_bert

torch.set_num_threads(1)
ROWS = 6
CASES = {
    "pairs": ("matryoshka(mnrl(), dims=[32, 16]) + 0.1 * gor()", ("anchor", "positive"), None),
    "pairs+score": ("cosent(scale=10)", ("first", "second"), [0.1, 0.9, 0.3, 0.6, 0.0, 1.0]),
    "n-tuples": ("mnrl()", ("anchor", "positive", "negative"), None),
    "single+class": ("metric_learning('NTXentLoss', {'temperature': 0.1})", ("text",), [0, 1, 2, 0, 1, 2]),
}


def columns(form):
    roles = CASES[form][1]
    return {role: list(SENTENCES[i * ROWS : (i + 1) * ROWS]) for i, role in enumerate(roles)}


def rows(form):
    labels = CASES[form][2]
    data = {**columns(form), **({"label": labels} if labels else {})}
    return data, [{k: v[i] for k, v in data.items()} for i in range(ROWS)]


def gradients(parameters):
    return {name: p.grad.clone() for name, p in parameters if p.grad is not None}


def plain_pytorch(form, folder):
    expression, roles, labels = CASES[form]
    encoder = load_encoder(folder).double()
    embeddings = {}
    for role in roles:
        texts = columns(form)[role]
        embeddings[role] = encoder(encoder.processor.pad(encoder.processor.tokenize(texts)))
    total = create_loss(expression)(Embeddings.of(**embeddings), labels).total
    total.backward()
    return total, gradients(encoder.model.named_parameters())


def step_and_batch(form, folder):
    step = TrainingStep(load_encoder(folder).double(), create_loss(CASES[form][0]), recompute=True)
    return step, Collator(step.encoder.processor, step.loss, form, chunk_tokens=48)(rows(form)[1])


def training_step(form, folder):
    step, batch = step_and_batch(form, folder)
    total = step(batch)["loss"]
    total.backward()
    return total, gradients(step.encoder.model.named_parameters())


def accelerate_loop(form, folder):
    step, batch = step_and_batch(form, folder)
    accelerator = Accelerator(cpu=True)
    prepared, optimizer = accelerator.prepare(step, torch.optim.SGD(step.parameters(), lr=0.0))
    total = prepared(batch)["loss"]
    accelerator.backward(total)
    optimizer.step()
    return total, gradients(step.encoder.model.named_parameters())


class Keep(transformers.TrainerCallback):
    """Gradients of the first step, before they are used."""

    def __init__(self, parameters):
        self.parameters, self.found = list(parameters), None

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self.found = gradients(self.parameters)


ARGUMENTS = {
    "max_steps": 1,
    "per_device_train_batch_size": ROWS,
    "max_grad_norm": 0.0,
    "report_to": "none",
    "save_strategy": "no",
    "disable_tqdm": True,
    "use_cpu": True,
}


def trained(trainer, keep):
    values = []
    compute = trainer.compute_loss

    def recorded(*args, **kwargs):
        value = compute(*args, **kwargs)
        values.append((value[0] if isinstance(value, tuple) else value).detach())
        return value

    trainer.compute_loss = recorded
    trainer.train()
    assert keep.found
    return values[0], keep.found


def our_trainer(form, folder, out):
    step = TrainingStep(load_encoder(folder).double(), create_loss(CASES[form][0]))
    keep = Keep(step.encoder.model.named_parameters())
    collator = Collator(step.encoder.processor, step.loss, form)
    arguments = TrainingArguments(output_dir=out, batch_sampler="random", **ARGUMENTS)
    data = Dataset.from_dict(rows(form)[0])
    return trained(Trainer(step, arguments, train_dataset=data, collator=collator, callbacks=[keep]), keep)


def peer_trainer(form, folder, out, **options):
    model = SentenceTransformer(folder, device="cpu").double()
    keep = Keep(model[0].model.named_parameters())
    trainer = SentenceTransformerTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(output_dir=out, **ARGUMENTS),
        train_dataset=Dataset.from_dict(rows(form)[0]),
        loss=embedloss.for_sentence_transformers(model, CASES[form][0], **options),
        callbacks=[keep],
    )
    return trained(trainer, keep)


def lightning_loop(form, folder, out):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")
    step, batch = step_and_batch(form, folder)
    keep = {}

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.step_module = step

        def training_step(self, batch, index):
            keep["loss"] = self.step_module(batch)["loss"]
            return keep["loss"]

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.0)

        def on_before_optimizer_step(self, optimizer):
            keep["gradients"] = gradients(step.encoder.model.named_parameters())

    loader = torch.utils.data.DataLoader([batch], batch_size=None)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    lightning.Trainer(max_steps=1, default_root_dir=out, **options).fit(Module(), loader)
    return keep["loss"], keep["gradients"]


FRONT_ENDS = {
    "TrainingStep": lambda form, folder, out: training_step(form, folder),
    "our Trainer": our_trainer,
    "accelerate": lambda form, folder, out: accelerate_loop(form, folder),
    "SentenceTransformerTrainer": peer_trainer,
    "SentenceTransformerTrainer, chunks": lambda *given: peer_trainer(*given, chunk_tokens=48, recompute=True),
    "lightning": lightning_loop,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_bert(tmp_path_factory.mktemp("model"), dropout=0)


@pytest.fixture
def adopted(form, tmp_path):
    """The file of the page on pytorch-metric-learning, where a case needs it."""
    if form != "single+class":
        yield None
        return
    library = pytest.importorskip("pytorch_metric_learning.losses", reason="pytorch-metric-learning is not installed")
    page = Path(__file__).parents[2] / "docs" / "plugins" / "pytorch_metric_learning.md"
    [code] = re.findall(r"```py title=\"metric_learning.py\"\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "metric_learning.py").write_text(code, encoding="utf-8")
    loaded = plugin_manager().load_file(tmp_path / "metric_learning.py")
    yield library
    plugin_manager().unregister(loaded)


@pytest.mark.parametrize("form", CASES)
@pytest.mark.parametrize("front_end", FRONT_ENDS)
def test_front_ends_agree(front_end, form, folder, adopted, tmp_path):
    expected, reference = plain_pytorch(form, folder)
    if adopted:  # the library alone, without a line of ours round its loss
        encoder = load_encoder(folder).double()
        texts = encoder(encoder.processor.pad(encoder.processor.tokenize(columns(form)["text"])))
        alone = adopted.NTXentLoss(temperature=0.1)(texts, torch.tensor(CASES[form][2]))
        assert float(alone.detach()) == pytest.approx(float(expected.detach()), rel=1e-12)
    value, found = FRONT_ENDS[front_end](form, folder, str(tmp_path))
    scale = max(float(g.abs().max()) for g in reference.values())
    assert scale > 1e-3
    assert float(value.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    assert {k for k in found if "pooler" not in k} == set(reference)
    for name, gradient in reference.items():
        assert torch.allclose(found[name], gradient, atol=1e-6 * scale, rtol=1e-6), name
