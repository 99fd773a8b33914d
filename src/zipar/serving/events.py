"""What the scheduler tells of a request, from threads of its own."""

from typing import NamedTuple, TypeAlias

from zipar.serving.protocol import APIError


class Begun(NamedTuple):
    """An image has left the queue: what could be refused would have been by now."""


Rows: TypeAlias = list[list[int]] | list[list[list[int]]]
"""A number of each token, as they lie in the image; of clips in each frame."""


class Partial(NamedTuple):
    """An image as far as it has come."""

    image: int
    """Which one of the request, from 0 on."""
    number: int
    """Which one of its partial images, from 0 on."""
    content: bytes
    """The file."""
    born: Rows | None = None
    """If the request asks for a trace, the pass of each token; -1 of those to come."""


class Made(NamedTuple):
    """A finished image."""

    image: int
    seed: int
    content: bytes
    prompt_tokens: int
    passes: int
    """Forward passes, prefill counted."""
    seconds: float
    """In a lane."""
    tokens: Rows | None = None
    born: Rows | None = None
    """If the request asks for a trace: codebook indices, and the pass of each, 0 of the prefill's."""


class Failed(NamedTuple):
    """Nothing more will come."""

    error: APIError


Event: TypeAlias = Begun | Partial | Made | Failed
