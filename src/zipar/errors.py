"""The one exception for input that cannot be honoured."""


class ZipARError(ValueError):
    """Bad input: the message names the value, what is allowed and what to do."""
