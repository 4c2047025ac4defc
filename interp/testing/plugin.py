"""What pytest loads of interp: a marker that runs one test for every family there is.

    @pytest.mark.families("loss", "sample")              # those that have these verbs; none: all
    def test_it_trains(family): ...                      # family is create(name, shape=(2,))

    @pytest.mark.families("sample", shape=(1, 8, 8), classes=10)

A family that is installed or registered later is run from then on. Further keywords are options of the
family; a family that does not know one of them is skipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from interp.families import Family

# Nothing of interp is imported before it is asked for: this module is, in every run of pytest.


def pytest_configure(config: pytest.Config) -> None:
    """Make the marker known."""
    config.addinivalue_line(
        "markers",
        "families(*verbs, shape=(2,), **options): run the test for each family with these verbs, "
        "given as the argument `family`.",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a family."""
    marker = metafunc.definition.get_closest_marker("families")
    if marker is None or "family" not in metafunc.fixturenames:
        return
    from interp import families

    having = [set(families.having(verb)) for verb in marker.args]
    names = [n for n in families.available() if all(n in one for one in having)]
    metafunc.parametrize("family", names, indirect=True)


@pytest.fixture
def family(request: pytest.FixtureRequest) -> Family:
    """The family that the marker ``families`` runs the test for."""
    from interp import families

    name = getattr(request, "param", None)
    marker = request.node.get_closest_marker("families")
    if name is None or marker is None:
        raise pytest.UsageError(
            "the fixture `family` is given by the marker. Write @pytest.mark.families() over the test."
        )
    options: dict[str, Any] = {"shape": (2,), **marker.kwargs}
    known = families.options(families.load(name))
    unknown = [] if known is None else sorted(options.keys() - {*known, "shape", "network"})
    if unknown:
        pytest.skip(f"{name} has no option {', '.join(unknown)}")
    return families.create(name, **options)
