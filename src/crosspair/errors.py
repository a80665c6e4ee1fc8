"""The error a user can mend: one sentence with what was found, what was expected and what to do."""


class UserError(Exception):
    """A mistake in what the user gave. The command line prints its text on stderr and exits with code 2."""
