"""Pictures: what they show is what the path says, and they are whole files."""

from __future__ import annotations

import inspect
import io
import itertools
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import interp
from interp import Interpolant, plot, schedules
from interp.errors import FieldError, OptionError, TimeError, UnknownName
from interp.plot import labels, style
from interp.plot.curves import limits, names_of
from interp.plot.marginals import COLUMNS, laws_of

T = torch.linspace(0, 1, 401, dtype=torch.float64)
PEAKS, MOONS = plot.target("peaks"), plot.target("moons")
LINEAR, VP = schedules.linear(), schedules.variance_preserving()
BRIDGE = Interpolant(
    lambda t: 1 - t, lambda t: t, lambda t: torch.sqrt(2 * t * (1 - t)), gaussian_base=False
)


def run(target, path=LINEAR, rows=12, m=21):
    x = path.base.sample((rows, target.dim), seed=0)
    times = torch.linspace(0, 1, m)
    return interp.solve(path.ode(target.data(path), view="data"), x, save_at=times)


def ydata(axes):
    return [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines]


# Curves


def test_curves_are_the_paths_own_values():
    """One panel a function and a row a derivative, and in each a line a path: exact values."""
    paths = {"linear": LINEAR, "vp": VP, "bridge": BRIDGE}
    figure = plot.schedules(paths)
    assert len(figure.axes) == 8
    functions = ("alpha", "beta", "gamma", "sigma")
    for axes, (order, function) in zip(
        figure.axes, itertools.product(("", "d"), functions), strict=True
    ):
        drawn = ydata(axes)
        shown = [BRIDGE] if function == "gamma" else paths.values()  # zeros say nothing
        wanted = [getattr(p.coefficients(T), order + function).numpy() for p in shown]
        np.testing.assert_array_equal(np.array(drawn), np.array(wanted))
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(paths)


def test_one_path_has_all_functions_in_one_panel():
    figure = plot.schedules(VP)
    values, slopes = figure.axes
    k = VP.coefficients(T)
    np.testing.assert_array_equal(ydata(values), [k.alpha.numpy(), k.beta.numpy()])
    np.testing.assert_array_equal(ydata(slopes), [k.dalpha.numpy(), k.dbeta.numpy()])
    assert [t.get_text() for t in values.texts] == ["α", "β"]
    assert len(plot.schedules(VP, derivatives=False).axes) == 1


def test_log_snr_is_drawn_in_nats():
    figure = plot.log_snr([LINEAR, VP], points=11)
    (axes,) = figure.axes
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    np.testing.assert_array_equal(ydata(axes)[:2], [p.log_snr(t).numpy() for p in (LINEAR, VP)])
    assert "nats" in axes.get_ylabel()
    low, high = axes.get_ylim()
    assert np.isfinite([low, high]).all()


def test_an_infinite_derivative_does_not_squeeze_the_rest():
    """alpha' of VP runs to -inf at t = 1; what lies below 98 % of it is cut."""
    low, _ = plot.schedules([VP, LINEAR]).axes[2].get_ylim()
    inner = np.quantile(VP.coefficients(T).dalpha[:-1].numpy(), 0.02)
    assert 1.6 * inner < low < inner < 0


def test_what_reaches_far_is_compressed():
    """EDM's alpha is 80 at t = 0, linear's 1: both are seen on an axis linear up to 1."""
    axes = plot.schedules([LINEAR, schedules.edm()]).axes[0]
    assert axes.get_yscale() == "asinh"
    assert axes.get_ylim()[1] >= 80
    assert {0.0, 1.0, 10.0} <= set(axes.get_yticks())


def test_a_path_with_a_schedule_for_each_element_has_a_line_for_some():
    speeds = torch.linspace(1, 3, 20, dtype=torch.float64)
    path = Interpolant(lambda t: (1 - t[..., None]) ** speeds, lambda t: t[..., None] ** speeds)
    alpha = plot.schedules([path, LINEAR]).axes[0]
    assert len(alpha.lines) == 7 + 1
    wanted = path.coefficients(T).alpha[:, [0, -1]].numpy()
    np.testing.assert_array_equal(np.array(ydata(alpha))[[0, 6]], wanted.T)
    assert len(plot.log_snr(path).axes[0].lines) == 7 + 1  # and zero


def test_limits_without_a_finite_value():
    assert limits([np.full(3, np.inf)]) == (0.0, 1.0)


def test_paths_are_named_apart():
    a, b = schedules.trigonometric(), schedules.trigonometric(1.0)
    named = names_of([a, b, LINEAR, BRIDGE, BRIDGE])
    assert list(named)[2:] == ["linear", "Interpolant", "Interpolant (5)"]
    assert "theta=1.0" in list(named)[1]


def test_tables_are_numbered_and_not_spelt_out():
    tables = [schedules.from_betas(torch.linspace(1e-4, end, 100)) for end in (0.1, 0.2)]
    assert list(names_of(tables)) == ["from betas", "from betas (2)"]


def test_only_a_path_from_base_to_data_is_said_to_be_one():
    """A path run backwards starts at the data, and a mirror has data at both ends."""
    for path, said in (
        (LINEAR, True),
        (schedules.encode_decode(), True),
        (LINEAR.reverse(), False),
    ):
        axes = plot.log_snr(path).axes[0]
        assert (axes.get_xticklabels()[0].get_text() == "0\nbase") is said
    for path, ends in ((LINEAR, ["base", "data"]), (schedules.mirror(), ["t = 0", "data"])):
        left, _, right, _ = plot.density(PEAKS, path).axes
        assert [left.get_title(), right.get_title()] == ends


def test_a_law_that_is_a_point_is_drawn_as_one():
    """Foellmer's path begins at 0: a dot, no density, and the rest is not washed out by it."""
    path = schedules.foellmer()
    left, middle, _, _ = plot.density(PEAKS, path).axes
    assert left.lines[0].get_ydata().tolist() == [0.0]
    table = middle.images[0].get_array()
    assert np.isnan(np.ma.filled(table, np.nan)[:, 0]).all()
    first, *_ = plot.density(MOONS, path).axes
    assert first.lines[0].get_xydata().tolist() == [[0.0, 0.0]]


def test_colours_are_told_apart_by_every_eye():
    """Pairs of the palette stay apart in CIELAB for normal, protan and deutan vision.

    The full-severity matrices of Machado, Oliveira, Fernandes (2009), in linear sRGB. A distance of
    2.3 is just noticeable; lines need several times that: 10.
    """
    eyes = {
        "normal": np.eye(3),
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                   [-0.011820, 0.042940, 0.968881]],
    }  # fmt: skip
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )

    def lab(color, eye):
        rgb = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        xyz = to_xyz @ np.clip(np.asarray(eye) @ linear, 0, 1) / [0.9505, 1.0, 1.089]
        f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    for eye in eyes.values():
        seen = [lab(color, eye) for color in style.PALETTE]
        distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
        assert min(distances) > 10


def test_names_on_curves_touch_nothing():
    """The boxes of the names lie inside the axes, apart from each other and from every curve."""
    figure = plot.log_snr([schedules.linear(), VP, schedules.edm(), schedules.cosine()])
    (axes,) = figure.axes
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    boxes = [text.get_window_extent(renderer) for text in axes.texts]
    assert len(boxes) == 4
    window = axes.get_window_extent(renderer)
    for one, other in itertools.combinations(boxes, 2):
        assert not one.overlaps(other)
    for box in boxes:
        assert window.x0 <= box.x0 <= box.x1 <= window.x1
        assert window.y0 <= box.y0 <= box.y1 <= window.y1
    curves = [line for line in axes.lines if len(line.get_xdata()) > 2]
    points = np.concatenate([labels._visible(axes, line, window) for line in curves])
    for box in boxes:
        inside = (points > [box.x0, box.y0]) & (points < [box.x1, box.y1])
        assert not inside.all(1).any()


# The law over time


def test_the_density_is_the_exact_one():
    figure = plot.density(PEAKS, LINEAR)
    (image,) = figure.axes[1].images
    shown = image.get_array()
    x = torch.linspace(*figure.axes[1].get_ylim(), shown.shape[0], dtype=torch.float64)
    for k in (0, 100, 240):
        law = PEAKS.marginal(LINEAR, COLUMNS[k])
        # The picture's grid and this one are each right to rounding of x, times a slope below 1e3.
        np.testing.assert_allclose(shown[:, k], law.log_prob(x[:, None]), atol=1e-10)
    assert "nats" in figure.axes[3].get_ylabel()


def test_a_wide_spread_is_divided_out():
    """On EDM x / std is drawn, its density times std, so that each column still sums to 1."""
    laws = laws_of(PEAKS, schedules.edm(), None, COLUMNS, None)
    assert laws.scaled
    x = laws.grid(2000)[0]
    for k in (0, 120, 240):
        mass = torch.trapezoid(laws.log_density(k, x[:, None]).exp(), x)
        # Components are cut at 3.2 standard deviations: 0.0014 of their mass is outside.
        assert mass.item() == pytest.approx(1, abs=2e-3)
    assert "standard deviation" in laws.name
    assert not laws_of(PEAKS, LINEAR, None, COLUMNS, None).scaled
    assert laws_of(PEAKS, LINEAR, None, COLUMNS, True).scaled


def test_the_plane_has_a_panel_for_each_time():
    figure = plot.density(MOONS, LINEAR, times=[0.0, 0.7, 1.0])
    assert [a.get_title("left") for a in figure.axes] == ["t = 0", "t = 0.7", "t = 1"]
    for axes in figure.axes:
        (image,) = axes.images
        assert image.get_array().max() == 1  # over its own maximum
        assert axes.get_aspect() == 1


def test_a_base_of_ones_own():
    """A two-sided path with a mixture at both ends, whose marginals are asked with that base."""
    base = interp.exact.Gaussian(1.0, 0.25)
    figure = plot.density(PEAKS, BRIDGE, base)
    line = figure.axes[0].lines[0]
    x = torch.tensor(line.get_ydata())
    np.testing.assert_allclose(line.get_xdata(), base.log_prob(x[:, None]).exp(), rtol=1e-9)


def test_a_data_set_is_a_law_too():
    """A finite data set with a bandwidth: its own log density, over the reach of its samples."""
    data = interp.exact.Empirical(torch.tensor([[-1.0], [2.0]]), bandwidth=0.2)
    figure = plot.density(data, LINEAR)
    shown = figure.axes[1].images[0].get_array()
    x = torch.linspace(*figure.axes[1].get_ylim(), shown.shape[0], dtype=torch.float64)
    np.testing.assert_allclose(shown[:, -1], data.log_prob(x[:, None]), atol=1e-10)
    with pytest.raises(interp.errors.Unsupported, match="bandwidth"):
        plot.density(interp.exact.Empirical(torch.tensor([[0.0], [1.0]])), LINEAR)


# Runs


def test_trajectories_are_the_solutions():
    flow = run(PEAKS)
    panel = plot.trajectories(flow, PEAKS, LINEAR).axes[1]
    np.testing.assert_array_equal(np.array(ydata(panel)), flow.xs[..., 0].double().T)
    assert len(panel.images) == 1
    alone = plot.trajectories(flow)
    assert len(alone.axes) == 1
    assert len(alone.axes[0].lines) == 12


def test_trajectories_are_divided_by_the_spread_as_the_density_is():
    path = schedules.edm()
    flow = run(PEAKS, path)
    panel = plot.trajectories(flow, PEAKS, path).axes[1]
    scale = laws_of(PEAKS, path, None, flow.ts, True).scale
    np.testing.assert_allclose(
        np.array(ydata(panel)), (flow.xs[..., 0].double() / scale[:, None]).T, rtol=1e-12
    )


def test_trajectories_in_the_plane():
    flow = run(MOONS, rows=5, m=11)
    (axes,) = plot.trajectories(flow, MOONS, LINEAR).axes
    lines, starts, ends = axes.collections
    segments = np.array(lines.get_segments()).reshape(10, 5, 2, 2)
    np.testing.assert_array_equal(segments[:, :, 0], flow.xs[:-1].double())
    np.testing.assert_array_equal(segments[:, :, 1], flow.xs[1:].double())
    np.testing.assert_array_equal(starts.get_offsets(), flow.xs[0].double())
    np.testing.assert_array_equal(ends.get_offsets(), flow.xs[-1].double())


def test_an_sde_is_drawn_like_an_ode():
    x = LINEAR.base.sample((6, 1), seed=0)
    times = torch.linspace(0, 1, 26, dtype=torch.float64)
    noisy = interp.solve(
        LINEAR.sde(PEAKS.data(LINEAR), view="data", diffusion="reverse"), x,
        method="euler_maruyama", steps=25, save_at=times, seed=0,
    )  # fmt: skip
    assert len(plot.trajectories(noisy, PEAKS, LINEAR).axes[1].lines) == 6


def test_velocities_are_the_models():
    model = MOONS.velocity(LINEAR)
    figure = plot.velocity(model, times=(0.2, 0.8), extent=2.0)
    for axes, t in zip(figure.axes, (0.2, 0.8), strict=True):
        (arrows,) = axes.collections
        points = torch.tensor(arrows.get_offsets(), dtype=torch.float32)
        assert points.abs().max() < 2
        v = model(t, points)
        np.testing.assert_array_equal(np.stack([arrows.U, arrows.V], 1), v)
    with_law = plot.velocity(model, times=(0.8,), target=MOONS, path=LINEAR)
    assert len(with_law.axes[0].images) == 1


def test_the_field_of_a_line_is_a_picture_over_time():
    figure = plot.velocity(lambda t, x: t * x, dim=1, times=(0.0, 1.0), extent=3.0)
    axes = figure.axes[0]
    field = np.asarray(axes.images[0].get_array())
    t, x = np.linspace(0, 1, field.shape[1]), np.linspace(-3, 3, field.shape[0])
    np.testing.assert_allclose(field, x[:, None] * t, atol=1e-6)  # the model is asked in float32
    assert len(axes.collections) == 1  # the streamlines


# Pairs, losses, biases


def test_lines_join_the_pairs():
    x0, x1 = torch.randn(2, 7, 2, generator=torch.Generator().manual_seed(0))
    figure = plot.coupling({"as given": (x0, x1), "turned": (x0, x1.flip(0))})
    for axes, other in zip(figure.axes, (x1, x1.flip(0)), strict=True):
        segments = np.array(axes.collections[0].get_segments())
        np.testing.assert_array_equal(segments, torch.stack([x0, other], 1).double())
        cost = (other - x0).square().sum(1).mean().item()
        assert f"{cost:.3g}" in axes.get_title("left")
    assert len(plot.coupling((x0, x1)).axes) == 1


def test_a_dot_of_bias_stands_where_the_table_says():
    table = interp.methods(bias=True, steps=(4, 9), mean=1.0, variance=4.0)
    (axes,) = plot.bias(table, ["srk", "ddpm"]).axes
    rows = [row for row in table.rows if row.name in ("srk", "ddpm")]
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        f"{row.name}, {row.noise}" for row in rows
    ]
    drawn = {
        (round(x, 9), int(y))
        for c in axes.collections[1:]  # but the hairlines
        for x, y in np.asarray(c.get_offsets())
    }
    low, high = axes.get_xlim()
    assert drawn == {
        (round(float(np.clip(s, low, high)), 9), k) for k, row in enumerate(rows) for s in row.stds
    }
    assert low <= table.std <= high <= 2.05 * table.std
    with pytest.raises(UnknownName, match="Did you mean srk"):
        plot.bias(table, ["skr"])
    with pytest.raises(OptionError, match="no methods"):
        plot.bias(table, [])


def test_loss_by_time_has_means_and_standard_errors():
    t = torch.tensor([0.05, 0.06, 0.07, 0.55, 1.0], dtype=torch.float64)
    loss = torch.tensor([1.0, 2.0, 3.0, 5.0, 7.0])
    (axes,) = plot.loss_by_time((t, loss), bins=10).axes
    (bars,) = axes.containers
    line, _, (errors,) = bars.lines
    np.testing.assert_allclose(line.get_xdata(), [0.06, 0.55, 1.0])
    np.testing.assert_allclose(line.get_ydata(), [2, 5, 7])
    lengths = [s[1, 1] - s[0, 1] for s in errors.get_segments()]
    # std([1, 2, 3]) = 1 over sqrt(3), to both sides; one row has no error.
    np.testing.assert_allclose(lengths, [2 / 3**0.5, 0, 0], atol=1e-12)
    both = plot.loss_by_time({"a": (t, loss), "b": (t, 2 * loss)}, bins=10, log=True)
    assert [text.get_text() for text in both.legends[0].get_texts()] == ["a", "b"]
    assert both.axes[0].get_yscale() == "log"


# Images and films


def images(m=5, n=3, channels=1):
    xs = torch.linspace(-1, 1, m * n * channels * 16).reshape(m, n, channels, 4, 4)
    stats = run(PEAKS, rows=1, m=2).stats
    ts = torch.linspace(0, 1, m, dtype=torch.float64)
    return interp.solvers.result.Solution(xs[-1], ts, xs, stats)


def test_a_strip_has_a_row_for_each_image_and_a_column_for_each_time():
    film = images()
    figure = plot.strip(film, rows=2, times=[0.0, 0.5, 1.0])
    assert len(figure.axes) == 6
    shown = figure.axes[1 * 3 + 1].images[0].get_array()[..., 0]
    np.testing.assert_allclose(shown, (film.xs[2, 1, 0] + 1) / 2, atol=1e-6)  # float32
    assert len(plot.strip(images(m=30, channels=3)).axes) == 3 * 9


def frames(content):
    with Image.open(content) as film:
        found = []
        for k in range(film.n_frames):
            film.seek(k)
            found.append(np.asarray(film.convert("RGB")).copy())
        return found, film.info


@pytest.mark.parametrize("what", ["plane", "line", "images", "no law"])
def test_a_film_has_a_frame_for_each_time(tmp_path, what):
    if what == "images":
        made = plot.animate(images(), to=tmp_path / "film.gif")
    else:
        target = PEAKS if what == "line" else MOONS
        law = () if what == "no law" else (target, LINEAR)
        made = plot.animate(run(target, m=5), *law, seconds=1.0, to=tmp_path / "film.gif")
    assert len(made) == 5
    found, info = frames(tmp_path / "film.gif")
    assert len(found) == 5
    assert info["loop"] == 0  # for ever
    assert found[0].shape == (made[0].height, made[0].width, 3)
    assert (found[0] != found[-1]).any()
    assert (found[0][0, -1] == 255).all()  # the page is white


def test_particles_move_with_the_film():
    """The orange points of the last frame are where the solution ended."""
    flow = run(MOONS, rows=1, m=3)
    (_, _, last) = plot.animate(flow)
    pixels = np.asarray(last.convert("RGB")).astype(int)
    orange = (pixels[..., 0] > 180) & (pixels[..., 2] < 90)
    assert orange.any()


# Files


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_files_are_whole_and_of_the_stated_size(tmp_path, kind):
    path = tmp_path / f"picture.{kind}"
    figure = plot.log_snr(LINEAR, to=path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    head = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind]
    assert path.read_bytes().startswith(head)
    if kind == "png":
        with Image.open(path) as image:
            image.verify()
            width, height = figure.get_size_inches() * style.DPI
            assert image.size == (round(width), round(height))
    stream = io.BytesIO()
    plot.log_snr(LINEAR, to=stream)
    assert stream.getvalue().startswith(b"\x89PNG")


def test_a_full_disk_leaves_the_old_picture(tmp_path, monkeypatch):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("interp.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        plot.log_snr(LINEAR, to=path)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_nothing_of_pyplot_is_touched(tmp_path):
    """In a process of its own, since other tests import pyplot."""
    program = f"""
import sys, torch, interp, matplotlib
from interp import plot, schedules
before = dict(dict.items(matplotlib.rcParams))  # as stored: asking for "backend" imports pyplot
path, target = schedules.linear(), plot.target("moons")
times = torch.linspace(0, 1, 3)
flow = interp.solve(path.ode(target.data(path), view="data"), path.base.sample((4, 2), seed=0), save_at=times)
plot.schedules([path, path], to=r"{tmp_path}/a.png")
plot.trajectories(flow, target, path, to=r"{tmp_path}/b.svg")
plot.density(target, path, to=r"{tmp_path}/c.pdf")
plot.animate(flow, target, path, to=r"{tmp_path}/d.gif")
plot.loss_curve([(1, 2.0), (2, 1.0)], to=r"{tmp_path}/e.png")
plot.grid(torch.zeros(2, 1, 8, 8), to=r"{tmp_path}/f.png")
assert "matplotlib.pyplot" not in sys.modules
assert dict(dict.items(matplotlib.rcParams)) == before
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.iterdir())) == 6


# What is written about them

FUNCTIONS = [n for n in plot.__all__ if "Example:" in (getattr(plot, n).__doc__ or "")]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_example_of_every_function_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = inspect.getdoc(getattr(plot, name)).partition("Example:\n")[2].partition("\n\n")[0]
    images = name == "strip"
    x0, x1 = torch.randn(2, 32, 2, generator=torch.Generator().manual_seed(0))
    known = {
        "interp": interp, "torch": torch, "plot": plot, "schedules": schedules, "path": LINEAR,
        "target": PEAKS if name == "trajectories" else MOONS, "x0": x0, "x1": x1,
        "model": (lambda t, x: -x) if images else MOONS.velocity(LINEAR),
        "x": torch.zeros(4, 1, 8, 8) if images else x0,
    }  # fmt: skip
    exec(textwrap.dedent(lines), known)
    (made,) = tmp_path.iterdir()
    with Image.open(made) as image:
        image.verify()


def test_every_picture_has_an_example():
    """But the two that training writes, and a law's name."""
    assert set(plot.__all__) - set(FUNCTIONS) == {"grid", "loss_curve", "target"}


def test_the_readmes_pictures_are_there_and_small():
    root = Path(__file__).parent.parent
    shown = re.findall(r"!\[[^]]+\]\((docs/[^)]+)\)", (root / "README.md").read_text())
    assert len(shown) >= 4
    for name in shown:
        limit = 1_500_000 if name.endswith(".gif") else 200_000  # what a page should weigh
        assert (root / name).stat().st_size < limit


# What makes no sense

NAN = torch.full((3, 2), torch.nan)
POINTS = torch.zeros(3, 2)
BAD = [
    (lambda: plot.schedules([]), OptionError, "no paths"),
    (lambda: plot.schedules(["linear"]), OptionError, "is a str, not a path"),
    (lambda: plot.log_snr({}), OptionError, "no paths"),
    (lambda: plot.density(interp.exact.Gaussian([0.0] * 3, 1.0), LINEAR), OptionError, "3 dimensions"),
    (lambda: plot.density(MOONS, LINEAR, times=[]), OptionError, "increasing times"),
    (lambda: plot.density(MOONS, LINEAR, times=[0.5, 0.2]), OptionError, "increasing times"),
    (lambda: plot.density(MOONS, LINEAR, times=[0.5, 1.2]), TimeError, "outside"),
    (lambda: plot.density(MOONS, BRIDGE), OptionError, "base="),
    (lambda: plot.trajectories(run(PEAKS, m=2), PEAKS), OptionError, "path is missing"),
    (lambda: plot.trajectories(run(PEAKS), MOONS, LINEAR), OptionError, "2 dimensions"),
    (lambda: plot.trajectories(images()), OptionError, "plot.strip"),
    (lambda: plot.trajectories(interp.solve(lambda t, x: -x, POINTS)), OptionError, "save_at"),
    (lambda: plot.strip(run(PEAKS)), OptionError, "plot.trajectories"),
    (lambda: plot.strip(images(), rows=0), OptionError, "nothing to draw"),
    (lambda: plot.animate(images(), seconds=0), OptionError, "seconds=0"),
    (lambda: plot.animate(images(), to="film.png"), UnknownName, ".gif"),
    (lambda: plot.velocity(MOONS.velocity(LINEAR), dim=3), OptionError, "dim=3"),
    (lambda: plot.velocity(MOONS.velocity(LINEAR), times=()), OptionError, "times"),
    (lambda: plot.velocity(MOONS.velocity(LINEAR), extent=0.0), OptionError, "extent"),
    (lambda: plot.velocity(lambda t, x: x * torch.nan), OptionError, "not finite at t = 0.05"),
    (lambda: plot.velocity(lambda t, x: x[:1]), FieldError, "shape"),
    (lambda: plot.coupling({}), OptionError, "no pairs"),
    (lambda: plot.coupling((POINTS, NAN)), OptionError, "6 numbers that are not finite"),
    (lambda: plot.coupling((POINTS, POINTS[:2])), OptionError, "shape"),
    (lambda: plot.coupling((POINTS[:, :1], POINTS[:, :1])), OptionError, "of the plane"),
    (lambda: plot.coupling((POINTS[:0], POINTS[:0])), OptionError, "at least one"),
    (lambda: plot.coupling(POINTS), OptionError, "two tensors"),
    (lambda: plot.loss_by_time({}), OptionError, "no losses"),
    (lambda: plot.loss_by_time(POINTS), OptionError, "two tensors"),
    (lambda: plot.loss_by_time((torch.rand(3), torch.rand(4))), OptionError, "one loss for each"),
    (lambda: plot.loss_by_time((torch.rand(3), NAN[:, 0])), OptionError, "not finite"),
    (lambda: plot.loss_by_time((torch.rand(3) + 2, torch.rand(3))), OptionError, "in [0, 1]"),
    (lambda: plot.loss_by_time((torch.rand(3), torch.rand(3)), bins=0), OptionError, "bins=0"),
    (lambda: plot.log_snr(LINEAR, to="picture.jpg"), UnknownName, ".png"),
    (lambda: plot.log_snr(LINEAR, to="no/such/folder.png"), OptionError, "no folder no/such"),
    (lambda: plot.target("moon"), UnknownName, "moons"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), BAD, ids=[str(k) for k in range(len(BAD))])
def test_bad_input_is_said(call, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error) as caught:
        call()
    assert message in str(caught.value)
    assert str(caught.value).count(". ") >= 1  # what is wrong, and what to do
    assert not list(tmp_path.iterdir())


def test_few_colours_weigh_less_and_show_the_same_size(tmp_path):
    from PIL import Image

    from interp.plot import style

    figure, axes = style.figure(1, 1, (4, 3))
    axes[0].scatter(*torch.rand(2, 2000, generator=torch.manual_seed(0)).numpy(), alpha=0.5)
    style.finish(figure, tmp_path / "all.png")
    style.finish(figure, tmp_path / "few.png", colours=16)
    with Image.open(tmp_path / "all.png") as whole, Image.open(tmp_path / "few.png") as few:
        assert whole.size == few.size
        assert len(few.convert("RGB").getcolors()) <= 16
    assert (tmp_path / "few.png").stat().st_size < (tmp_path / "all.png").stat().st_size
