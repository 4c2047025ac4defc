"""Samplers of a diffusion model beside the peers: what a run costs beyond its network, and how far it is
from the probability flow after so many evaluations.

    python benchmarks/samplers.py [overhead] [mixtures] [digits] [--repeats 15] [--network FILE]

overhead: 50 steps from one batch, an MLP with noise prediction in float32 (untrained weights), 256x784
and 1x784. Engines take turns; each figure is a median of (wall - network) / network. Everything that one
sample needs is inside: the coefficients here, ``set_timesteps`` there. `loop` is Euler's method by hand.

mixtures: the root mean square distance of the ends from
those of the exact flow (dop853 at 1e-12, of the same start), over evaluations. The network is the exact
noise estimate of 2-d mixtures on the table of DDPM (Ho et al. 2020), so that nothing but the sampler errs.
Peers run in float64 from the last index, on each of their grids; ours on the same
timesteps, and on two grids of our own (log_snr, karras); "last 2" has a last step of second order.
"exponential" and "lu" are their names for steps
that are even in log-SNR.

digits: the same for an MLP trained for some seconds on handwritten digits, against its own flow.

k-diffusion runs without its __init__, which imports a dozen packages that its samplers do not need.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import math
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from report import interleaved, median, seconds, without_init, write
from torch import Tensor

import interp
from interp import exact, schedules

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import diffusers

F64 = torch.float64
N, SEED, STEPS = 1000, 0, 50
PACKAGES = ("interp", "torch", "diffusers", "k-diffusion", "azula", "numpy")
BUDGETS = (5, 8, 10, 15, 20, 30, 50, 100)
FIGURE = Path(__file__).parent.parent / "docs" / "accuracy_for_work.png"

Network = Callable[[Tensor, Tensor], Tensor]
"""noise = network(index, x)"""


def betas() -> Tensor:
    """The betas of DDPM, float64."""
    return torch.linspace(1e-4, 0.02, N, dtype=F64)


PATH = schedules.from_betas(betas())


# What a run costs beyond its network


class MLP(torch.nn.Module):
    """Four layers on (x, features of the index)."""

    def __init__(self, features: int, width: int = 512) -> None:
        super().__init__()
        self.register_buffer("w", 10.0 ** torch.linspace(-3, 0, 16))
        self.net = torch.nn.Sequential(
            torch.nn.Linear(features + 32, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, width),
            torch.nn.SiLU(),
            torch.nn.Linear(width, features),
        )

    def forward(self, index: Tensor, x: Tensor) -> Tensor:
        angle = index.to(x.dtype).reshape(-1, 1) * self.w.to(x.dtype)
        told = torch.cat([angle.sin(), angle.cos()], dim=1).expand(len(x), -1)
        return self.net(torch.cat([x, told], dim=1))


class Timed:
    """A network that counts and times its own calls, the same for every engine."""

    def __init__(self, network: Network) -> None:
        self.network, self.seconds, self.calls = network, 0.0, 0

    def __call__(self, index: Tensor, x: Tensor) -> Tensor:
        start = time.perf_counter()
        result = self.network(index, x)
        self.seconds += time.perf_counter() - start
        self.calls += 1
        return result


Run = Callable[[Network, Tensor, int], Tensor]
"""The end of a run of so many steps from a state at the last index."""


def trailing(steps: int) -> list[int]:
    """Indices n - 1, n - 1 - n / steps, ..."""
    return [round(N - k * N / steps) - 1 for k in range(steps)]


def ours(method: str, grid: str = "trailing", **options: object) -> Run:
    """One of our samplers, on trailing timesteps or on a grid of ours with as many steps."""

    def run(network: Network, x: Tensor, steps: int) -> Tensor:
        term = PATH.ode(network, view="noise", time=("index", N))
        if grid == "trailing":
            given = {"grid": ("timesteps", trailing(steps))}
        else:
            given = {"grid": grid, "steps": steps, "t": (PATH_START, 1.0)}
        return interp.solve(term, x, method=method, **given, **options).x

    return run


PATH_START = 0.0
"""The time of the last index."""


def theirs(name: str, **config: object) -> Run:
    """A scheduler of diffusers, on trailing timesteps where it has a choice."""
    kind = getattr(diffusers, name)
    if "timestep_spacing" in inspect.signature(kind.__init__).parameters:
        config = {"timestep_spacing": "trailing", **config}
    # Their own defaults are two different tables.
    scheduler = kind(**{"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", **config})

    def run(network: Network, x: Tensor, steps: int) -> Tensor:
        scheduler.set_timesteps(steps)
        x = x * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            noise = network(t, scheduler.scale_model_input(x, t))
            x = scheduler.step(noise, t, x, return_dict=False)[0]
        return x

    return run


def by_azula(sampler: str) -> Run | None:
    """azula's, on its own VP schedule: its network is told what it wants to be told."""
    try:
        import azula.denoise
        import azula.noise
        import azula.sample
    except ImportError:
        return None
    kind = getattr(azula.sample, sampler)

    def run(network: Network, x: Tensor, steps: int) -> Tensor:
        class Backbone(torch.nn.Module):
            def forward(self, x: Tensor, t: Tensor) -> Tensor:
                return network(t, x)

        denoiser = azula.denoise.KarrasDenoiser(Backbone(), azula.noise.VPSchedule())
        return kind(denoiser, steps=steps, silent=True)(x)

    return run


def by_k(sampler: str, grid: str = "exponential", **options: object) -> Run | None:
    """k-diffusion's, in x / beta and sigma / beta, on the table of the same betas."""
    try:
        sampling, external = without_init("k_diffusion", "sampling", "external")
    except ImportError:
        return None
    kind = getattr(sampling, f"sample_{sampler}")
    abar = (1 - betas()).cumprod(0)

    def run(network: Network, x: Tensor, steps: int) -> Tensor:
        denoiser = external.DiscreteEpsDDPMDenoiser(
            lambda x, t: network(t, x), abar, quantize=False
        )
        low, high = float(denoiser.sigma_min), float(denoiser.sigma_max)
        if grid == "linspace":
            sigmas = denoiser.get_sigmas(steps)
        else:
            sigmas = getattr(sampling, f"get_sigmas_{grid}")(steps, low, high)
        start = x * (1 + high**2) ** 0.5  # x / beta at the last index
        denoiser.to(x.dtype)
        return kind(denoiser, start, sigmas.to(x.dtype), disable=True, **options)

    return run


def loop(network: Network, x: Tensor, steps: int) -> Tensor:
    """Euler's method, as one would write it."""
    times = [k / steps for k in range(steps + 1)]
    for t, end in itertools.pairwise(times):
        x = x + (end - t) * network(torch.tensor(t), x)
    return x


CLIP = {"clip_sample": False}
ENGINES: dict[str, dict[str, Run | None]] = {
    "ddim": {
        "interp": ours("ddim"),
        "diffusers": theirs("DDIMScheduler", **CLIP),
        "k-diffusion": by_k("euler"),
        "azula": by_azula("DDIMSampler"),
        "loop": loop,
    },
    "dpm++2m": {
        "interp": ours("dpm++2m"),
        "diffusers": theirs("DPMSolverMultistepScheduler"),
        "k-diffusion": by_k("dpmpp_2m"),
        "azula": by_azula("xEABSampler"),
        "loop": loop,
    },
    "unipc": {
        "interp": ours("unipc"),
        "diffusers": theirs("UniPCMultistepScheduler"),
        "loop": loop,
    },
}


@torch.no_grad()
def overhead(repeats: int) -> dict[str, object]:
    """The share of each engine, by size and sampler."""
    found: dict[str, object] = {}
    for rows in (256, 1):
        torch.manual_seed(SEED)
        network, x = MLP(784).eval(), torch.randn(rows, 784)

        def once(run: Run, network: MLP = network, x: Tensor = x) -> dict[str, float]:
            timed = Timed(network)
            wall = seconds(lambda: run(timed, x, STEPS))
            return {"wall": wall, "network": timed.seconds, "calls": timed.calls}

        for sampler, engines in ENGINES.items():
            runs = {n: (lambda r=r: once(r)) for n, r in engines.items() if r is not None}
            collected = interleaved(runs, repeats)
            found[f"{rows}x784 {sampler}"] = {
                name: {
                    "overhead": median([v["wall"] / v["network"] - 1 for v in values]),
                    "wall_ms": 1e3 * median([v["wall"] for v in values]),
                    "network_ms": 1e3 * median([v["network"] for v in values]),
                    "calls": values[0]["calls"],
                }
                for name, values in collected.items()
            }
    return found


def overhead_table(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    names = ("interp", "loop", "diffusers", "k-diffusion", "azula")
    lines = ["| 50 steps | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
    for what, row in found.items():
        cells = [f"{100 * row[n]['overhead']:.1f} %" if n in row else "" for n in names]
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


# Accuracy for work

KARRAS, EVEN = {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}
PEERS: dict[str, Run | None] = {
    "DDIM": theirs("DDIMScheduler", **CLIP),
    "PNDM": theirs("PNDMScheduler", skip_prk_steps=True),
    "Heun": theirs("HeunDiscreteScheduler"),
    "Heun karras": theirs("HeunDiscreteScheduler", **KARRAS),
    "Heun exponential": theirs("HeunDiscreteScheduler", **EVEN),
    "DEIS": theirs("DEISMultistepScheduler"),
    "DEIS karras": theirs("DEISMultistepScheduler", **KARRAS),
    "DEIS-3 exponential": theirs("DEISMultistepScheduler", solver_order=3, **EVEN),
    "DPM++2S": theirs("DPMSolverSinglestepScheduler", lower_order_final=True),
    "DPM++2M": theirs("DPMSolverMultistepScheduler"),
    "DPM++2M karras": theirs("DPMSolverMultistepScheduler", **KARRAS),
    "DPM++2M exponential": theirs("DPMSolverMultistepScheduler", **EVEN),
    "DPM++2M lu": theirs("DPMSolverMultistepScheduler", use_lu_lambdas=True),
    "DPM++3M lu": theirs("DPMSolverMultistepScheduler", solver_order=3, use_lu_lambdas=True),
    "DPM++3M": theirs("DPMSolverMultistepScheduler", solver_order=3),
    "DPM++3M karras": theirs("DPMSolverMultistepScheduler", solver_order=3, **KARRAS),
    "UniPC": theirs("UniPCMultistepScheduler"),
    "UniPC exponential": theirs("UniPCMultistepScheduler", **EVEN),
    "UniPC-3 exponential": theirs("UniPCMultistepScheduler", solver_order=3, **EVEN),
    "UniPC karras": theirs("UniPCMultistepScheduler", **KARRAS),
    "UniPC-3": theirs("UniPCMultistepScheduler", solver_order=3),
    "UniPC-3 karras": theirs("UniPCMultistepScheduler", solver_order=3, **KARRAS),
    "k Heun karras": by_k("heun", "karras"),
    "k DPM-2 karras": by_k("dpm_2", "karras"),
    "k LMS": by_k("lms", "linspace"),
    "k LMS karras": by_k("lms", "karras"),
    "k LMS exponential": by_k("lms"),
    "k DPM++2M": by_k("dpmpp_2m", "linspace"),
    "k DPM++2M karras": by_k("dpmpp_2m", "karras"),
    "k DPM++2M exponential": by_k("dpmpp_2m"),
    "k DPM++3M karras": by_k("dpmpp_3m_sde", "karras", eta=0.0),
    "k DPM++3M exponential": by_k("dpmpp_3m_sde", eta=0.0),
}
METHODS: dict[str, tuple[str, dict[str, object]]] = {
    "ddim": ("ddim", {}),
    "dpm++2m": ("dpm++2m", {}),
    "dpm++3m": ("dpm++3m", {}),
    "unipc": ("unipc", {}),
    "unipc-3": ("unipc", {"order": 3}),
    "deis-2": ("deis", {"order": 2}),
    "deis-3": ("deis", {"order": 3}),
    "edm_heun": ("edm_heun", {}),
    "dpm++3s": ("dpm++3s", {}),
    "unipc, last 2": ("unipc", {"last_order": 2}),
    "unipc-3, last 2": ("unipc", {"order": 3, "last_order": 2}),
    "dpm++3m, last 2": ("dpm++3m", {"last_order": 2}),
    "deis-3, falling": ("deis", {"order": 3, "lower_order_final": True}),
    "dpm++3m, falling": ("dpm++3m", {"lower_order_final": True}),
    "deis-3, last 2": ("deis", {"order": 3, "last_order": 2}),
}
GRIDS = ("trailing", "log_snr", "karras")
OURS = {
    f"{name}, {grid}": ours(method, grid, **options)
    for name, (method, options) in METHODS.items()
    for grid in GRIDS
}


class Counted:
    """A network that counts its calls."""

    def __init__(self, network: Network) -> None:
        self.network, self.calls = network, 0

    def __call__(self, index: Tensor, x: Tensor) -> Tensor:
        self.calls += 1
        return self.network(index, x)


@torch.no_grad()
def curve(run: Run, network: Network, x: Tensor, truth: Tensor) -> dict[int, float]:
    """The error by evaluations: of the most steps that stay within each budget."""

    def ended(steps: int, x: Tensor) -> tuple[Tensor, int]:
        counted = Counted(network)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run(counted, x, steps), counted.calls

    # So many evaluations a step, and some at the ends.
    (_, few), (_, more) = (ended(steps, x[:1]) for steps in (8, 10))
    slope = (more - few) / 2
    found: dict[int, float] = {}
    for budget in BUDGETS:
        steps = int((budget - few + 8 * slope) / slope)
        end, calls = ended(max(steps, 2), x)
        error = float((end - truth).square().mean().sqrt())
        if calls <= budget:
            found[budget] = error if math.isfinite(error) else math.inf
    return found


def at_index(index: Tensor) -> Tensor:
    """The time of an index of the table, between two nodes as well."""
    return 1 - (index.to(F64) + 1) / N


def mixture(seed: int, components: int = 5, dim: int = 2) -> exact.Mixture:
    """Unit variance or so, of components 0.1 to 0.4 wide."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.rand(components, generator=g, dtype=F64) + 0.3
    means = torch.randn(components, dim, generator=g, dtype=F64)
    widths = 0.1 * 4 ** torch.rand(components, generator=g, dtype=F64)
    return exact.Mixture(weights / weights.sum(), list(means), [float(w) ** 2 for w in widths])


def flow_end(target: exact.Mixture, x: Tensor) -> Tensor:
    """Where the flow takes x from the last index: in (x / beta, sigma / beta) it knows no schedule."""
    k = PATH.coefficients(PATH_START)
    most = float(k.sigma / k.beta)
    straight = interp.Interpolant(lambda t: most * (1 - t), lambda t: torch.ones_like(t))
    term = straight.ode(target.velocity(straight))
    tight = {"rtol": 1e-12, "atol": 1e-12, "method": "dop853"}
    return interp.solve(term, x / float(k.beta), **tight).x


def mixtures(many: int = 3, rows: int = 64) -> tuple[dict[str, object], dict[str, object]]:
    """Our curves and theirs, the geometric means over some mixtures."""
    parts = []
    for seed in range(many):
        target = mixture(seed)
        noise = target.noise(PATH)
        x = torch.randn(rows, 2, dtype=F64, generator=torch.Generator().manual_seed(seed))
        network = lambda index, x, noise=noise: noise(at_index(index), x)  # noqa: E731
        parts.append(compared(network, x, flow_end(target, x)))
    mean = [
        {
            name: {b: math.exp(sum(math.log(p[i][name][b]) for p in parts) / many) for b in row}
            for name, row in parts[0][i].items()
        }
        for i in (0, 1)
    ]
    return mean[0], mean[1]


def compared(network: Network, x: Tensor, truth: Tensor) -> tuple[dict[str, object], ...]:
    """All curves of a network from x."""
    return tuple(
        {name: curve(run, network, x, truth) for name, run in runs.items() if run is not None}
        for runs in (OURS, PEERS)
    )


def trained(file: Path | None, steps: int = 3000) -> MLP:
    """A network of noise on 8x8 digits, read from a file or trained for some seconds."""
    from sklearn.datasets import load_digits

    torch.manual_seed(SEED)
    network = MLP(64, 256)
    if file is not None and file.exists():
        network.load_state_dict(torch.load(file, weights_only=True))
        return network.eval()
    data = torch.tensor(load_digits().data, dtype=torch.float32) / 8 - 1
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    abar = (1 - betas()).cumprod(0)
    for _ in range(steps):
        index = torch.randint(N, (256,))
        z, a = torch.randn(256, 64), abar[index, None]
        x = (a.sqrt() * data[torch.randint(len(data), (256,))] + (1 - a).sqrt() * z).float()
        loss = (network(index, x) - z).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    if file is not None:
        torch.save(network.state_dict(), file)
    return network.eval()


def digits(file: Path | None, rows: int = 64) -> tuple[dict[str, object], ...]:
    """The curves of a trained network."""
    network = trained(file).double().requires_grad_(False)
    x = torch.randn(rows, 64, dtype=F64, generator=torch.Generator().manual_seed(SEED))
    term = PATH.ode(network, view="noise", time=("index", N))
    nodes = [*(k / N for k in range(N)), 1.0]
    # Its noise is a function of the index, whose law between two nodes has a kink at each: rk4 on all.
    truth = interp.solve(term, x, method="rk4", grid=nodes).x
    return compared(network, x, truth)


def best(curves: Mapping[str, Mapping[int, float]], budget: int) -> tuple[str, float]:
    name = min((n for n in curves if budget in curves[n]), key=lambda n: curves[n][budget])
    return name, curves[name][budget]


def accuracy_table(
    mine: Mapping[str, Mapping[int, float]], peers: Mapping[str, Mapping[int, float]]
) -> str:
    """The best of ours and of theirs for each number of evaluations, and the pairs on one grid."""
    lines = [
        "| evaluations | ours | error | peers' | error | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for b in BUDGETS:
        (a, e), (p, f) = best(mine, b), best(peers, b)
        lines.append(f"| {b} | {a} | {e:.2e} | {p} | {f:.2e} | {f / e:.2f} |")
    return "\n".join(lines)


def picture(parts: Mapping[str, tuple[Mapping[str, Mapping[int, float]], ...]]) -> None:
    """Every curve: theirs grey, ours on our grids, and the best of each."""
    from interp.plot import style

    figure, axes = style.figure(1, len(parts), (4.8 * len(parts), 3.8))
    for ax, (what, (mine, peers)) in zip(axes, parts.items(), strict=True):
        for curves, colour in ((peers, "0.75"), (mine, "#9ecae1")):
            for values in curves.values():
                ax.plot(list(values), list(values.values()), color=colour, lw=0.8)
        named = ((peers, "0.25", "best of the peers"), (mine, "#08519c", "best of interp"))
        for curves, colour, name in named:
            ax.plot(BUDGETS, [best(curves, b)[1] for b in BUDGETS], color=colour, lw=2, label=name)
        ax.set(xscale="log", yscale="log")
        style.name_axes(ax, "evaluations", title=what)
        ax.set_xticks(BUDGETS, [str(b) for b in BUDGETS])
        ax.minorticks_off()
    axes[0].set_ylabel("distance from the end of the flow")
    axes[0].legend(frameon=False)
    style.finish(figure, FIGURE, colours=96)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sections = ("overhead", "mixtures", "digits")
    parser.add_argument("sections", nargs="*", default=list(sections), metavar="SECTION")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--network", type=Path, help="where the digits network is kept")
    args = parser.parse_args()
    if "overhead" in args.sections:
        found = overhead(args.repeats)
        print(overhead_table(found))
        table = overhead_table(found)
        print("written to", write("samplers_overhead", PACKAGES, SEED, rows=found, table=table))
    parts = {}
    if "mixtures" in args.sections:
        parts["exact mixtures"] = mixtures()
    if "digits" in args.sections:
        parts["a network of digits"] = digits(args.network)
    for what, (mine, peers) in parts.items():
        print(f"\n{what}\n{accuracy_table(mine, peers)}")
    if parts:
        tables = {what: accuracy_table(*curves) for what, curves in parts.items()}
        content = {what: {"interp": c[0], "peers": c[1]} for what, c in parts.items()}
        print(
            "written to", write("samplers_accuracy", PACKAGES, SEED, errors=content, tables=tables)
        )
        picture(parts)


if __name__ == "__main__":
    main()
