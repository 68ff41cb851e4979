"""`embedloss new`: a plugin as a package whose tests pass at once."""

from __future__ import annotations

import datetime
import importlib.metadata
import keyword
import re
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from embedloss.errors import EmbedlossError


class Licence(str, Enum):
    """Licences that the command can write; `none` leaves the choice to the author."""

    apache = "Apache-2.0"
    mit = "MIT"
    bsd = "BSD-3-Clause"
    none = "none"


def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the loss, such as my-loss.")],
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where; default embedloss-NAME.")] = None,
    licence: Annotated[Licence, typer.Option("--license", help="Licence of the package.")] = Licence.apache,
    author: Annotated[str, typer.Option("--author", metavar="NAME", help="Who holds the copyright.")] = "",
) -> None:
    """Write a package with a loss of your own, its tests and its CI file.

    Example: embedloss new my-loss --license MIT --author "Ada Lovelace"
    """
    files = package(name, licence, author)
    slug = _slug(name)
    folder = out or Path(f"embedloss-{slug}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise EmbedlossError("E402", f"'{folder}' is there already and not empty. Type: --out OTHER_FOLDER")
    for path, text in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    for path in files:
        print(folder / path)
    print(f"\nNow type:\n  cd {folder}\n  python -m pip install -e '.[test]'\n  python -m pytest\n  embedloss show {slug}")


def _slug(name: str) -> str:
    return re.sub(r"[-_\s]+", "-", name.strip().lower())


def _title(slug: str) -> str:
    return "".join(part.capitalize() for part in slug.split("-"))


def package(name: str, licence: Licence, author: str = "") -> dict[str, str]:
    """File name -> text of a new plugin package.

    Raises:
        EmbedlossError: E203 for a name that cannot be one, E204 for one that is taken.
    """
    slug = _slug(name)
    module = slug.replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", slug) or keyword.iskeyword(module):
        raise EmbedlossError("E203", f"'{name}' cannot be the name of a loss: letters, digits and hyphens, as in my-loss.")
    _refuse_taken(slug)
    title = _title(slug)
    class_name = title if title.endswith("Loss") else f"{title}Loss"
    year = datetime.date.today().year
    holder = author.strip() or f"the authors of embedloss-{slug}"
    values = {
        "@SLUG@": slug,
        "@MODULE@": module,
        "@CLASS@": class_name,
        "@CONSTANT@": module.upper(),
        "@FUNCTION@": module if module.endswith("loss") else f"{module}_loss",
        "@VERSION@": _series(),
        "@LICENSE@": 'license = "LicenseRef-Proprietary"' if licence is Licence.none else f'license = "{licence.value}"',
        "@LICENSE_FILES@": "" if licence is Licence.none else '\nlicense-files = ["LICENSE"]',
        "@LICENSE_NAME@": "not chosen yet" if licence is Licence.none else licence.value,
        "@AUTHORS@": f'\nauthors = [{{ name = "{_toml(author.strip())}" }}]' if author.strip() else "",
        "@YEAR@": str(year),
        "@HOLDER@": holder,
    }
    files = {
        path.replace("@MODULE@", module): _filled(text, values)
        for path, text in {**_FILES, **({} if licence is Licence.none else {"LICENSE": _licence(licence)})}.items()
    }
    return dict(sorted(files.items()))


def _refuse_taken(slug: str) -> None:
    from embedloss.registry import list_losses

    for spec in list_losses():
        if slug in (spec.name, *spec.aliases):
            raise EmbedlossError("E204", f"'{spec.distribution}' has a loss named '{slug}' already. Choose another name.")


def _filled(text: str, values: dict[str, str]) -> str:
    for key, value in values.items():
        text = text.replace(key, value)
    return text


def _toml(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _series() -> str:
    """The range of embedloss releases that the plugin works with, from the one that is installed."""
    import embedloss

    major, minor = embedloss.__version__.split(".")[:2]
    return f">={major}.{minor},<{major}.{int(minor) + 1}"


def _licence(licence: Licence) -> str:
    if licence is Licence.mit:
        return _MIT
    if licence is Licence.bsd:
        return _BSD
    text = importlib.metadata.distribution("embedloss-cli").read_text("licenses/LICENSE")
    if not text:
        raise EmbedlossError("E404", "the text of the Apache licence is not installed. Type: --license MIT, or --license none")
    return text


_FILES = {
    "pyproject.toml": """\
[build-system]
requires = ["hatchling>=1.26"]
build-backend = "hatchling.build"

[project]
name = "embedloss-@SLUG@"
version = "0.1.0"
description = "The loss @SLUG@ for embedloss"
readme = "README.md"
requires-python = ">=3.10"
@LICENSE@@LICENSE_FILES@@AUTHORS@
dependencies = ["embedloss@VERSION@"]

[project.optional-dependencies]
test = ["pytest>=8", "embedloss-cli@VERSION@"]

[project.entry-points.embedloss]
@SLUG@ = "embedloss_@MODULE@.plugin"

[tool.hatch.build.targets.wheel]
packages = ["src/embedloss_@MODULE@"]

[tool.pytest.ini_options]
testpaths = ["tests"]
""",
    "README.md": """\
# embedloss-@SLUG@

A loss for embedloss: mean cosine distance of positives beyond a margin.

```
pip install embedloss-@SLUG@ embedloss-cli
embedloss show @SLUG@
embedloss train --model MODEL --data pairs.jsonl --loss "@MODULE@(margin=0.1)" --out run
```

| file | holds |
| --- | --- |
| `src/embedloss_@MODULE@/functional.py` | the arithmetic, as a pure function of tensors |
| `src/embedloss_@MODULE@/losses.py` | the class: hyper-parameters and own weights |
| `src/embedloss_@MODULE@/plugin.py` | what `embedloss list` shows; imports no torch |
| `tests/test_@MODULE@.py` | the conformance kit, and the function against a plain loop |

`python -m pip install -e '.[test]'`, then `python -m pytest`. Licence: @LICENSE_NAME@.
""",
    "src/embedloss_@MODULE@/__init__.py": '"""The loss @SLUG@ for embedloss."""\n',
    "src/embedloss_@MODULE@/py.typed": "",
    "src/embedloss_@MODULE@/functional.py": '''\
"""The arithmetic: pure functions of tensors."""

from __future__ import annotations

from embedloss.similarity import pairwise
from torch import Tensor


def @FUNCTION@(anchor: Tensor, positive: Tensor, margin: float) -> Tensor:
    """How far each positive is from its anchor, beyond a margin: max(1 - cos - margin, 0).

    Args:
        anchor: (rows, dim).
        positive: (rows, dim).
        margin: cosine distance that is near enough.

    Returns:
        (rows,), one term a row.
    """
    return (1 - pairwise("cosine", anchor, positive) - margin).relu()
''',
    "src/embedloss_@MODULE@/losses.py": '''\
"""The loss: hyper-parameters here, arithmetic in `functional`."""

from __future__ import annotations

from embedloss.embeddings import Embeddings
from embedloss.loss import Loss, LossOutput
from torch import Tensor

from embedloss_@MODULE@.functional import @FUNCTION@
from embedloss_@MODULE@.plugin import @CONSTANT@


class @CLASS@(Loss):
    """Mean cosine distance of positives, as far as it is larger than a margin.

    Args:
        margin: cosine distance that is near enough, from 0 to below 2.
    """

    spec = @CONSTANT@

    def __init__(self, margin: float = 0.0) -> None:
        super().__init__()
        if not 0 <= margin < 2:
            raise ValueError(f"margin must be from 0 to below 2, got {margin}")
        self.margin = margin

    def compute(self, emb: Embeddings, labels: Tensor | None) -> LossOutput:
        """The mean over the rows of all processes; the metric `active` is the share of rows beyond the margin."""
        terms = @FUNCTION@(emb.own("anchor"), emb.own("positive"), self.margin)
        # Every process divides by the rows of all, so that the mean over processes is the mean over rows.
        value = terms.sum() * (emb.world_size / max(emb.pool_size, 1))
        return LossOutput.of(value, active=(terms > 0).sum() / max(len(terms), 1))
''',
    "src/embedloss_@MODULE@/plugin.py": '''\
"""What the plugin says about its losses. Keep torch out of here: listing must be quick."""

from __future__ import annotations

from embedloss import LossSpec, hookimpl

@CONSTANT@ = LossSpec(
    name="@SLUG@",
    target="embedloss_@MODULE@.losses:@CLASS@",
    field_name="@CLASS@",
    summary="mean cosine distance of positives beyond a margin",
    family="@SLUG@",
    formats=["pairs"],
    scope="row",
    citation="no paper; a template to start from",
    doc="""\\
**Formula**

`L = mean over rows of max(1 - cos(anchor, positive) - margin, 0)`

**Parameters**

- `margin = 0`: cosine distance that is near enough.

**Example**

```python
import torch
from embedloss import Embeddings, create_loss

loss = create_loss("@MODULE@(margin=0.1)")
print(loss(Embeddings.of(anchor=torch.randn(4, 8), positive=torch.randn(4, 8))).total)
```
""",
)

SPECS = [@CONSTANT@]


@hookimpl
def embedloss_register_losses() -> list[LossSpec]:
    """The losses of this distribution."""
    return SPECS
''',
    "tests/test_@MODULE@.py": '''\
"""The loss keeps what trainers and other losses rely on, and it is the formula."""

import math

import pytest
import torch
from embedloss.testing import parametrize_with_checks

from embedloss_@MODULE@.functional import @FUNCTION@
from embedloss_@MODULE@.losses import @CLASS@
from embedloss_@MODULE@.plugin import SPECS


@parametrize_with_checks(SPECS)
def test_conformance(case, check):
    check(case)


def test_the_formula():
    generator = torch.Generator().manual_seed(0)
    anchor, positive = (torch.randn(6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    found = @FUNCTION@(anchor, positive, 0.9)
    wanted = []
    for x, y in zip(anchor.tolist(), positive.tolist()):
        dot = sum(a * b for a, b in zip(x, y))
        norms = math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y))
        wanted.append(max(1 - dot / norms - 0.9, 0))
    assert found.tolist() == pytest.approx(wanted, abs=1e-12)
    assert 0 < sum(w > 0 for w in wanted) < 6  # both sides of the margin are there


def test_a_wrong_margin_is_refused():
    with pytest.raises(ValueError, match="margin"):
        @CLASS@(margin=-1)
''',
    ".github/workflows/tests.yml": """\
name: tests
on: [push, pull_request]
jobs:
  test:
    runs-on: ubuntu-latest
    strategy:
      matrix:
        python: ["3.10", "3.13"]
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: ${{ matrix.python }}
      - run: python -m pip install -e '.[test]' build
      - run: python -m pytest
      - run: embedloss show @SLUG@
      - run: python -m build
""",
    ".gitignore": "__pycache__/\n*.egg-info/\n.pytest_cache/\n.venv/\nbuild/\ndist/\n",
}

_MIT = """\
MIT License

Copyright (c) @YEAR@ @HOLDER@

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""

_BSD = """\
BSD 3-Clause License

Copyright (c) @YEAR@, @HOLDER@

Redistribution and use in source and binary forms, with or without
modification, are permitted provided that the following conditions are met:

1. Redistributions of source code must retain the above copyright notice, this
   list of conditions and the following disclaimer.

2. Redistributions in binary form must reproduce the above copyright notice,
   this list of conditions and the following disclaimer in the documentation
   and/or other materials provided with the distribution.

3. Neither the name of the copyright holder nor the names of its
   contributors may be used to endorse or promote products derived from
   this software without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS"
AND ANY EXPRESS OR IMPLIED WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE
IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE
FOR ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL
DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR
SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER
CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER IN CONTRACT, STRICT LIABILITY,
OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE
OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.
"""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("new", rich_help_panel="Plugins")(new)
