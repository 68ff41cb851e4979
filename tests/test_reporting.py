"""What a run leaves for its readers, the page that compares runs, the upload, and the search, on tiny real runs."""

import base64
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from pathlib import Path

import pytest

from embedloss import EmbedlossError, load_encoder
from embedloss.reporting import read_run, write_page
from embedloss.reporting.curves import draw_curves, panels_of
from embedloss.reporting.runs import Run
from embedloss.reporting.svg import line_chart, nice_ticks, number, thinned
from embedloss.testing.models import SENTENCES, tiny_bert, tiny_cross_encoder
from embedloss.training import RunConfig, run_training
from embedloss.training.config import read_yaml
from embedloss.training.hub import check_hub
from embedloss.tuning import Range, apply, check_ranges, tune

LOSSES = {"one": "mnrl(scale=10)", "two": "matryoshka(mnrl, dims=[32, 16]) + 0.1 * gor"}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    tiny_bert(folder / "model")
    lines = [{"anchor": f"{SENTENCES[i % 17]} {i}", "positive": f"{SENTENCES[(i + 1) % 17]} {i}"} for i in range(32)]
    lines[3]["positive"] = "<b>&amp;</b> <script>alert(1)</script>"
    (folder / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def settings(place, out, **more):
    data = str(place / "data.jsonl")
    known = {"batch_size": 8, "max_steps": 6, "logging_steps": 1, "eval_steps": 2, "learning_rate": 1e-3, **more}
    return RunConfig(model=str(place / "model"), data=data, eval_data=data, out=str(place / out), **{"loss": "mnrl", **known})


@pytest.fixture(scope="module")
def runs(place):
    for name, loss in LOSSES.items():
        run_training(settings(place, name, loss=loss, load_best=name == "two", weight_decay=0.1), lambda text: None)
    return [place / name for name in LOSSES]


# -- a run folder ------------------------------------------------------------------------------------------------------
def test_a_run_folder_holds_its_evidence(runs):
    from huggingface_hub import ModelCard

    for folder, loss in zip(runs, LOSSES.values(), strict=True):
        assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
        for name in ("model.safetensors", "metrics.jsonl", "manifest.json", "run.yaml", "results.json", "neighbours.json"):
            assert (folder / name).stat().st_size > 0, name
        card = ModelCard.load(folder / "README.md")
        text = card.text
        assert card.data.library_name == "sentence-transformers"
        for part in (
            "load_encoder(",
            "SentenceTransformer(",
            "data.jsonl, 32 rows (pairs)",
            "| weight decay | 0.1 |",
            "curves.png",
        ):
            assert part in text, part
        assert re.search(r"\| ndcg@10 \| 0\.\d+ \| 0\.\d+ \|", text)
        papers = {"mnrl": "1807.03748", "matryoshka": "2205.13147", "gor": "1708.06320"}
        assert all(paper in text for name, paper in papers.items() if name in loss)
        assert str(folder.parent) not in (folder / "README.md").read_text(encoding="utf-8")


def test_the_code_on_the_card_runs(runs, monkeypatch):
    monkeypatch.chdir(runs[0].parent)
    blocks = re.findall(r"```python\n(.*?)```", (runs[0] / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 2
    pytest.importorskip("sentence_transformers")
    found = []
    for block in blocks:
        names = {}
        exec(compile(block, "card", "exec"), names)
        found.append(names["embeddings"])
    assert found[0] == pytest.approx(found[1], abs=1e-5)


def test_curves_show_what_was_logged(runs):
    run = read_run(runs[1])
    panels = dict(panels_of(run, "ndcg@10"))
    assert list(panels) == ["Loss", "Terms, before their weights", "Evaluation", "Learning rate"]
    assert len(panels["Loss"]["total"]) == 6
    assert next(iter(panels["Evaluation"])) == "ndcg@10"
    assert [step for step, _ in panels["Evaluation"]["ndcg@10"]] == [0, 2, 4, 6]
    assert any(name.startswith("matryoshka/") for name in panels["Terms, before their weights"])
    assert any(name.startswith("global-orthogonal") for name in panels["Terms, before their weights"])
    assert "probe/similarity" not in str(panels)


def test_a_run_that_logged_nothing_gets_no_picture(tmp_path):
    assert draw_curves(Run(tmp_path, "x", entries=[{"step": 1, "loss": None}]), tmp_path / "a.png") is False
    assert not (tmp_path / "a.png").exists()


def test_without_matplotlib_a_run_is_finished_all_the_same(place):
    lines = []
    known = sys.modules.pop("embedloss.reporting.curves", None)
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "matplotlib"}
    try:
        for name in hidden:
            del sys.modules[name]
        sys.modules["matplotlib"] = None  # an import of it fails
        run_training(settings(place, "bare", max_steps=1, eval_steps=0), lines.append)
    finally:
        sys.modules.pop("matplotlib", None)
        sys.modules.update(hidden)
        if known is not None:
            sys.modules["embedloss.reporting.curves"] = known
    assert [line for line in lines if "pip install matplotlib" in line] == [
        "note: curves.png is not drawn: pip install matplotlib"
    ]
    assert not (place / "bare" / "curves.png").exists()
    assert (place / "bare" / "README.md").is_file()


def test_neighbours_before_and_after(runs):
    found = json.loads((runs[0] / "neighbours.json").read_text(encoding="utf-8"))
    assert [e["query"] for e in found["before"]] == [e["query"] for e in found["after"]]
    assert len(found["after"]) == 8
    assert found["before"] != found["after"]
    encoder = load_encoder(str(runs[0]))
    entry = found["after"][0]
    text, score = entry["found"][0]
    x, y = encoder.encode([entry["query"], text], normalize=True)
    assert float(x @ y) == pytest.approx(score, abs=1e-3)
    assert all(e["own"] for e in found["after"])


def test_neighbours_of_a_cross_encoder(place, tmp_path):
    tiny_cross_encoder(tmp_path / "cross")
    rows = [{"query": s, "docs": list(SENTENCES[:4]), "grades": [1, 0, 0, 2]} for s in SENTENCES[4:10]]
    (tmp_path / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = RunConfig(
        model=str(tmp_path / "cross"), data=str(tmp_path / "lists.jsonl"), loss="list-net", out=str(tmp_path / "out"),
        max_steps=1, batch_size=2,
    )  # fmt: skip
    run_training(config, lambda text: None)
    found = json.loads((tmp_path / "out" / "neighbours.json").read_text(encoding="utf-8"))
    assert len(found["after"]) == 6
    assert set(found["after"][0]["own"]) == {SENTENCES[0], SENTENCES[3]}
    assert "CrossEncoder(" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


# -- the page ----------------------------------------------------------------------------------------------------------
class Balance(HTMLParser):
    """Fails where a tag is closed that is not open."""

    EMPTY = frozenset({"meta"})

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory):
    return write_page([read_run(run) for run in runs], tmp_path_factory.mktemp("page") / "report.html")


def test_the_page_is_whole_and_needs_nothing_else(page):
    text = page.read_text(encoding="utf-8")
    balance = Balance()
    balance.feed(text)
    assert balance.open == []
    assert not re.search(r"https?://|<script|@import|url\(|<link|<img|<iframe", text)
    assert "prefers-color-scheme:dark" in text
    assert len([1 for tag, _ in balance.seen if tag == "svg"]) >= 6
    for said in ("mnrl(scale=10)", "ndcg@10", "<th>loss</th>", "<th>load_best</th>", "two kept step", "manifest.json"):
        assert said in text, said
    assert "<th>learning_rate</th>" not in text  # equal, so not among what differs
    assert "<script>alert(1)" not in text


def test_names_that_are_equal_are_made_different(runs, tmp_path):
    for parent in ("a", "b"):
        shutil.copytree(runs[0], tmp_path / parent / "run", ignore=shutil.ignore_patterns("checkpoint-*"))
    found = [read_run(tmp_path / parent / "run") for parent in ("a", "b")]
    text = write_page(found, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "a/run" in text
    assert "b/run" in text
    assert "the runs have equal settings" in text


def test_half_a_run_can_be_read(runs, tmp_path):
    tmp_path = tmp_path / "half"
    tmp_path.mkdir()
    lines = (runs[1] / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines[:5]) + '\n{"step": 9, "lo', encoding="utf-8")
    text = write_page([read_run(tmp_path)], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "steps so far" in text
    assert "<svg" in text


def test_folders_that_are_no_runs(place, runs, tmp_path):
    for folder, said in ((place / "gone", "does not exist"), (place / "model", "is no run"), (place, "It holds runs: ")):
        with pytest.raises(EmbedlossError, match=said) as caught:
            read_run(folder)
        assert caught.value.code == "E406"
    (tmp_path / "results.json").write_text("{", encoding="utf-8")
    with pytest.raises(EmbedlossError, match="is damaged"):
        read_run(tmp_path)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium")
@pytest.mark.parametrize("width", [1280, 500])
def test_the_page_opens_in_a_browser_and_fits_its_width(page, tmp_path, width):
    probe = tmp_path / "probe.html"
    script = "<script>document.title = document.documentElement.scrollWidth + ' of ' + innerWidth</script>"
    probe.write_text(page.read_text(encoding="utf-8").replace("</body>", script + "</body>"), encoding="utf-8")
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND",
        f"--user-data-dir={tmp_path}/profile", f"--window-size={width},900", "--dump-dom", f"file://{probe}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    title = re.search(r"<title>(\d+) of (\d+)</title>", done.stdout)
    assert title is not None
    assert int(title[1]) <= int(title[2])
    assert done.stdout.count("<polyline") >= 6


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.93, 0.97), (-3, 12), (0, 2e-5), (1000, 250000), (0.5, 0.5), (float("nan"), 1)]
)
def test_ticks_are_round_and_inside(low, high):
    ticks = nice_ticks(low, high)
    assert ticks
    if low < high:
        assert all(low - 1e-9 <= t <= high + 1e-9 for t in ticks)
        assert 3 <= len(ticks) <= 7


def test_small_things_of_charts():
    assert line_chart([("a", 0, [])]) == ""
    assert "nan" not in line_chart([("a", 0, [(5.0, 0.3)])])
    many = [(float(i), float(i)) for i in range(5000)]
    assert len(thinned(many)) <= 302
    assert (thinned(many)[0], thinned(many)[-1]) == (many[0], many[-1])
    assert (number(2e-05), number(0.12345), number(1234.0), number(0)) == ("2.0e-5", "0.1235", "1,234", "0")


# -- upload ------------------------------------------------------------------------------------------------------------
class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as an upload needs; what is committed is written to a folder."""

    folder: Path

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if self.path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}" if given.get("organization") else given["name"]
            if "forbidden" in name:
                return self.answer({"error": "you have no right to do this"}, 403)
            return self.answer({"url": f"http://{self.headers['host']}/{name}", "id": name})
        if "/preupload/" in self.path:
            files = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]]
            return self.answer({"files": files})
        if "/commit/" in self.path:
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    file = self.folder / entry["value"]["path"]
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(base64.b64decode(entry["value"]["content"]))
            return self.answer({"commitUrl": f"http://{self.headers['host']}/me/tiny/commit/1", "commitOid": "1"})
        return self.answer({"errors": [], "warnings": []})

    def do_GET(self):
        if "forbidden" in self.path:  # after a refusal the client asks whether the repository is there
            return self.answer({"error": "Repository not found"}, 404)
        return self.answer({"id": "me/tiny", "sha": "0" * 40, "siblings": []})

    def answer(self, value, status=200):
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *arguments):
        pass


def test_a_finished_run_is_uploaded_without_its_checkpoints(place, tmp_path):
    Hub.folder = tmp_path / "hub"
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "from embedloss_cli.__main__ import run\n"
        "from embedloss import EmbedlossError\n"
        "from embedloss.training.hub import upload\n"
        f"assert run(['train', '--model', 'static(dimension=8)', '--data', {str(place / 'data.jsonl')!r}, '--loss', 'mnrl',"
        " '--max-steps', '2', '--save-steps', '1', '--batch-size', '8', '--out', 'tiny', '--push-to-hub', 'me/tiny']) == 0\n"
        "try:\n    upload('tiny', 'me/forbidden')\nexcept EmbedlossError as error:\n    print(error)\n"
    )
    environment = {
        **os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_local",
        "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1",
    }  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            cwd=tmp_path,
            timeout=300,
        )
    finally:
        server.shutdown()
    assert done.returncode == 0, done.stderr[-3000:]
    assert "uploaded to" in done.stdout
    assert "E402: the model is saved in 'tiny' but could not be uploaded" in done.stdout
    assert "hf upload me/forbidden tiny" in done.stdout
    sent = {str(p.relative_to(Hub.folder)) for p in Hub.folder.rglob("*") if p.is_file()}
    assert {"README.md", "modules.json", "metrics.jsonl", "run.yaml", "manifest.json"} <= sent
    assert list((tmp_path / "tiny").glob("checkpoint-*"))
    assert not any("checkpoint" in name or name.endswith(".bin") for name in sent)
    texts = list(SENTENCES)
    assert (load_encoder(Hub.folder).encode(texts) == load_encoder(tmp_path / "tiny").encode(texts)).all()


def test_what_forbids_an_upload_is_said_at_the_start(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EmbedlossError, match="unset it") as caught:
        check_hub("me/model")
    assert caught.value.code == "E404"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(EmbedlossError, match="hf auth login") as caught:
        check_hub("me/model")
    assert caught.value.code == "E404"
    with pytest.raises(EmbedlossError, match="is no hub id"):
        check_hub("me/my/model")


# -- search ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("scale=10..40", Range("scale", 10, 40, whole=True)),
        ("scale=1.5..4", Range("scale", 1.5, 4)),
        ("learning-rate=1e-6..1e-4:log", Range("learning_rate", 1e-6, 1e-4, log=True)),
        ("batch_size=16,32", Range("batch_size", choices=("16", "32"))),
    ],
)
def test_ranges_as_text(text, wanted):
    assert Range.read(text) == wanted


@pytest.mark.parametrize(
    "text", ["scale", "scale=10", "scale=40..10", "scale=a..b", "x=0..1:log", "x=1..2:lin", "=1..2", "x=1..inf"]
)
def test_ranges_that_are_none(text):
    with pytest.raises(EmbedlossError, match="--range") as caught:
        Range.read(text)
    assert caught.value.code == "E401"


def test_names_of_ranges(place):
    base = settings(place, "x", loss="mnrl(scale={scale})")
    changed = apply(base, {"scale": 12, "learning_rate": 3e-5, "batch_size": "16"})
    assert (changed.loss, changed.learning_rate, changed.batch_size) == ("mnrl(scale=12)", 3e-5, 16)
    check_ranges(base, [Range("scale", 1, 2), Range("batch_size", choices=("1", "2"))])
    for ranges, said in (
        ([], "nothing to search"),
        ([Range("learning_rat", 1, 2)], "Did you mean 'learning_rate'"),
        ([Range("margin", 1, 2)], "no field of the loss"),
        ([Range("scale", 1, 2), Range("scale", 1, 2)], "given twice"),
    ):
        with pytest.raises(EmbedlossError, match=said):
            check_ranges(base, ranges)


def test_a_search_goes_on_where_it_stopped(place):
    pytest.importorskip("optuna")
    base = settings(place, "search", loss="mnrl(scale={scale})", max_steps=2, eval_steps=0, learning_rate=None)
    ranges = [Range.read("scale=5..40"), Range.read("learning_rate=1e-4..1e-2:log")]
    lines = []
    first = tune(base, ranges, 2, lines.append)
    assert len(first.trials) == 2
    second = tune(base, ranges, 3, lines.append)
    assert [t for t in second.trials if t[0] < 2] == sorted(first.trials, key=lambda t: -t[2])
    assert len({tuple(values.values()) for _, values, _ in second.trials}) == 3
    assert "2 finished trials of an earlier search count" in lines
    assert [x for _, _, x in second.trials] == sorted((x for _, _, x in second.trials), reverse=True)
    assert second.metric == "ndcg@10"
    number, values, value = second.trials[0]
    results = json.loads((place / "search" / f"trial-{number}" / "results.json").read_text(encoding="utf-8"))
    assert results["after"]["ndcg@10"] == value
    best = RunConfig.from_mapping(read_yaml(second.command.removeprefix("embedloss train ")))
    assert best.loss == f"mnrl(scale={values['scale']})"
    assert best.learning_rate == pytest.approx(values["learning_rate"])
    assert best.out == str(place / "search" / "best")
    with pytest.raises(EmbedlossError, match="another") as caught:
        tune(base, [Range.read("scale=5..50")], 3, lines.append)
    assert caught.value.code == "E402"
