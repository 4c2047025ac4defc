"""What couplings refuse, and what they say; configs there and back; copies."""

import copy
import json
import pickle

import pytest
import torch

import interp
from interp import couplings
from interp.errors import OptionError, UnknownName

X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
EVERY = {name: couplings.from_config(name) for name in couplings.names()}
LABELS = torch.arange(6) % 2
NAN = X.clone()
NAN[3, 1] = float("nan")


@pytest.fixture(params=EVERY, ids=str)
def coupling(request):
    return EVERY[request.param]


@pytest.mark.parametrize(
    ("x0", "x1", "message"),
    [
        (X, X[:3], r"x1 has shape.*3, 2.*x0 has.*6, 2.*Match them"),
        (X, X.double(), r"x1 has dtype torch\.float64 but x0 has torch\.float32"),
        (X.int(), X.int(), r"x0 has dtype torch\.int32.*x0\.float\(\)"),
        (X > 0, X > 0, r"x0 has dtype torch\.bool"),
        (X[:0], X[:0], r"shape \(0, 2\), so there is nothing to pair"),
        (torch.tensor(1.0), torch.tensor(1.0), r"shape \(\), so there is nothing to pair"),
        (X.numpy(), X, "x0 is a ndarray. Give a tensor"),
        (X, None, "x1 is a NoneType"),
        (X.to_sparse(), X, "sparse"),
        (X.to("meta"), X.to("meta"), "meta tensor"),
    ],
)
def test_points_that_cannot_be_paired_are_refused(coupling, x0, x1, message):
    with pytest.raises(OptionError, match=message):
        coupling(x0, x1, LABELS)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:4], r"labels have shape \(4,\) for 6 rows"),
        (torch.tensor(1), r"labels have shape \(\) for 6 rows"),
        ([0] * 6, "labels is a list. Give a tensor"),
    ],
)
def test_labels_that_do_not_fit_are_refused(coupling, labels, message):
    with pytest.raises(OptionError, match=message):
        coupling(X, X, labels)


def test_a_generator_that_is_none_is_refused(coupling):
    with pytest.raises(OptionError, match=r"generator is a int. Give a torch\.Generator"):
        coupling(X, X, LABELS, 3)


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"independent", "given"}))
def test_points_that_are_not_finite_are_named(name):
    for x0, x1, who in ((NAN, X, "x0"), (X, NAN, "x1"), (X, NAN - torch.inf, "x1")):
        message = rf"{who} is not finite in \d of \d rows, first in row \d"
        with pytest.raises(OptionError, match=message):
            EVERY[name](x0, x1, LABELS)


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"independent", "given"}))
def test_points_whose_distances_overflow_are_named(name):
    x = X.double() * 1e200
    with pytest.raises(
        OptionError, match=r"cost of row \d of x0 and row \d of x1 is.*smaller scale"
    ):
        EVERY[name](x, x.flip(0), LABELS)


def test_large_float32_points_are_no_trouble():
    x = X * 1e15  # whose squares float32 still holds
    assert torch.equal(couplings.optimal_transport()(x, x.flip(0))[0], x.flip(0))


def test_costs_are_finite_though_their_sum_is_not():
    def cost(a, b):
        return 1e38 * (a[:, None] != b).any(2).float()

    assert torch.equal(couplings.optimal_transport(cost=cost)(X, X.flip(0))[0], X.flip(0))


@pytest.mark.parametrize(
    ("cost", "message"),
    [
        (
            lambda x, y: torch.full((6, 6), float("nan")),
            "cost of row 0 of x0 and row 0 of x1 is nan",
        ),
        (lambda x, y: torch.zeros(6, 5), r"the cost gave shape \(6, 5\)"),
        (lambda x, y: 3.0, "the cost gave float"),
        (lambda x, y: torch.zeros(6, 6, dtype=torch.complex64), "Return a real tensor"),
    ],
)
@pytest.mark.parametrize("reg", [None, 1.0])
def test_costs_that_make_no_sense_are_refused(cost, message, reg):
    with pytest.raises(OptionError, match=message):
        couplings.optimal_transport(reg, cost)(X, X)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: couplings.optimal_transport(reg=0.0), r"reg=0\.0 does not fit. Give a positive"),
        (lambda: couplings.optimal_transport(reg=-1), "reg=-1 does not fit. Give a positive"),
        (lambda: couplings.optimal_transport(reg=float("nan")), "reg=nan"),
        (lambda: couplings.optimal_transport(reg="small"), "reg='small'"),
        (lambda: couplings.optimal_transport(cost=3), "cost is 3"),
        (lambda: couplings.schroedinger_bridge(0), "sigma=0 does not fit"),
        (lambda: couplings.unbalanced(tau=0), "tau=0 does not fit"),
        (lambda: couplings.unbalanced(tau=(1, 2, 3)), r"tau=\(1, 2, 3\)"),
        (lambda: couplings.unbalanced(tau=(1, -2)), "tau=-2"),
        (lambda: couplings.partial(0), "mass=0 does not fit"),
        (lambda: couplings.partial(1.5), r"mass=1\.5"),
        (lambda: couplings.partial(-1), r"mass=-1 does not fit. Give a share in \(0, 1\]"),
        (lambda: couplings.partial("half"), "mass='half' does not fit. Give a share"),
        (lambda: couplings.conditional(weight=0), "weight=0"),
        (lambda: couplings.conditional("conditional"), "conditional cannot be made conditional"),
        (lambda: couplings.from_config({"reg": 1.0}), "the coupling is .*Give a name"),
        (lambda: couplings.from_config(3), "the coupling is 3. Give a name"),
        (lambda: couplings.from_config("semi_discrete"), "data set, which a config cannot hold"),
    ],
)
def test_options_that_make_no_sense_are_refused(make, message):
    with pytest.raises(OptionError, match=message):
        make()


def test_unknown_names_are_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'optimal_transport'|optimal_transport"):
        couplings.from_config("optimal_transprot")
    with pytest.raises(UnknownName, match="mass"):
        couplings.from_config({"name": "partial", "masss": 0.5})


@pytest.mark.parametrize("weight", [None, 1.0])
def test_conditional_names_the_callers_row(weight):
    """Not its place among the rows of its label."""
    bad = X.clone()
    bad[3, 0] = float("nan")
    with pytest.raises(OptionError, match="x0 is not finite in 1 of 6 rows, first in row 3"):
        couplings.conditional(weight=weight)(bad, X, LABELS)


def test_conditional_asks_for_labels():
    with pytest.raises(OptionError, match=r"no labels are given. Add a 'label' to the batch"):
        couplings.conditional()(X, X)
    with pytest.raises(
        OptionError, match=r"torch\.float32, of which no two need be equal.*weight="
    ):
        couplings.conditional()(X, X, LABELS.float())


@pytest.mark.parametrize(
    "made",
    [
        couplings.independent(), couplings.given(), couplings.optimal_transport(),
        couplings.optimal_transport(reg=0.5), couplings.unbalanced(), couplings.unbalanced(2),
        couplings.unbalanced((1, None), reg=0.1), couplings.partial(0.3),
        couplings.schroedinger_bridge(0.2), couplings.conditional(couplings.partial(0.5)),
        couplings.conditional({"name": "unbalanced", "tau": [1.0, None]}, weight=2),
    ],
    ids=str,
)  # fmt: skip
def test_configs_and_copies_give_the_same_coupling(made):
    assert couplings.from_config(json.loads(json.dumps(made.config))) == made
    for other in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert other == made
    assert couplings.from_config(made) is made
    assert made.config["name"] in couplings.names()


def test_a_cost_of_ones_own_has_no_config():
    own = couplings.optimal_transport(cost=torch.cdist)
    assert own.config is None
    assert couplings.conditional(own).config is None


def test_one_row_and_rows_without_elements(coupling):
    for x in (X[:1], torch.zeros(3, 0), torch.zeros(2, 3, 0)):
        labels = torch.zeros(len(x), dtype=torch.int64)
        a, b, c = coupling(x, x, labels)
        assert a.shape == b.shape == x.shape
        assert torch.equal(c, labels)


def test_half_precision_goes_in_and_comes_out(coupling):
    a, b, _ = coupling(X.bfloat16(), X.flip(0).bfloat16(), LABELS)
    assert a.dtype is b.dtype is torch.bfloat16


def test_gradients_flow_through_the_rows_and_the_callers_default_device_is_no_matter():
    x0 = X.clone().requires_grad_()
    couplings.optimal_transport()(x0, X.flip(0))[0].sum().backward()
    assert torch.equal(x0.grad, torch.ones_like(X))
    before = couplings.partial(0.5)(X, X.flip(0), generator=torch.Generator().manual_seed(0))
    with torch.device("meta"):
        again = couplings.partial(0.5)(
            X, X.flip(0), generator=torch.Generator("cpu").manual_seed(0)
        )
    assert torch.equal(before[1], again[1])


def test_importing_interp_imports_no_scipy():
    import subprocess
    import sys

    code = "import sys, interp; interp.Interpolant; interp.couplings; print('scipy' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
    assert "couplings" in dir(interp)
