"""The families: one small file each, on top of `interp`.

They are found through the entry-point group ``interp.families``, where other distributions may
register theirs beside ours; none is listed here.
"""

from interp.families import available, create, register

__all__ = ["available", "create", "register"]
