import pytest

from embedloss import create_loss, list_losses
from embedloss.errors import EmbedlossError
from embedloss.plugins import plugin_manager
from embedloss.registry import expression_specs, get_spec, parameters_of
from embedloss.spec import LossSpec

LOSSES = """
from embedloss.loss import Loss

class Mean(Loss):
    spec = None
    parameter_aliases = {"triplet_margin": "margin"}

    def __init__(self, margin=1.0, distance="cosine"):
        super().__init__()
        if margin < 0:
            raise ValueError("margin must not be negative")
        self.margin, self.distance = margin, distance

    def compute(self, emb, labels):
        return emb.own("anchor").mean()
"""


def spec(name="kept-apart", target="registry_losses:Mean", **more):
    return LossSpec(**{"name": name, "target": target, "summary": "a mean", "family": "mine", "formats": ["pairs"], **more})


class Plugin:
    def __init__(self, *specs):
        from embedloss import hookimpl

        class Hooks:
            @hookimpl
            def embedloss_register_losses(self):
                return list(specs)

        self.hooks = Hooks()


@pytest.fixture
def register(tmp_path, monkeypatch):
    (tmp_path / "registry_losses.py").write_text(LOSSES, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    added = []

    def add(*specs, distribution="mine"):
        added.append(plugin_manager().register(Plugin(*specs).hooks, distribution))
        return added[-1]

    yield add
    for plugin in added:
        plugin_manager().unregister(plugin)


def test_a_loss_by_name_alias_and_expression(register):
    register(spec(aliases=("ka",)))
    for name in ("kept-apart", "kept_apart", "KEPT-APART", "ka", "ka()", " kept-apart "):
        assert create_loss(name).spec.name == "kept-apart"
    loss = create_loss("ka", margin=3)
    assert loss.margin == 3
    assert loss.to_expression() == "kept_apart(margin=3)"
    assert create_loss(loss.to_expression()).margin == 3


def test_names_that_other_libraries_use(register):
    register(spec())
    assert create_loss("kept-apart(triplet_margin=2)").margin == 2


@pytest.mark.parametrize(
    ("expression", "code", "part"),
    [
        ("kept-apartt", "E201", "Did you mean kept-apart"),
        ("zzzzzz", "E201", "embedloss list"),
        ("kept-apart(margine=2)", "E203", "Did you mean 'margin'? It takes: margin, distance."),
        ("kept-apart(margin=-1)", "E203", "margin must not be negative"),
        ("kept-apart(1, 2, 3)", "E203", "positional arguments"),
        ("linear(0, 1, steps=3)", "E202", "is a schedule, not a loss"),
    ],
)
def test_mistakes(register, expression, code, part):
    register(spec())
    with pytest.raises(EmbedlossError) as caught:
        create_loss(expression)
    assert caught.value.code == code
    assert part in caught.value.message


def test_a_known_loss_that_is_not_installed_says_what_to_install(monkeypatch):
    from embedloss import registry

    monkeypatch.setattr(registry, "_index", lambda manager: {})
    with pytest.raises(EmbedlossError, match=r"E201: the loss 'mnrl' is not installed\. Type: pip install embedloss-ranking"):
        get_spec("mnrl")
    with pytest.raises(EmbedlossError, match=r"no loss is installed\. Type: pip install 'embedloss\[all\]'"):
        get_spec("nothing-like-it")


def test_a_name_taken_twice_names_both(register):
    register(spec(), distribution="first-one")
    register(spec(target="elsewhere:Other"), distribution="second-one")
    with pytest.raises(EmbedlossError) as caught:
        list_losses()
    assert caught.value.code == "E204"
    for part in ("kept-apart", "first-one", "second-one", "EMBEDLOSS_DISABLE_PLUGINS=second-one"):
        assert part in caught.value.message


def test_filters(register):
    register(
        spec(),
        spec(name="scored", formats=["pairs+score"], models=("cross-encoder",)),
        spec(name="anything", formats=(), any_format=True),
    )
    mine = lambda **filters: [s.name for s in list_losses(family="mine", **filters)]  # noqa: E731
    assert mine() == ["anything", "kept-apart", "scored"]
    assert mine(format="pairs") == ["anything", "kept-apart", "scored"]
    assert mine(format="pairs+score") == ["anything", "scored"]
    assert mine(labels="score") == ["scored"]
    assert mine(labels="none") == ["kept-apart"]
    assert mine(model_kind="cross_encoder") == ["scored"]
    for filters in ({"family": "nope"}, {"model_kind": "nope"}, {"labels": "nope"}, {"format": "nope"}):
        with pytest.raises(EmbedlossError):
            list_losses(**filters)


def test_specs_of_an_expression_and_parameters(register):
    register(spec(), spec(name="outer", formats=(), modifier=True))
    assert [s.name for s in expression_specs("outer(kept-apart(margin=2)) + linear(0, 1, steps=3) * kept-apart")] == [
        "outer",
        "kept-apart",
        "kept-apart",
    ]
    assert list(parameters_of(get_spec("kept-apart"))) == ["margin", "distance"]


def test_a_target_that_cannot_be_imported(register):
    register(spec(name="broken", target="no_such_module:Loss"))
    with pytest.raises(EmbedlossError, match=r"E205: loss 'broken' cannot be imported from 'no_such_module:Loss'"):
        create_loss("broken")


@pytest.mark.parametrize("wrong", [{"name": "Upper_Case"}, {"target": "nocolon"}, {"formats": ()}, {"formats": ["nope"]}])
def test_a_spec_that_is_wrong_is_refused_at_once(wrong):
    with pytest.raises((ValueError, EmbedlossError)):
        spec(**wrong)
