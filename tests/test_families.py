"""The registry: what is there, what is not, and whose fault it is."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from typing import ClassVar

import pytest

import adapters
from interp import families
from interp.errors import InterpError, OptionError, UnknownName


class Fake:
    """The least that a registry asks of a family."""

    verbs: ClassVar = {"sample": "exact"}

    def __init__(self, shape, network=None, size=1):
        self.name, self.shape, self.size = "fake", shape, size


@pytest.fixture(autouse=True)
def empty(monkeypatch):
    monkeypatch.setattr(families, "_registered", {})


class Installed:
    """A distribution with entry points, as importlib.metadata shows them."""

    def __init__(self, name):
        self.name = name


def install(monkeypatch, *points):
    made = []
    for name, value, owner in points:
        point = EntryPoint(name, value, families.GROUP)
        vars(point)["dist"] = Installed(owner)
        made.append(point)
    monkeypatch.setattr(
        families, "entry_points", lambda group: made if group == families.GROUP else []
    )


def test_ours_come_by_entry_point_like_everybody_elses():
    assert "flow_matching" in adapters.available()
    family = adapters.create("flow_matching", shape=(3,), width=8)
    assert (family.name, family.shape) == ("flow_matching", (3,))


def test_the_core_never_imports_the_families_by_itself():
    code = (
        "import sys, interp, interp.families, interp.likelihood, interp.training, interp.cli;"
        "sys.exit(any(m.partition('.')[0] == 'adapters' for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_help_needs_no_torch():
    code = "import sys, interp.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_registered_at_run_time_a_class_serves_under_its_new_name():
    adapters.register("mine", Fake)
    assert "mine" in adapters.available()
    family = adapters.create("mine", shape=[2, 3], size=5)
    assert (family.name, family.shape, family.size) == ("mine", (2, 3), 5)


def test_a_registered_family_goes_before_an_installed_one(monkeypatch):
    install(monkeypatch, ("mine", "json:JSONDecoder", "other"))
    adapters.register("mine", Fake)
    assert families.load("mine") is Fake
    assert adapters.available() == ("mine",)


@pytest.mark.parametrize("name", ["flow_mathcing", "floe_matching"])
def test_an_unknown_family_names_the_nearest(name):
    with pytest.raises(UnknownName, match="Did you mean flow_matching"):
        adapters.create(name, shape=(1,))


def test_an_unknown_option_names_the_nearest():
    adapters.register("mine", Fake)
    with pytest.raises(UnknownName, match=r"option of mine called 'sise'.*size"):
        adapters.create("mine", shape=(1,), sise=3)


def test_a_family_that_cannot_be_imported_names_its_distribution(monkeypatch):
    install(
        monkeypatch,
        ("broken", "no_such_module_at_all:Family", "broken-families"),
        ("whole", "adapters.flow_matching:FlowMatching", "interp"),
    )
    with pytest.raises(InterpError, match=r"'broken' of the distribution broken-families.*no_such"):
        adapters.create("broken", shape=(1,))
    assert families.having("sample") == ("whole",)  # the others still serve


def test_two_owners_of_one_name_are_reported(monkeypatch):
    install(monkeypatch, ("a", "json:JSONDecoder", "one"), ("a", "json:JSONEncoder", "two"))
    with pytest.warns(UserWarning, match="one .*and two"):
        assert families.load("a").__name__ == "JSONDecoder"


def test_what_a_family_can_do_is_known_without_making_it():
    adapters.register("mine", Fake)
    assert families.verbs(Fake) == {
        "forward": False, "reverse": False, "loss": False, "sample": "exact", "log_prob": False,
    }  # fmt: skip
    assert {"flow_matching", "mine"} <= set(families.having("sample"))
    assert "flow_matching" in families.having("log_prob")
    assert "mine" not in families.having("log_prob")


@pytest.mark.parametrize(("name", "factory"), [("a b", Fake), ("", Fake), (3, Fake), ("a", 3)])
def test_what_cannot_be_registered_is_refused(name, factory):
    with pytest.raises(OptionError):
        adapters.register(name, factory)
