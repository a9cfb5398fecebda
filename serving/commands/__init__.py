"""One module for each group of `gridserve` commands.

A module has `register(subparsers)`, which imports nothing heavy and sets `run` on its parsers; `run(arguments)`
imports what it needs when called and returns the exit status. A mistake a user can mend is a `CommandError`.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]


class CommandError(Exception):
    """What went wrong and what to do about it, in one line for stderr."""
