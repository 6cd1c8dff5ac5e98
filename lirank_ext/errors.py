"""The errors whose message is written for the user."""

from __future__ import annotations


class UserError(Exception):
    """Something that the user can change: a file, an option, a value, a missing package.

    The message is one whole sentence. The command line prints it without a traceback and ends
    with ``exit_code``.
    """

    exit_code = 2
