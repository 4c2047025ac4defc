"""The command line: train, sample, schedule, evaluate, compare, list, plot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tyro

from ..errors import InterpError
from .common import complain
from .compare import Compare
from .listing import List
from .plot import Plot
from .runs import Evaluate, Sample, Schedule, Train

Command = Train | Sample | Schedule | Evaluate | Compare | List | Plot


def parse(arguments: Sequence[str] | None = None) -> Command:
    """The command that ``arguments`` (those of the process where None) ask for.

    Ends the process with code 0 after --help, and with 2 where they make no sense.
    """
    commands: dict[str, Any] = {
        c.__name__.lower(): c for c in (Train, Sample, Schedule, Evaluate, Compare, List, Plot)
    }
    command: Command = tyro.extras.subcommand_cli_from_dict(
        commands, prog="interp", description=__doc__, args=arguments,
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes),
    )  # fmt: skip
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 for success, 2 for an error of the user's, 130 for Ctrl-C."""
    command = parse(arguments)
    try:
        command.run()
    except KeyboardInterrupt:
        going = isinstance(command, Train)
        complain("stopped." + (" Add --resume to go on with the run." if going else ""))
        return 130
    except (InterpError, OSError) as error:
        if command.debug:
            raise
        complain(_sentence(error))
        return 2
    return 0


def _sentence(error: InterpError | OSError) -> str:
    if isinstance(error, InterpError):
        return str(error)
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{where}. Check the path, its permissions and the free space."
