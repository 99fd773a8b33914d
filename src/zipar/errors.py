"""The one exception for input that cannot be honoured."""


class ZipARError(ValueError):
    """Bad input: the message names the value, what is allowed and what to do."""


def reason(error: BaseException) -> str:
    """What a library or the system says of an error, in one line."""
    said = (isinstance(error, OSError) and error.strerror) or str(error).strip() or type(error).__name__
    return said.splitlines()[0]
