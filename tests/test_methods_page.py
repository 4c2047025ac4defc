"""The page of methods is what its script writes, and names tests that there are."""

from __future__ import annotations

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_page_is_up_to_date() -> None:
    """Run `python docs/methods.py` where it is not."""
    spec = importlib.util.spec_from_file_location("methods", ROOT / "docs" / "methods.py")
    assert spec is not None
    assert spec.loader is not None
    methods = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(methods)
    assert methods.page() == (ROOT / "docs" / "methods.md").read_text()
    for named in methods.TESTS.values():
        file, name = named.split("::")
        assert f"def {name}(" in (ROOT / file).read_text()
