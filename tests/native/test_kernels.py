"""Kernels of a user's own, and single steps in place: from Python, and by C's calling convention."""

from __future__ import annotations

import ctypes
import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import interp
import rust_solvers
from interp import schedules
from interp.errors import FieldError, OptionError, SolveError, Uncompilable
from interp.native import Decoder, Kernel, ddpm_step, flow_matching_step, vae_decode

CALL = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, ctypes.c_double, ctypes.c_size_t, ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_double), ctypes.POINTER(ctypes.c_double),
)  # fmt: skip


class Table(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint32), ("bytes", ctypes.c_uint32), ("row", ctypes.c_size_t),
        ("state", ctypes.c_void_p), ("call", CALL),
    )  # fmt: skip


NEW = ctypes.pythonapi.PyCapsule_New
NEW.restype, NEW.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
NAMES = [b"interp.kernel", b"another"]
ALIVE = []


def capsule(function, version=1, size=8, row=0, name=0):
    table = Table(version, size, row, None, CALL(function) if function else CALL())
    ALIVE.append(table)
    return NEW(ctypes.addressof(table), NAMES[name], None)


def decay(state, t, rows, row, x, out):
    for i in range(rows * row):
        out[i] = -t * x[i]
    return 0


@pytest.mark.parametrize("debug", [False, True])
def test_a_kernel_is_a_field(debug):
    kernel = Kernel(capsule(decay), debug=debug)
    x = torch.randn(3, 2, dtype=torch.float64)
    t = torch.tensor(0.5, dtype=torch.float64)
    torch.testing.assert_close(kernel(t, x), -0.5 * x)

    def field(t, x):
        return -t * x

    linear = schedules.linear()
    for ours, theirs in (
        (kernel, field),
        (linear.ode(kernel), linear.ode(field)),
        (
            linear.ode(kernel, view="data", time="noise"),
            linear.ode(field, view="data", time="noise"),
        ),
    ):
        a, b = (interp.solve(term, x, method="rk4", steps=5) for term in (ours, theirs))
        torch.testing.assert_close(
            a.x, b.x, rtol=1e-13, atol=1e-13
        )  # the same operations but for scales
        assert a.stats.nfe == b.stats.nfe


def test_a_kernel_in_rows_with_steps_of_their_own():
    """exp(-t^2 / 2) x: the kernel is told one t a row."""
    x = torch.tensor([[1e-3, 2.0], [1.0, -1.0], [50.0, 3.0]], dtype=torch.float64)
    sol = interp.solve(Kernel(capsule(decay)), x, t=(0.0, 2.0), per_row=True, rtol=1e-9, atol=1e-9)
    assert len(sol.stats.rows.accepted.unique()) > 1
    # A step's error is below 1e-9 of the state; the fifty or so of a run do not grow.
    torch.testing.assert_close(sol.x, math.exp(-2.0) * x, rtol=5e-8, atol=5e-8)


def too_far(state, t, rows, row, x, out):
    decay(state, t, rows, row, x, out)
    out[rows * row] = 1.0
    return 0


def before(state, t, rows, row, x, out):
    decay(state, t, rows, row, x, out)
    out[-1] = 1.0
    return 0


def into_x(state, t, rows, row, x, out):
    decay(state, t, rows, row, x, out)
    x[0] = 1.0
    return 0


def failing(state, t, rows, row, x, out):
    return 17 if t > 0.4 else decay(state, t, rows, row, x, out)


@pytest.mark.parametrize(
    ("function", "word"),
    [(too_far, "outside its result"), (before, "outside its result"), (into_x, "wrote into x"),
     (failing, "error 17 at t = 0.5")],
)  # fmt: skip
def test_canaries_and_errors_of_a_kernel(function, word):
    kernel = Kernel(capsule(function), debug=True)
    with pytest.raises(FieldError, match=word):
        interp.solve(
            kernel, torch.ones(2, 3, dtype=torch.float64), t=(0.1, 0.9), method="euler", steps=2
        )


def nothing(state, t, rows, row, x, out):
    return 0


def half(state, t, rows, row, x, out):
    for i in range(rows * row // 2):
        out[i] = -t * x[i]
    return 0


@pytest.mark.parametrize("function", [nothing, half])
@pytest.mark.parametrize("rows", [{"method": "rk4", "steps": 4}, {"per_row": True}])
def test_what_a_kernel_does_not_write_is_nan(function, rows):
    kernel, x = Kernel(capsule(function), debug=True), torch.ones(4, 3, dtype=torch.float64)
    assert kernel(torch.tensor(0.5, dtype=torch.float64), x)[2:].isnan().all()
    with pytest.raises(SolveError) as caught:
        interp.solve(kernel, x, **rows)
    assert caught.value.reason == "non_finite"
    assert caught.value.time == 0.0


def test_what_is_no_kernel_is_refused():
    with pytest.raises(OptionError, match="version 2 where this engine takes version 1"):
        Kernel(capsule(decay, version=2))
    for bad in (capsule(decay, name=1), 3, capsule(decay, size=2), capsule(None)):
        with pytest.raises(OptionError):
            Kernel(bad)
    with pytest.raises(OptionError, match="no kernel"):
        Kernel.load("/nowhere/at/all.so")
    kernel = Kernel(capsule(decay, row=3))
    double = torch.ones(2, 3, dtype=torch.float64)
    for x, cond, words in (
        (double.float(), {}, "Convert x"),
        (double[:, :2], {}, "rows of 3 numbers and x has rows of 2. Give such an x"),
        (double[0, 0], {}, "Convert x"),
        (double, {"label": 1}, "no conditions, and got label. Put them"),
    ):
        with pytest.raises(FieldError, match=words):
            interp.solve(kernel, x, method="euler", steps=2, cond=cond)
    with pytest.raises(FieldError, match="one t"):
        kernel(torch.rand(2), double)


# Single steps

LIBRARY = ctypes.CDLL(rust_solvers.rust_solvers.__file__)
POINTER, DOUBLE, SIZE = ctypes.c_void_p, ctypes.c_double, ctypes.c_size_t
SUFFIX = {torch.float32: "f32", torch.float64: "f64"}


def by_c(name, dtype, *arguments):
    function = getattr(LIBRARY, f"interp_{name}_{SUFFIX[dtype]}")
    kinds = {torch.Tensor: POINTER, type(None): POINTER, int: SIZE, float: DOUBLE, POINTER: POINTER}
    function.argtypes = [kinds[type(a)] for a in arguments]
    function.restype = ctypes.c_int32
    return function(*(a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments))


@settings(deadline=None, max_examples=60)
@given(
    n=st.sampled_from([0, 1, 7, 5000, 70_000]), single=st.booleans(), bar=st.floats(0.01, 0.99),
    share=st.floats(0.0, 1.0), eta=st.sampled_from([0.0, 0.3, 1.0]), h=st.floats(-2.0, 2.0),
)  # fmt: skip
def test_steps_in_place_are_their_formulas(n, single, bar, share, eta, h):
    dtype = torch.float32 if single else torch.float64
    x, noise, z = (torch.randn(n, dtype=dtype) for _ in range(3))
    later = bar + (1 - bar) * share
    clean = (x - (1 - bar) ** 0.5 * noise) / bar**0.5
    s2 = eta**2 * (1 - later) / (1 - bar) * (1 - bar / later)
    expected = later**0.5 * clean + max(1 - later - s2, 0.0) ** 0.5 * noise + s2**0.5 * z
    # The formula divides by sqrt(bar): one over it times the rounding.
    near = {"rtol": 0.0, "atol": 100 * torch.finfo(dtype).eps}
    ours, theirs = x.clone(), x.clone()
    version = ours._version
    assert ddpm_step(ours, noise, bar, later, z, eta=eta) is ours
    assert ours._version > version
    assert by_c("ddpm_step", dtype, theirs, noise, z, n, bar, later, eta) == 0
    torch.testing.assert_close(ours, expected, **near)
    assert torch.equal(ours, theirs)
    ours, theirs = x.clone(), x.clone()
    flow_matching_step(ours, noise, h)
    assert by_c("flow_matching_step", dtype, theirs, noise, n, h) == 0
    torch.testing.assert_close(ours, x + h * noise, **near)
    assert torch.equal(ours, theirs)


def test_a_sampler_of_ddpm_steps_is_the_solver_of_ddim():
    """Without noise the steps are DDIM's: Euler in (x / sqrt(bar), sqrt(1 / bar - 1))."""
    bars = torch.linspace(0.02, 0.99, 9, dtype=torch.float64).tolist()
    x = torch.randn(4, 3, dtype=torch.float64)
    y, expected = x.clone(), x.clone()
    for bar, later in itertools.pairwise(bars):
        ddpm_step(y, torch.sin(y), bar, later, eta=0.0)
        rate = ((1 - later) / later) ** 0.5 - ((1 - bar) / bar) ** 0.5
        expected = later**0.5 * (expected / bar**0.5 + rate * torch.sin(expected))
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


def decoder():
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Linear(4, 32), nn.SiLU(), nn.Unflatten(1, (8, 2, 2)), nn.ConvTranspose2d(8, 1, 4, 2, 1)
    )
    return body.double().requires_grad_(False)


def test_latents_are_decoded_into_a_tensor():
    body, z = decoder(), torch.randn(5, 4, dtype=torch.float64)
    ours = Decoder(body, z, scale=0.2, shift=0.1)
    expected = body(z / 0.2 + 0.1).clamp(-1, 1)
    assert expected.abs().max() == 1
    assert expected.abs().min() < 1
    near = {"rtol": 0.0, "atol": 1e-12}  # float64, numbers of order 10
    torch.testing.assert_close(ours(z), expected, **near)
    out = torch.empty(5, 1, 4, 4, dtype=torch.float64)
    assert vae_decode(out, z, ours) is out
    torch.testing.assert_close(out, expected, **near)
    out.zero_()
    handle = POINTER(ours.handle)
    assert by_c("vae_decode", torch.float64, handle, z, out, 5, 0.2, 0.1) == 0
    torch.testing.assert_close(out, expected, **near)
    body[0].weight.mul_(0.5)  # shared, not copied
    torch.testing.assert_close(ours(z), body(z / 0.2 + 0.1).clamp(-1, 1), **near)


def test_bad_steps_are_refused():
    x = torch.randn(6)
    v = torch.randn(6)
    for step in (
        lambda: ddpm_step(x, v, 0.5, 0.4, v),
        lambda: ddpm_step(x, v, 0.0, 0.4, v),
        lambda: ddpm_step(x, v, 0.4, 0.5),
        lambda: ddpm_step(x, v, 0.4, 0.5, v, eta=2.0),
        lambda: flow_matching_step(x, v, float("nan")),
        lambda: flow_matching_step(x, x, 0.1),
        lambda: flow_matching_step(x[:4], x[2:], 0.1),
        lambda: flow_matching_step(x.half(), v.half(), 0.1),
        lambda: flow_matching_step(x.requires_grad_(), v, 0.1),
        lambda: Decoder(decoder(), torch.randn(2, 4, dtype=torch.float64))(
            torch.randn(2, 5).double()
        ),
    ):
        with pytest.raises(OptionError):
            step()
    x = torch.randn(6)
    for step in (
        lambda: flow_matching_step(x, v[:5], 0.1),
        lambda: flow_matching_step(x, v.double(), 0.1),
        lambda: flow_matching_step(torch.randn(6, 6)[:, 0], v, 0.1),
    ):
        with pytest.raises(FieldError):
            step()
    with pytest.raises(Uncompilable):
        Decoder(lambda z: z.cumsum(1), torch.randn(2, 4))
    f32, empty = torch.float32, POINTER(None)
    assert by_c("flow_matching_step", f32, None, v, 6, 0.1) == 1
    assert by_c("flow_matching_step", f32, x, v, 6, float("inf")) == 2
    assert by_c("flow_matching_step", f32, x, x, 6, 0.1) == 4
    assert by_c("ddpm_step", f32, x, v, None, 6, 0.4, 0.5, 1.0) == 1
    assert by_c("ddpm_step", f32, x, v, None, 6, 0.5, 0.4, 1.0) == 2
    assert by_c("vae_decode", f32, empty, x, v, 1, 1.0, 0.0) == 1
    ours = Decoder(decoder(), torch.randn(2, 4, dtype=torch.float64))
    assert by_c("vae_decode", f32, POINTER(ours.handle), x, v, 1, 1.0, 0.0) == 3
    assert (
        by_c(
            "vae_decode",
            torch.float64,
            POINTER(x.data_ptr() // 8 * 8),
            x.double(),
            v.double(),
            1,
            1.0,
            0.0,
        )
        == 3
    )
