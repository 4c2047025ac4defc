"""A family of one's own: found by interp through the entry point in pyproject.toml."""

from adapters.path_family import PathFamily

from .schedule import sway


class SwayMatching(PathFamily):
    """Flow matching on the path `sway`."""

    name = "sway_matching"

    def __init__(self, shape, network=None, depth=0.5, width=None, lr=2e-3):
        path, own = sway(depth), {"depth": depth}
        super().__init__(shape, network, path, own, view="velocity", width=width, lr=lr)
