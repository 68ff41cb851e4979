"""Malformed data sets: how embedloss refuses each, and what sentence-transformers does with the same file.

    python tests/bench/malformed.py [--table docs/results/malformed.md]

The files come from malformed_sets.py. The peer reads them as its users do, with `datasets.load_dataset`, and trains two steps
of a tiny model; the script notes its exception, or the losses of both steps and whether it warned. All in one process.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

from malformed_sets import SETS, Malformed, pairs, triplets
from malformed_sets import lines as lines_of

from embedloss.errors import EmbedlossError
from embedloss.training.config import RunConfig
from embedloss.training.run import prepare

KINDS = {".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
WIDTH = 180


USUAL: set[str] = set()  # what is said of data without a fault as well


class Kept(logging.Handler):
    """Warnings that are logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.startswith("sentence_transformers"):
            self.found.append(record.getMessage())


def ours(case: Malformed, file: Path, folder: Path) -> str:
    """The refusal; no model is loaded for it."""
    settings = {"model": "static(dimension=8)", "data": str(file), "loss": case.loss, "out": str(folder / "out"), **case.config}
    try:
        prepare(RunConfig(**settings), say=lambda text: None)
    except EmbedlossError as error:
        return str(error).replace(str(file), file.name)
    return "ACCEPTED"


def peer_loss(name: str, model: str) -> tuple[Any, Any, Any, Any]:
    """A fresh model, its loss, and the classes of trainer and arguments."""
    import sentence_transformers as st
    from sentence_transformers import cross_encoder as ce

    if name.startswith("CE:"):
        encoder = st.CrossEncoder(f"{model}-cross", num_labels=1, device="cpu")
        loss = getattr(ce.losses, name[3:])(encoder)
        return encoder, loss, ce.CrossEncoderTrainer, ce.CrossEncoderTrainingArguments
    name, _, classes = name.partition(":")
    encoder = st.SentenceTransformer(f"{model}-bi", device="cpu")
    make = getattr(st.sentence_transformer.losses, name)
    loss = make(encoder, 32, int(classes)) if classes else make(encoder)
    return encoder, loss, st.SentenceTransformerTrainer, st.SentenceTransformerTrainingArguments


def theirs(case: Malformed, file: Path, folder: Path, model: str) -> tuple[str, str]:
    """What happens: "refuses", "warns" or "silent"; and the words or losses."""
    import datasets

    kept = Kept()
    logging.getLogger("sentence_transformers").addHandler(kept)
    stage = "reading"
    try:
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            rows = datasets.load_dataset(
                KINDS[case.suffix], data_files=str(file), split="train", cache_dir=str(folder / "cache")
            )
            stage = "starting"
            encoder, loss, trainer_class, arguments_class = peer_loss(case.peer, model)
            arguments = arguments_class(
                output_dir=str(folder / "peer"), max_steps=2, per_device_train_batch_size=4, report_to="none", use_cpu=True,
                save_strategy="no", logging_steps=1, disable_tqdm=True, seed=1, **case.peer_config,
            )  # fmt: skip
            trainer = trainer_class(model=encoder, args=arguments, train_dataset=rows, loss=loss)
            stage = "step 1"
            trainer.train()
    except Exception as exception:  # any may come out of there: that is what is measured
        cause: BaseException = exception
        while stage == "reading" and cause.__cause__ is not None:
            cause = cause.__cause__
        return "refuses", f"{stage}: `{type(cause).__name__}: {shown(str(cause), file)}`"
    finally:
        logging.getLogger("sentence_transformers").removeHandler(kept)
    losses = ", ".join(f"{entry['loss']:.3f}" for entry in trainer.state.log_history if "loss" in entry)
    words = [text for text in (*kept.found, *(str(w.message) for w in raised)) if text not in USUAL]
    if case.what == "nothing":
        USUAL.update(words)
    if words:
        return "warns", f"trains: loss {losses}; warns `{shown(words[0], file)}`"
    return "silent", f"**trains silently**: loss {losses}"


def shown(text: str, file: Path) -> str:
    """The first lines, on one line of the table."""
    text = " ".join(text.replace(str(file), file.name).split()).replace("|", "/").replace("`", "'")
    return text if len(text) <= WIDTH else text[: WIDTH - 3] + "..."


def tiny_models(folder: Path) -> str:
    """Folders of a bi-encoder and a cross-encoder that know the words of the data."""
    from malformed_sets import WORDS, some

    from embedloss.testing.models import tiny_bert, tiny_cross_encoder

    texts = [*WORDS, *(some(i, kind=kind) for i in range(8) for kind in ("question", "answer"))]
    tiny_bert(folder / "model-bi", sentences=texts)
    tiny_cross_encoder(folder / "model-cross", sentences=texts)
    return str(folder / "model")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--table")
    parser.add_argument("--only", default="", help="part of what is wrong")
    options = parser.parse_args()
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    counts = {"refuses": 0, "warns": 0, "silent": 0}
    lines = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = tiny_models(folder)
        for number, good in enumerate((pairs(), triplets())):
            file = folder / f"good{number}.jsonl"
            file.write_bytes(lines_of(good))
            theirs(Malformed("nothing", "", b"", "", (), "MultipleNegativesRankingLoss"), file, folder / "good", model)
        for number, case in enumerate(SETS):
            if options.only not in case.what:
                continue
            file = folder / str(number) / f"data{case.suffix}"
            file.parent.mkdir()
            file.write_bytes(case.data())
            mine = ours(case, file, folder)
            outcome, said = theirs(case, file, file.parent, model)
            counts[outcome] += 1
            lines.append(f"| {case.what} | `{case.loss}` | {shown(mine, file)} | {said} |")
            print(lines[-1], flush=True)
    total = sum(counts.values())
    refused = sum("ACCEPTED" not in line for line in lines)
    print(counts)
    if options.table:
        numbers = {"total": total, "refused": refused, "peer": version("sentence-transformers"), **counts}
        Path(options.table).write_text(TEXT.format(**numbers) + "\n".join(lines) + "\n", encoding="utf-8")


TEXT = """# Malformed data

{total} data sets with one thing wrong in each, given to `embedloss train` and to sentence-transformers {peer} with the same
loss, a tiny model and two steps of four rows. embedloss refuses {refused} of {total} before a model is loaded; the message is
shortened here, `tests/test_malformed.py` holds it to code, row and remedy. sentence-transformers trains on {silent} without a
word and on {warns} with a warning; on {refuses} it stops with the message shown, while reading, starting or in the first step.
Some of what it accepts is its documented way: columns by position whatever their names, objects as inputs, ListMLE that reads
the order of the documents. These lines are surprises, not bugs. Lists of negatives it takes in no data set. Made in one run by

```text
python tests/bench/malformed.py --table docs/results/malformed.md
```

| what is wrong | loss | embedloss | sentence-transformers {peer} |
| --- | --- | --- | --- |
"""


if __name__ == "__main__":
    main()
