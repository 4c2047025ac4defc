"""A finite data set as a target: against the mixture that it is, in pieces, and where it ends."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import interp
from interp import Interpolant, schedules
from interp.errors import OptionError, TimeError, Unsupported
from interp.exact import Empirical, Gaussian, Mixture

VIEWS = ("velocity", "score", "data", "base", "latent", "posterior_cov", "log_density")
PATHS = {
    "linear": schedules.linear(),
    "vp": schedules.variance_preserving(),
    "latent": Interpolant(lambda t: 1 - t, lambda t: t, lambda t: 0.5 * torch.sqrt(t * (1 - t))),
}


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("dim", [2, 40])
@pytest.mark.parametrize("name", PATHS)
def test_kernels_are_a_mixture(name, dim):
    """To 1e-11: exponents of up to 1e3 (40 dimensions, by matrix products), each to 1e-16."""
    path, data, x = PATHS[name], normal(23, dim), 0.5 * normal(6, dim, seed=1)
    kernels = Empirical(data, bandwidth=0.4, chunk=7)
    mixture = Mixture([1 / 23] * 23, data, [0.4**2] * 23)
    for t in (0.0, 0.4, normal(6, seed=2).sigmoid(), 1.0):
        for view in VIEWS:
            found, wanted = (getattr(law, view)(path)(t, x) for law in (kernels, mixture))
            torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-11, msg=view)
        torch.testing.assert_close(
            kernels.noise(path)(t, x), mixture.noise(path)(t, x), rtol=1e-11, atol=1e-11
        )
    torch.testing.assert_close(kernels.log_prob(x), mixture.log_prob(x), rtol=1e-12, atol=1e-12)
    one, other = (law.marginal(path, 0.3).log_prob(x) for law in (kernels, mixture))
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_the_denoiser_is_the_softmax_over_the_data():
    """Written out: D = sum_i d_i softmax(-|x - beta d_i|^2 / (2 sigma^2)), to 1e-13."""
    path, data, x = schedules.linear(), normal(50, 3), normal(8, 3, seed=1)
    t = torch.linspace(0.05, 0.9, 8, dtype=torch.float64)
    distance = (x[:, None] - t[:, None, None] * data).square().sum(-1)
    wanted = torch.softmax(-distance / (2 * (1 - t[:, None]) ** 2), 1) @ data
    found = Empirical(data, chunk=11).data(path)(t, x)
    torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("chunk", [1, 7, 64, 4096])
def test_chunks_change_nothing(chunk):
    """Sums in another order: 1e-13. Rows are cut as well where 2^21 / chunk is less than there are."""
    path, data, x = schedules.linear(), normal(64, 5), normal(9, 5, seed=1)
    one, other = Empirical(data), Empirical(data, chunk=chunk)
    for view in VIEWS:
        found, wanted = (getattr(law, view)(path)(0.6, x) for law in (other, one))
        torch.testing.assert_close(found, wanted, rtol=1e-13, atol=1e-13, msg=view)


class Largest(TorchDispatchMode):
    """Notes the largest number of bytes that an operation's result takes."""

    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and leaf._base is None:
                self.bytes = max(self.bytes, leaf.numel() * leaf.element_size())
        return result


def test_memory_is_bounded_whatever_the_data():
    """60000 x 784 in float32 is 188 MB: no operation makes more than a chunk in float64, 26 MB."""
    target = Empirical(torch.zeros(60_000, 784), chunk=4096)
    x = torch.zeros(32, 784)
    with Largest() as largest:
        target.data(schedules.linear())(0.5, x)
    assert largest.bytes <= 4096 * 784 * 8


def test_many_rows_are_cut_as_well():
    """5000 rows against 4096 points: matrices of 2^21 numbers, not of 2e7."""
    target, x = Empirical(normal(4096, 2)), normal(5000, 2, seed=1)
    with Largest() as largest:
        found = target.data(schedules.linear())(0.5, x)
    assert largest.bytes <= 2**21 * 8
    few = target.data(schedules.linear())(0.5, x[4990:])
    torch.testing.assert_close(found[4990:], few, rtol=1e-13, atol=1e-13)


def test_samples_are_the_data_with_replacement():
    """Each of 5 points is drawn n / 5 times, within five deviations of a binomial count."""
    data, n = torch.arange(10.0).reshape(5, 2), 20_000
    x = Empirical(data).sample(n, seed=3)
    assert torch.equal(x[:, 1], x[:, 0] + 1)
    counts = torch.bincount((x[:, 0] / 2).long(), minlength=5)
    assert ((counts - n / 5).abs() <= 5 * math.sqrt(n * 0.2 * 0.8)).all()
    assert torch.equal(x[7:], Empirical(data).sample(n - 7, seed=3, first_row=7))
    spread = Empirical(data, bandwidth=0.1).sample(n, seed=3) - x
    assert abs(spread.std() / 0.1 - 1) < 5 / math.sqrt(4 * n)


def test_a_run_ends_at_the_data():
    """With the data view the last step is of first order: every row arrives at a data point.

    At 400 steps to 1e-6: all but e^-(distance^2 / sigma^2) of the weight lies on one point there.
    """
    path, data = schedules.linear(), 3 * normal(6, 2)
    target = Empirical(data)
    x = path.base.sample((40, 2), seed=0, dtype=torch.float64)
    term = path.ode(target.data(path), view="data")
    sol = interp.solve(term, x, method="heun", steps=400)
    assert torch.cdist(sol.x, data).min(1).values.max() < 1e-6


def test_images_keep_their_shape():
    data = torch.rand(12, 1, 4, 4)
    target, x = Empirical(data), torch.randn(3, 1, 4, 4)
    assert target.dim == 16
    assert "12 points" in repr(target)
    for view in ("velocity", "score", "data", "noise"):
        value = getattr(target, view)(schedules.linear())(0.5, x)
        assert (value.shape, value.dtype) == (x.shape, x.dtype)
    assert target.posterior_cov(schedules.linear())(0.5, x).shape == (3, 16, 16)
    assert target.data(schedules.linear())(0.5, x[:0]).shape == (0, 1, 4, 4)
    assert target.posterior_cov(schedules.linear())(0.5, x[:0]).shape == (0, 16, 16)


def test_entropy_is_that_of_one_kernel_where_they_are_apart():
    """log N more than one kernel's, for kernels 100 bandwidths apart."""
    target = Empirical(torch.tensor([[0.0], [100.0], [200.0]]), bandwidth=1.0)
    found = target.entropy(n=4000, seed=0)
    wanted = float(Gaussian(0.0, 1.0).entropy()) + math.log(3)
    assert abs(found.value - wanted) <= 5 * found.error


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: Empirical(torch.zeros(0, 3)), OptionError, r"\(0, 3\)"),
        (lambda: Empirical([1.0, 2.0]), OptionError, "list"),
        (lambda: Empirical(torch.zeros(3, 2, dtype=torch.int64)), OptionError, "int64"),
        (lambda: Empirical(torch.tensor([[0.0], [math.nan]])), OptionError, r"data\[1\]"),
        (lambda: Empirical(torch.zeros(3, 2), -1.0), OptionError, "bandwidth=-1"),
        (lambda: Empirical(torch.zeros(3, 2), chunk=0), OptionError, "chunk=0"),
        (lambda: Empirical(torch.zeros(3, 2)).log_prob(torch.zeros(1, 2)), Unsupported, "density"),
        (lambda: Empirical(torch.zeros(3, 2)).flow(schedules.linear()), Unsupported, "solve"),
        (
            lambda: Empirical(torch.zeros(3, 2)).score(schedules.linear())(1.0, torch.zeros(1, 2)),
            TimeError,
            "no noise is left",
        ),
        (
            lambda: Empirical(torch.zeros(3, 2)).data(
                schedules.linear(), Gaussian([0.0, 0.0], 1.0)
            ),
            Unsupported,
            "base=None",
        ),
        (
            lambda: Empirical(torch.zeros(3, 2)).data(schedules.linear(), None, "unbalanced"),
            Unsupported,
            "unbalanced",
        ),
        (
            lambda: Empirical(torch.zeros(3, 2)).data(schedules.linear())(0.5, torch.zeros(1, 3)),
            OptionError,
            "2 dimensions",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(call, error, says):
    with pytest.raises(error, match=says):
        call()
