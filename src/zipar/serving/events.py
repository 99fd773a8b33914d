"""What the scheduler tells of a request, from threads of its own."""

from typing import NamedTuple, TypeAlias

from zipar.serving.protocol import APIError


class Begun(NamedTuple):
    """An image has left the queue: what could be refused would have been by now."""


class Partial(NamedTuple):
    """An image as far as it has come."""

    image: int
    """Which one of the request, from 0 on."""
    number: int
    """Which one of its partial images, from 0 on."""
    content: bytes
    """The file."""


class Made(NamedTuple):
    """A finished image."""

    image: int
    seed: int
    content: bytes
    prompt_tokens: int
    passes: int
    """Forward passes that it took, prefill counted."""


class Failed(NamedTuple):
    """Nothing more will come."""

    error: APIError


Event: TypeAlias = Begun | Partial | Made | Failed
