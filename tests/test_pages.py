"""Pages that scripts write are what their scripts write, and name tests that there are."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


def script(name: str) -> ModuleType:
    """A script of docs, as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


@pytest.mark.parametrize("name", ["methods", "speed"])
def test_the_page_is_up_to_date(name: str) -> None:
    """Run `python docs/NAME.py` where it is not."""
    assert script(name).page() == (ROOT / "docs" / f"{name}.md").read_text()


def test_the_tests_that_the_methods_name_are_there() -> None:
    for named in script("methods").TESTS.values():
        file, name = named.split("::")
        assert f"def {name}(" in (ROOT / file).read_text()
