"""The claim of benchmarks/stability.py, at any time: float32 within 4 times what rounding costs."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from types import ModuleType

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interp.views import VIEWS

HALF_ULP, TINY = 2.0**-24, 2.0**-149  # of float32: relative, and the least number
DISTANCE = st.floats(-6.0, math.log10(0.5)).map(lambda e: 10**e)


def _load() -> ModuleType:
    path = Path(__file__).parent.parent / "benchmarks" / "stability.py"
    if not path.exists():
        pytest.skip("the benchmarks are not here", allow_module_level=True)
    spec = importlib.util.spec_from_file_location("stability", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


stability = _load()


@settings(deadline=None, max_examples=300)
@given(
    path=st.sampled_from(sorted(stability.PATHS)),
    t=DISTANCE | DISTANCE.map(lambda u: 1 - u),
    source=st.sampled_from(VIEWS),
    target=st.sampled_from(VIEWS),
    z=st.lists(st.floats(0.01, 3.0), min_size=1, max_size=4),
    per_row=st.booleans(),
)
def test_float32_stays_within_four_times_the_unavoidable(
    path: str, t: float, source: str, target: str, z: list[float], per_row: bool
) -> None:
    """Rounding x and the value by half a unit each, and the result once, is the floor."""
    with mp.workdps(stability.DIGITS):
        exact = stability.Exact(stability.DEFINITIONS[path], t)
        points = exact.points(torch.tensor(z, dtype=torch.float64))
        values, truth = exact.view(source, points), exact.view(target, points)
        p, q = (mp.mpf(0), mp.mpf(1)) if source == target else exact.shares(source, target)
        times = torch.full((len(z),), t, dtype=torch.float64) if per_row else t
        x, value = stability.rounded(points), stability.rounded(values)
        found = stability.PATHS[path].convert(value, source, target, x, times)
        assert found.dtype is torch.float32
        for f, u, v, T in zip(found.tolist(), points, values, truth, strict=True):
            floor = HALF_ULP * (abs(p * u) + abs(q * v) + abs(T))
            assert abs(f - T) <= 4 * floor + TINY


def test_the_table_is_made() -> None:
    """One path of the benchmark, two points: every pair of views has a floor and our figure."""
    z = torch.tensor([0.3, -1.2], dtype=torch.float64)
    row = stability.measure(
        "VP", stability.TIMES[-1], "noise", "velocity", z, {"interp": stability.ours("VP")}
    )
    assert 0 < row["floor"] < 1e-6
    assert row["interp"] < 1e-6
    listed = [
        {"path": "VP", "t": stability.TIMES[-1], "source": "noise", "target": "velocity", **row}
    ]
    assert "| VP | 1 - 1e-06 | noise | velocity |" in stability.table(listed, everything=False)
    assert stability.summary(listed)["interp"]["error"] == row["interp"]
