"""UserError, a mistake that the user can correct: a sentence of what was found, what was expected and what to do."""


class UserError(Exception):
    """A mistake in what the user gave. The command line prints its text on stderr and exits with code 2."""
