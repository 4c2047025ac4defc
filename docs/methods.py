"""Write docs/methods.md: every method of `interp.solve`, and the test that shows its order.

python docs/methods.py
"""

from __future__ import annotations

from pathlib import Path

import interp
from interp.solvers.catalogue import Method

TESTS = {
    "ode": "tests/solvers/test_orders.py::test_observed_order",
    "multistep": "tests/solvers/test_adams_bashforth.py::test_observed_order_on_uneven_steps",
    "path": "tests/solvers/test_samplers.py::test_observed_order_on_a_gaussian_and_on_a_mixture",
    "noisy": "tests/solvers/test_samplers_sde.py::test_weak_order_on_a_gaussian",
    "pc": "tests/solvers/test_bias.py::test_more_steps_leave_less",
    "reversible_heun": "tests/solvers/test_sde_methods.py::test_strong_order_of_additive_noise",
    "sde": "tests/solvers/test_sde_methods.py::test_weak_order",
    "map": "tests/test_flow_map.py::test_one_step_of_the_map_of_a_mixture_is_its_flow_solved",
    "annealed": "tests/solvers/test_chains.py::test_annealed_levels_end_at_the_smallest",
    "chain": "tests/solvers/test_chains.py::test_stationary_variance_of_a_harmonic_well",
}
HEAD = """# Methods

Made by `python docs/methods.py`. The order is that of an ODE's error at the end, of an SDE the weak one; a
map is exact at any steps (0). The last column is the test that shows it; of a chain, the test of its law,
and of `pc`, whose corrections have steps of their own, of its bias.

| method | kind | order | own steps | backends | terms | shown by |
|---|---|---|---|---|---|---|
"""


def shown_by(method: Method) -> str:
    """The test of its order."""
    if method.kind == "path" and method.noisy:
        return TESTS.get(method.name, TESTS["noisy"])
    if method.kind == "ode" and method.tableau is None:
        return TESTS["multistep"]
    return TESTS.get(method.name, TESTS[method.kind])


def page() -> str:
    """The whole page."""
    rows = [
        f"| {m.name} | {m.kind} | {m.order} | {'yes' if m.adaptive else 'no'} | "
        f"{', '.join(n for n in m.backends if n in m.own)} | {', '.join(m.terms)} | `{shown_by(m)}` |"
        for m in interp.methods()
    ]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    Path(__file__).with_suffix(".md").write_text(page())
