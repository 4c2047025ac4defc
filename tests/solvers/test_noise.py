"""Noise: published words, the same bits everywhere, the law of a Brownian path."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import interp
import rust_solvers
from interp import noise
from interp.errors import InterpError, OptionError, UnknownName
from interp.noise import BrownianPath

F32, F64 = torch.float32, torch.float64
ONES = 0xFFFFFFFF
# Random123's kat_vectors for philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC 2011).
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([ONES] * 4, [ONES] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]  # fmt: skip
words = st.integers(0, ONES)


def wiener(
    shape: tuple[int, ...], t: tuple[float, float] = (0.0, 1.0), dtype: torch.dtype = F64,
    **options: object,
) -> interp.solvers.Solution:  # fmt: skip
    """A solve with zero drift and unit diffusion: x is W itself."""
    term = interp.SDE(lambda t, x: torch.zeros_like(x), 1.0)
    x = torch.zeros(shape, dtype=dtype)
    return interp.solve(term, x, t, "euler_maruyama", **options)  # type: ignore[arg-type]


# Words and normals


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_the_published_vectors(counter: list[int], key: list[int], expected: list[int]) -> None:
    assert list(rust_solvers.philox(counter, key)) == expected
    ours = noise.philox(tuple(counter), (key[0], key[1]))
    assert [int(word) for word in ours] == expected


@settings(deadline=None, max_examples=100)
@given(counter=st.lists(words, min_size=4, max_size=4), key=st.tuples(words, words))
def test_words_of_rust_and_torch(counter: list[int], key: tuple[int, int]) -> None:
    ours = noise.philox(tuple(counter), key)
    assert list(rust_solvers.philox(counter, list(key))) == [int(word) for word in ours]


def test_normals_are_box_and_mullers() -> None:
    """From the words, by the library's logarithm and cosine."""
    key = noise.stream_key(7, 1)
    block = torch.arange(5000)
    w = noise.philox((block, 0 * block, 0, 0), key)
    ours = noise.node_normals(1, 20_000, 0, key, 0, torch.device("cpu")).reshape(-1, 4)
    for pair in (0, 1):
        w0, w1 = w[2 * pair : 2 * pair + 2]
        u = (w0.float() + 0.5).double() / 2**32
        radius = (-2 * u.log()).sqrt()
        # The top two bits are a quarter turn, the others, signed, an angle in [-pi/4, pi/4].
        quarter, rest = w1 >> 30, (w1 << 2 & ONES).int().double() / 2**32
        angle = math.pi / 2 * (quarter + rest)
        bound = 6e-7 * radius  # five roundings of single precision
        assert ((ours[:, 2 * pair] - radius * angle.cos()).abs() <= bound).all()
        assert ((ours[:, 2 * pair + 1] - radius * angle.sin()).abs() <= bound).all()


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 40), length=st.integers(1, 300), first_row=st.integers(0, 2**32 - 41),
    key=st.tuples(words, words), nodes=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=3),
)  # fmt: skip
def test_normals_of_rust_and_torch(
    rows: int, length: int, first_row: int, key: tuple[int, int], nodes: list[int]
) -> None:
    cpu = torch.device("cpu")
    theirs = noise.torch_normals((rows, length), first_row, key, nodes, cpu)
    for node, z in zip(nodes, theirs, strict=True):
        assert torch.equal(noise.node_normals(rows, length, first_row, key, node, cpu), z.double())


def test_extreme_words_give_finite_normals() -> None:
    """The largest and smallest radius, and every quarter turn."""
    w0 = torch.tensor([0, 1, 2**31, ONES - 1, ONES])[:, None]
    w1 = torch.tensor([0, 1, 2**30, 2**31, 3 * 2**30, ONES])[None, :]
    a, b = noise._normal_pair(*torch.broadcast_tensors(w0, w1))
    radius = torch.hypot(a, b)
    assert radius[0].max() == pytest.approx(math.sqrt(66 * math.log(2)), rel=1e-6)
    assert torch.equal(radius[-1], torch.zeros(6))  # u = 1 to the rounding of single precision


def test_law_of_the_normals() -> None:
    z = noise.normal((1000, 400), seed=3, dtype=F64).flatten()
    n = len(z)
    # Moments of a normal within 5 standard errors: variances 1, 2, 15, 96 of z, z^2, z^3, z^4.
    for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert float((z**power).mean()) == pytest.approx(mean, abs=5 * math.sqrt(variance / n))
    # Kolmogorov-Smirnov: sqrt(n) D > 2.2 has probability 1e-4.
    uniform = torch.special.ndtr(z.sort().values)
    steps = torch.arange(n, dtype=F64) / n
    assert float(torch.maximum((uniform - steps).abs(), (uniform - steps - 1 / n).abs()).max()) < (
        2.2 / math.sqrt(n)
    )
    # Neighbours in a row and in a column are uncorrelated.
    grid = z.reshape(1000, 400)
    for a, b in ((grid[:, 1:], grid[:, :-1]), (grid[1:], grid[:-1]), (grid[:, 2:], grid[:, :-2])):
        assert abs(float((a * b).mean())) < 5 / math.sqrt(a.numel())
        assert abs(float((a.square() * b.square()).mean()) - 1) < 5 * math.sqrt(8 / a.numel())


def test_streams_and_seeds_are_apart() -> None:
    draws = [
        noise.normal((1, 4000), seed=seed, stream=stream, node=node, dtype=F64).flatten()
        for seed, stream, node in (
            (0, "base", 0), (1, "base", 0), (2**32, "base", 0), (2**63, "base", 0),
            (0, "training", 0), (0, "target", 0), (0, "base", 1), (0, "base", 2**32),
        )
    ]  # fmt: skip
    correlation = torch.stack(draws) @ torch.stack(draws).T / 4000
    assert float((correlation - torch.eye(len(draws))).abs().max()) < 5 * math.sqrt(2 / 4000)


def test_bad_keys() -> None:
    for seed in (-1, 2**64, 1.5, "a", True):
        with pytest.raises(OptionError, match="seed=.*Give an integer from 0 to"):
            noise.normal((2, 2), seed=seed)  # type: ignore[arg-type]
    for row in (-1, 2**32 - 1, 0.5):
        with pytest.raises(OptionError, match="first_row=.*Give an integer from 0 to"):
            noise.normal((2, 2), seed=0, first_row=row)  # type: ignore[arg-type]
    with pytest.raises(UnknownName, match="Did you mean training"):
        noise.normal((2, 2), seed=0, stream="trainings")


# The same bits


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(0, 5), length=st.integers(1, 70), seed=st.integers(0, 2**64 - 1),
    first_row=st.integers(0, 2**32 - 6), dtype=st.sampled_from([F32, F64]),
    fractions=st.lists(st.integers(1, 99), max_size=6, unique=True),
    start=st.floats(-3, 3), length_t=st.floats(0.1, 5), backwards=st.booleans(),
)  # fmt: skip
def test_w_is_the_same_bits_on_rust_and_torch(
    rows: int, length: int, seed: int, first_row: int, dtype: torch.dtype, fractions: list[int],
    start: float, length_t: float, backwards: bool,
) -> None:  # fmt: skip
    stop = start + length_t
    grid = sorted({start, *(start + f / 100 * length_t for f in fractions), stop})
    if backwards:
        grid.reverse()
    options = {"seed": seed, "first_row": first_row, "grid": grid, "save_at": grid}
    ends = (grid[0], grid[-1])
    ours = wiener((rows, length), ends, dtype, backend="rust", **options)
    theirs = wiener((rows, length), ends, dtype, backend="torch", **options)
    assert torch.equal(ours.xs, theirs.xs)
    assert ours.stats.seed == theirs.stats.seed == seed


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 2**64 - 1), first_row=st.integers(0, 2**32 - 6), depth=st.integers(1, 20),
    span=st.tuples(st.floats(-3, 3), st.floats(0.1, 5)), data=st.data(),
)  # fmt: skip
def test_w_and_its_integral_are_the_same_bits_on_rust_and_torch(
    seed: int, first_row: int, depth: int, span: tuple[float, float], data: st.DataObject
) -> None:
    """Whatever was asked before, dyadic times and ends included."""
    a, b = span[0], span[0] + span[1]
    anywhere = st.floats(a, b) | st.integers(0, 64).map(lambda k: a + (b - a) * k / 64)
    times = [min(max(t, a), b) for t in data.draw(st.lists(anywhere, min_size=1, max_size=9))]
    ours = BrownianPath(5, 7, seed, first_row, (a, b), depth)
    theirs = BrownianPath(5, 7, seed, first_row, (a, b), depth, native=False)
    for mine, other in zip(ours.values(times), theirs.values(times), strict=True):
        assert torch.equal(mine, other)
    assert torch.equal(ours.values(times, area=False)[0], theirs.values(times)[0])


@pytest.mark.parametrize("shape", [(3, 5000), (3000, 7), (70_001, 1), (2, 3, 11, 13)])
def test_large_states_too(shape: tuple[int, ...]) -> None:
    """Where rows are shared out between threads."""
    ours, theirs = (
        wiener(shape, backend=backend, steps=3, seed=11).x for backend in ("rust", "torch")
    )
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_one_path_for_every_grid(backend: str) -> None:
    """W at shared times, whatever the other times are."""
    coarse, common = [0.0, 0.25, 0.6, 1.0], [0.25, 0.6, 1.0]
    fine = sorted({*coarse, *(k / 64 for k in range(65)), 0.123, 0.777})
    runs = [
        wiener((4, 9), backend=backend, grid=grid, seed=6, save_at=common).xs
        for grid in (coarse, fine)
    ]
    # Sums of up to 67 increments of size below 1.
    assert float((runs[0] - runs[1]).abs().max()) < 67 * 2.3e-16 * 4


@pytest.mark.parametrize("times", [[0.25, 0.6, 1.0], [0.1, 0.1001, 0.9], [1 / 3, 2 / 3]])
def test_w_at_a_time_is_a_function_of_that_time(times: list[float]) -> None:
    """Bit for bit: the first step from 0 to t is W(t) itself."""
    path = BrownianPath(4, 9, 6)
    for t in times:
        grid = sorted({0.0, t, 1.0})
        single = wiener((4, 9), grid=grid, seed=6, save_at=[t])
        assert torch.equal(single.xs[0], path.at(t))


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_chunks_make_up_the_whole(backend: str) -> None:
    term = interp.SDE(lambda t, x: -torch.sin(x), lambda t, x: 0.5 + 0.1 * x.cos())
    x = torch.linspace(-1, 1, 10 * 33, dtype=F64).reshape(10, 33)
    options = {"method": "euler_maruyama", "steps": 5, "seed": 12, "backend": backend}
    whole = interp.solve(term, x, first_row=100, **options).x  # type: ignore[arg-type]
    for cuts in ([0, 3, 4, 10], [0, 9, 10], list(range(11))):
        parts = [
            interp.solve(term, x[a:b], first_row=100 + a, **options).x  # type: ignore[arg-type]
            for a, b in zip(cuts[:-1], cuts[1:], strict=True)
        ]
        assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_float32_is_float64_rounded(backend: str) -> None:
    double = wiener((5, 7), backend=backend, steps=1, seed=4).x
    single = wiener((5, 7), dtype=F32, backend=backend, steps=1, seed=4).x
    assert torch.equal(single, double.float())


@pytest.mark.parametrize("backend", ["rust", "torch"])
def test_a_wider_row_begins_with_the_narrow_one(backend: str) -> None:
    narrow, wide = (wiener((3, n), backend=backend, steps=2, seed=4).x for n in (5, 130))
    assert torch.equal(wide[:, :5], narrow)


def test_depth_leaves_dyadic_times_alone() -> None:
    times = [k / 8 for k in range(9)]
    shallow, deep = (
        wiener((3, 4), grid=times, save_at=times, seed=2, depth=depth) for depth in (3, 20)
    )
    assert torch.equal(shallow.xs, deep.xs)
    assert (shallow.stats.depth, deep.stats.depth) == (3, 20)


def test_finer_grids_deepen_the_tree_and_say_so() -> None:
    assert wiener((1, 1), steps=1000, seed=0).stats.depth == 10
    fine = wiener((1, 1), steps=3000, seed=0)
    assert fine.stats.depth is not None
    assert fine.stats.depth > 10
    with pytest.raises(OptionError, match="too close for a Brownian path"):
        wiener((1, 1), grid=[0.0, 0.3, math.nextafter(0.3, 1), math.nextafter(0.3001, 1), 1.0])


def test_a_run_in_two_parts_is_one() -> None:
    """With one span and depth the noise of a run does not depend on where it was cut."""
    term = interp.SDE(lambda t, x: -x, 0.7)
    x = torch.ones(4, 3, dtype=F64)
    options = {"method": "euler_maruyama", "seed": 5, "span": (0.0, 2.0)}
    grid = [0.0, 0.2, 0.7, 1.1, 1.7, 2.0]
    whole = interp.solve(term, x, (0.0, 2.0), grid=grid, **options)  # type: ignore[arg-type]
    first = interp.solve(term, x, (0.0, 1.1), grid=grid[:4], **options)  # type: ignore[arg-type]
    second = interp.solve(term, first.x, (1.1, 2.0), grid=grid[3:], **options)  # type: ignore[arg-type]
    assert torch.equal(second.x, whole.x)


# The law of W


@pytest.mark.parametrize("backend", ["rust", "torch"])
@pytest.mark.parametrize(
    "times",
    [
        [0.0, 0.3, 0.5, 0.77, 0.7701, 1.0],
        [-1.0, -0.3, 0.0, 1.9, 2.0],
        [-0.7, 0.0, 0.9],
        [2.0, 0.5, 0.0],
    ],
    ids=str,
)
def test_increments_are_independent_normals(times: list[float], backend: str) -> None:
    n = 400 if backend == "rust" else 100
    ends = (times[0], times[-1])
    sol = wiener((n, 500), ends, backend=backend, grid=times, save_at=times, seed=21)
    lengths = torch.tensor(times, dtype=F64).diff().abs()
    steps = sol.xs.flatten(1).diff(dim=0) / lengths.sqrt()[:, None]
    n = steps.shape[1]
    covariance = steps @ steps.T / n
    # 5 standard errors: 1 / sqrt(n) off the diagonal, sqrt(2 / n) on it.
    assert float((covariance - torch.eye(len(steps))).abs().max()) < 5 * math.sqrt(2 / n)
    assert float(steps.mean(1).abs().max()) < 5 / math.sqrt(n)
    assert float(((steps**4).mean(1) - 3).abs().max()) < 5 * math.sqrt(96 / n)
    squares = steps.square() - 1
    off = squares @ squares.T / n - torch.diag((squares.square()).mean(1))
    assert float(off.abs().max()) < 5 * 2 / math.sqrt(n)


@pytest.mark.parametrize("native", [True, False])
def test_increments_and_areas_are_independent_normals(native: bool) -> None:
    """W / sqrt(h) and H / sqrt(h / 12) over disjoint steps: exact moments, and none between them."""
    times = [-1.0, -0.3, 0.0, 0.777, 1.0, 1.0001, 2.9, 3.0]
    steps = list(zip(times[:-1], times[1:], strict=True))
    path = BrownianPath(300, 300, 3, span=(-1.0, 3.0), native=native)
    z = []
    for (s, r), (w, h) in zip(steps, path.increments(steps, area=True), strict=True):
        assert h is not None
        z += [w.flatten() / math.sqrt(r - s), h.flatten() / math.sqrt((r - s) / 12)]
    rows, n = torch.stack(z), 90_000
    covariance = rows @ rows.T / n
    assert float((covariance - torch.eye(len(rows))).abs().max()) < 5 * math.sqrt(2 / n)
    assert float(rows.mean(1).abs().max()) < 5 / math.sqrt(n)
    assert float(((rows**4).mean(1) - 3).abs().max()) < 5 * math.sqrt(96 / n)


def test_law_over_many_seeds() -> None:
    """Kolmogorov-Smirnov on numbers of 3000 seeds: sqrt(n) D > 2.2 has probability 1e-4."""
    n, found = 3000, []
    steps = [(0.0, 0.3), (0.2, 0.7), (0.3001, 0.3009)]  # the last inside one leaf or two
    for seed in range(n):
        made = BrownianPath(1, 3, seed).increments(steps, area=True)
        found.append([float(v[0, 1]) for pair in made for v in pair if v is not None])
    lengths = torch.tensor([r - s for s, r in steps], dtype=F64)
    scales = torch.stack([lengths.sqrt(), (lengths / 12).sqrt()], 1).flatten()
    z = (torch.tensor(found, dtype=F64) / scales).sort(0).values
    ranks = torch.arange(n, dtype=F64)[:, None] / n
    uniform = torch.special.ndtr(z)
    gap = torch.maximum((uniform - ranks).abs(), (uniform - ranks - 1 / n).abs()).amax(0)
    assert float(gap.max()) < 2.2 / math.sqrt(n)


def test_areas_of_parts_make_that_of_the_whole() -> None:
    """Chen's relation: H = x H1 + (1 - x) H2 + ((1 - x) W1 - x W2) / 2."""
    path = BrownianPath(5, 9, 4, depth=12)
    s, m, r = 0.1, 0.44, 0.93
    (w, h), (w1, h1), (w2, h2) = path.increments([(s, r), (s, m), (m, r)], area=True)
    x = (m - s) / (r - s)
    assert h is not None
    assert h1 is not None
    assert h2 is not None
    assert float((w - w1 - w2).abs().max()) < 1e-15
    # Differences of integrals of size 1, over lengths of a third.
    assert float((h - x * h1 - (1 - x) * h2 - ((1 - x) * w1 - x * w2) / 2).abs().max()) < 1e-14


@pytest.mark.parametrize("native", [True, False])
def test_the_area_is_that_of_the_path(native: bool) -> None:
    """The integral of W by the trapezoidal rule on 2^14 leaves, whose error is the areas of these."""
    n = 2**14
    path = BrownianPath(2, 5, 8, depth=14, native=native)
    w, _ = BrownianPath(2, 5, 8, depth=14).values([k / n for k in range(n + 1)], area=False)
    for k in (n // 3, n // 2, n):
        integral = path.values([k / n])[1][0]
        sum_of_areas = (w[: k + 1].sum(0) - 0.5 * (w[0] + w[k])) / n
        assert float((integral - sum_of_areas).abs().max()) < 6 * math.sqrt(k / 12) * n**-1.5


def test_a_training_step_draws_from_its_generator() -> None:
    x = torch.empty(64, 3, 5)

    def drawn(seed: int | None) -> torch.Tensor:
        if seed is None:
            return noise.normal_like(x)
        return noise.normal_like(x, torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    torch.manual_seed(3)
    first, second = drawn(None), drawn(None)
    torch.manual_seed(3)
    assert torch.equal(drawn(None), first)
    assert not torch.equal(first, second)
    assert noise.normal_like(x.double()).dtype is F64
    stacked = torch.func.vmap(noise.normal_like, randomness="different")(x)
    assert not torch.equal(stacked[0], stacked[1])


def test_rows_are_independent() -> None:
    w = wiener((50, 4000), steps=4, seed=1).x
    covariance = w @ w.T / 4000
    assert float((covariance - torch.eye(50)).abs().max()) < 6 * math.sqrt(2 / 4000)  # of 1275


@pytest.mark.parametrize(
    "options",
    [{"span": 5}, {"span": (0.0, 1.0, 2.0)}, {"span": (0.5, 1.0)}, {"span": ("a", 1.0)},
     {"span": (0.0, math.inf)}, {"depth": 0}, {"depth": 49}, {"depth": 2.5}, {"seed": -3},
     {"seed": "x"}, {"first_row": -1}],
    ids=str,
)  # fmt: skip
def test_bad_options_of_the_noise(options: dict[str, Any]) -> None:
    name = next(iter(options))
    for backend in ("rust", "torch"):
        with pytest.raises(InterpError, match=f"{name}=.*Give"):
            wiener((2, 2), steps=4, backend=backend, **options)


def test_a_drawn_seed_is_recorded_and_repeats_the_run() -> None:
    first = wiener((3, 2), steps=3)
    again = wiener((3, 2), steps=3, seed=first.stats.seed)
    other = wiener((3, 2), steps=3)
    assert torch.equal(first.x, again.x)
    assert not torch.equal(first.x, other.x)
    assert other.stats.seed != first.stats.seed
