"""Every argument of every operator that netslim has a rule for was thought of by the rule."""

from __future__ import annotations

import pytest
import torch
import torchvision  # noqa: F401 - its operators are registered by it
from torch import Tensor, nn

from nets import counted_alike, prove
from netslim import trace
from netslim.graph.rules.register import _overloads
from netslim.graph.rules.registry import IRRELEVANT, RULES, Known, rule

# Known, and left alone on purpose: where they are passed the channels stay.
FREEZING = {"_scaled_dot_product_flash_attention": {"q_descale", "k_descale", "v_descale"}}
X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def schemas(name: str):
    """Of the operator, without those for named dimensions: a prototype of torch, which freezes."""
    found = [f._schema for f in _overloads(name if "::" in name else f"aten::{name}")]
    return [s for s in found if not {"names", "Dimname"} & set(s.overload_name.split("_"))]


@pytest.mark.parametrize("name", sorted(n for n in RULES if not n.endswith("_")))
def test_a_rule_has_thought_of_every_argument(name):
    """A newer PyTorch with a new argument fails here; until it is thought of, it freezes."""
    known = RULES[name]
    assert isinstance(known, Known)
    for schema in schemas(name):
        found = {a.name for a in schema.arguments if not a.is_out}
        missing = found - known.arguments - FREEZING.get(name, set())
        assert not missing, f"{schema} has {missing}; say in its rule that it reads or ignores them"


def test_an_operator_without_any_such_argument_would_be_noticed():
    """The test above looks at something: most rules are for operators that this PyTorch has."""
    seen = [name for name in RULES if schemas(name)]
    assert len(seen) > 200
    assert not {"self", "input", "dim", "attn_mask", "groups"} & set(" ".join(IRRELEVANT.values()))


@torch.library.custom_op("nsarguments::shift", mutates_args=())
def shift(x: Tensor, by: float = 0.0, twisted: bool = False, other: Tensor | None = None) -> Tensor:
    return x + by


shift.register_autograd(lambda ctx, grad: (grad, None, None, None))


class Net(nn.Module):
    def __init__(self, *args, **kwargs):
        super().__init__()
        self.a, self.b, self.args, self.kwargs = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(8, 6, 1),
            args,
            kwargs,
        )

    def forward(self, x):
        return self.b(shift(self.a(x), *self.args, **self.kwargs)).mean((2, 3))


@pytest.fixture
def _rule_of_shift():
    """A rule from before ``twisted`` and ``other`` came."""

    @rule("nsarguments::shift", reads="x", ignores="by")
    def follow(rec, func, out, x, *args):
        rec.set(out, rec.get(x).dims, rec.get(x).weight)
        rec.cost("shift", 7)

    yield
    del RULES["nsarguments::shift"], RULES["nsarguments::shift_"]


@pytest.mark.usefixtures("_rule_of_shift")
@pytest.mark.parametrize("args", [(), (2.0,), (2.0, False), (2.0, False, None)])
def test_an_argument_that_leaves_all_as_it_was_changes_nothing(args):
    graph, *_ = prove(Net(*args).eval(), X)
    assert graph["a"].prunable
    assert graph.unsupported == {}


@pytest.mark.usefixtures("_rule_of_shift")
@pytest.mark.parametrize(
    ("args", "name"), [((2.0, True), "twisted"), ((2.0, False, torch.ones(8)), "other")]
)
def test_an_argument_that_nobody_has_thought_of_freezes(args, name):
    graph = trace(Net(*args).eval(), X)
    assert graph["a"].frozen
    assert graph["a"].reason.startswith(
        f"netslim does not know the argument {name} of nsarguments::shift (test_arguments.py:"
    )
    assert graph.unsupported == {"nsarguments::shift": ("",)}
    assert counted_alike(Net(*args).eval(), X)["macs"] == 2 * 64 * (24 + 48) + 7
