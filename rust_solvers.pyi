"""The integration engine of interp: what crosses the border, and in which types."""

from collections.abc import Sequence

from torch import Tensor

from interp.noise import BrownianPath
from interp.solvers.problem import Adaptive, Chain, ChainReport, NoiseKey, Problem, Report
from interp.solvers.programme import Programme
from interp.solvers.stochastic_tableaus import Scheme
from interp.solvers.tableaus import Numbers

def finite(x: Tensor) -> bool | None:
    """Whether a tensor holds neither NaN nor infinity; None where it does not lie dense on the cpu."""

def runge_kutta(
    problem: Problem,
    tableau: Numbers,
    grid: list[float] | None = None,
    adaptive: Adaptive | None = None,
) -> Report:
    """Integrate by an explicit Runge-Kutta method, on a grid or adaptively."""

def runge_kutta_rows(problem: Problem, tableau: Numbers, adaptive: Adaptive) -> Report:
    """Integrate each row by an explicit Runge-Kutta method with steps of its own."""

def recurrence(problem: Problem, programme: Programme, noise: NoiseKey | None = None) -> Report:
    """Run a programme on a fixed grid."""

def stochastic(
    problem: Problem,
    scheme: Scheme,
    shared: bool,
    noise: NoiseKey,
    grid: list[float] | None = None,
    adaptive: Adaptive | None = None,
) -> Report:
    """Integrate by a stochastic scheme, on a grid or adaptively."""

def reversible_heun(problem: Problem, shared: bool, noise: NoiseKey, grid: list[float]) -> Report:
    """Integrate by the reversible Heun method on a grid."""

def chain(chain: Chain) -> ChainReport:
    """Run a chain on an energy."""

def philox(counter: list[int], key: list[int]) -> list[int]:
    """One block of Philox 4x32-10: four words from a counter of four and a key of two."""

def normals(out: Tensor, row: int, first_row: int, key: list[int], node: int) -> None:
    """Fill a float32 tensor of rows of length ``row`` with the normals of a node."""

def brownian(
    w: Tensor, integral: Tensor, times: Sequence[float], row: int, noise: BrownianPath
) -> None:
    """Fill W and (unless it is empty) its integral at each time, float64."""

class Network:
    """A network as a program of the engine."""

    def __init__(
        self,
        values: list[tuple[str, bool, list[int]]],
        steps: list[
            tuple[
                str,
                tuple[int, int, list[int], list[int]],
                list[tuple[int, int, list[int], list[int]]],
                list[int],
                list[float],
            ]
        ],
        result: tuple[int, int, list[int], list[int]],
    ) -> None: ...
    def call(
        self, out: Tensor, weights: list[Tensor], inputs: list[Tensor], threads: int | None = None
    ) -> None:
        """Write the field at (t, x, conditions) into ``out``."""

    @property
    def work(self) -> int:
        """What a row costs, in elements of a pass that only multiplies."""

class UserKernel:
    """A user's field, called by the engine."""

    def __init__(self, capsule: object, debug: bool) -> None: ...
    @property
    def layout(self) -> tuple[int, int]:
        """The bytes of a number, and the numbers of a row (0 for any)."""

    def call(self, out: Tensor, t: float, x: Tensor) -> None:
        """Write the field at t and x into ``out``."""

class Decoder:
    """A decoder that C can call."""

    def __init__(self, network: Network, weights: list[Tensor]) -> None: ...
    @property
    def handle(self) -> int:
        """The address by which C knows it."""

    def decode(self, out: Tensor, z: Tensor, scale: float, shift: float) -> None:
        """Write clamp(decode(z / scale + shift), -1, 1) into ``out``."""

def ddpm_step(
    x: Tensor, noise: Tensor, alpha_bar: float, alpha_bar_next: float, z: Tensor | None = None,
    eta: float = 1.0,
) -> None:  # fmt: skip
    """One step of DDPM in place."""

def flow_matching_step(x: Tensor, velocity: Tensor, h: float) -> None:
    """One Euler step of a flow in place."""
