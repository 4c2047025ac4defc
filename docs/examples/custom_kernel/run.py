"""Solve with the kernel of this crate, and compare with the flow's closed form.

cargo build --release --manifest-path docs/examples/custom_kernel/Cargo.toml
python docs/examples/custom_kernel/run.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

import interp
from interp import schedules

NAMES = {
    "linux": "libcustom_kernel.so",
    "darwin": "libcustom_kernel.dylib",
    "win32": "custom_kernel.dll",
}


def main() -> None:
    """x1 = mean + deviation x0 is where the flow takes x0."""
    library = Path(__file__).parent / "target" / "release" / NAMES[sys.platform]
    kernel = interp.native.Kernel.load(library, debug=True)
    x = torch.randn(1000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = 2.0 + 0.5 * x
    for term in (kernel, schedules.linear().ode(kernel)):
        sol = interp.solve(term, x, method="dopri5", rtol=1e-8, atol=1e-8)
        error = float((sol.x - exact).abs().max())
        print(f"{type(term).__name__}: {sol.stats.nfe} evaluations, largest error {error:.1e}")
        if error > 1e-6:
            raise SystemExit("the kernel's flow is not the closed form")


if __name__ == "__main__":
    main()
