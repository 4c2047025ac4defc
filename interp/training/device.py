"""Where a family lives."""

from __future__ import annotations

import torch

from ..errors import OptionError


def as_device(device: torch.device | str) -> torch.device:
    """The device called ``device``, if it is there.

    Raises:
        OptionError: no such device, or none of that kind on this machine.
    """
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0].rstrip(".")
        raise OptionError(
            f"the device {str(device)!r} cannot be used: {why}. Take cpu, or the name of a device that "
            "torch sees, such as cuda."
        ) from error
    return wanted
