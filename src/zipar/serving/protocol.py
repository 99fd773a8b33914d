"""The images API of OpenAI: requests, answers, events and errors, as its clients write and read them."""

import base64
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, BeforeValidator, SkipValidation, ValidationError, ValidationInfo, model_validator

from zipar.arguments import choice, flag, refusal, shown, text, whole
from zipar.errors import ZipARError

if TYPE_CHECKING:
    from zipar.serving.events import Made, Partial

MOST_IMAGES, MOST_PARTIALS = 10, 3
"""Of a request, and of each image."""
LONGEST_PROMPT = 4_000
"""In characters."""
LARGEST_BODY = 1 << 20
"""In bytes."""
FORMATS = ("png", "jpeg", "webp")
LARGEST_SEED = 2**63 - 1


class APIError(Exception):
    """A request that is answered by an error, in the form that OpenAI's clients read."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.headers = status, message, param, code, headers

    @classmethod
    def of(cls, error: ZipARError) -> "APIError":
        """Over bad input; messages begin with the field that they are about."""
        field = str(error).partition(" ")[0]
        return cls(400, str(error), param=field if field in ImageRequest.model_fields else None)

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def _as(check: Callable[..., Any], *allowed: Any) -> BeforeValidator:
    """A field that a function of ``zipar.arguments`` checks."""

    def checked(value: Any, info: ValidationInfo) -> Any:
        return check(info.field_name, value, *allowed)

    return BeforeValidator(checked)


def _words(name: str, value: Any) -> str:
    words = text(name, value)
    if len(words) > LONGEST_PROMPT:
        raise ZipARError(f"{name} of {len(words)} characters is too long: use {LONGEST_PROMPT} at most")
    return words


def _prompt(name: str, value: Any) -> str:
    if not (words := _words(name, value)).strip():
        raise refusal(name, words, "words that say what to paint")
    return words


class ImageRequest(BaseModel):
    """The body of a request for images. Fields that clients send besides are of no effect; null is as left out."""

    prompt: Annotated[str, _as(_prompt)]
    model: Annotated[str | None, _as(text)] = None
    n: Annotated[int, _as(whole, 1, MOST_IMAGES)] = 1
    size: Annotated[str, _as(text)] = "auto"
    response_format: Annotated[str, _as(choice, ("b64_json", "url"))] = "b64_json"
    output_format: Annotated[str, _as(choice, FORMATS)] = "png"
    output_compression: Annotated[int, _as(whole, 0, 100)] = 100
    background: Annotated[str, _as(choice, ("auto", "opaque"))] = "auto"
    stream: Annotated[bool, _as(flag)] = False
    partial_images: Annotated[int, _as(whole, 0, MOST_PARTIALS)] = 0
    trace: Annotated[bool, _as(flag)] = False
    seed: Annotated[int | None, _as(whole, 0, LARGEST_SEED)] = None
    negative_prompt: Annotated[str | None, _as(_words)] = None
    strategy: Annotated[str | None, _as(text)] = None
    # checked by ``Sampling``
    guidance_scale: SkipValidation[float | None] = None
    temperature: SkipValidation[float | None] = None
    top_k: SkipValidation[int | None] = None
    top_p: SkipValidation[float | None] = None
    min_p: SkipValidation[float | None] = None

    @model_validator(mode="before")
    @classmethod
    def _without_null(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


def parse(body: bytes) -> ImageRequest:
    """The request in a body.

    Raises:
        APIError: it is none, or asks for what there is not.
    """
    try:
        return ImageRequest.model_validate_json(body)
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
    field = str(found["loc"][0]) if found["loc"] else None
    if field is None:
        message = f'the body is no JSON object ({found["msg"]}): send one such as {{"prompt": "a fox"}}'
    elif found["type"] == "missing":
        message = f"{field} is missing: say what to paint"
    else:
        message = str(found.get("ctx", {}).get("error") or refusal(field, found["input"], found["msg"]))
    raise APIError(400, message, param=field)


def not_served(model: str, names: Iterable[str]) -> APIError:
    """The error over a model that there is not."""
    message = f"model {shown(model)} is not served: use {', '.join(names)}"
    return APIError(404, message, param="model", code="model_not_found")


def answer(asked: ImageRequest, size: str, tokens: int, images: Sequence["Made"]) -> dict[str, Any]:
    """The body of a response.

    Args:
        size: of the images, as in "512x512".
        tokens: of each image.
        images: in any order.
    """
    data = [_held(asked, made.content) | _decoded(made) for made in sorted(images)]
    return {"created": int(time.time()), "data": data, **_form(asked, size), "usage": _usage(tokens, images)}


def partial_image(asked: ImageRequest, size: str, partial: "Partial") -> str:
    """The event of a partial image."""
    fields: dict[str, Any] = {"partial_image_index": partial.number, "image_index": partial.image}
    if partial.born is not None:
        fields["born"] = partial.born
    return _event("image_generation.partial_image", asked, size, partial.content, fields)


def completed(asked: ImageRequest, size: str, tokens: int, made: "Made") -> str:
    """The event of a finished image; OpenAI's stream one image alone, so they have no ``image_index``."""
    fields = {"image_index": made.image, **_decoded(made), "usage": _usage(tokens, [made])}
    return _event("image_generation.completed", asked, size, made.content, fields)


def failed(error: APIError) -> str:
    """The event of an error, after which a stream ends."""
    return f"event: error\ndata: {json.dumps(error.body())}\n\n"


def _decoded(made: "Made") -> dict[str, Any]:
    """What is ours in what is told of an image."""
    fields: dict[str, Any] = {"seed": made.seed, "passes": made.passes, "seconds": round(made.seconds, 4)}
    if made.born is not None:
        fields |= {"tokens": made.tokens, "born": made.born}
    return fields


def _event(kind: str, asked: ImageRequest, size: str, content: bytes, fields: dict[str, Any]) -> str:
    held = {"b64_json": base64.b64encode(content).decode(), "created_at": int(time.time()), **_form(asked, size)}
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **held, **fields})}\n\n"


def _form(asked: ImageRequest, size: str) -> dict[str, str]:
    return {"size": size, "quality": "auto", "background": "opaque", "output_format": asked.output_format}


def _held(asked: ImageRequest, content: bytes) -> dict[str, str]:
    """A file, in the answer itself: nothing is kept that an address could lead to."""
    encoded = base64.b64encode(content).decode()
    if asked.response_format == "url":
        return {"url": f"data:image/{asked.output_format};base64,{encoded}"}
    return {"b64_json": encoded}


def _usage(tokens: int, images: Sequence["Made"]) -> dict[str, Any]:
    read, written = images[0].prompt_tokens, tokens * len(images)
    return {
        "input_tokens": read,
        "output_tokens": written,
        "total_tokens": read + written,
        "input_tokens_details": {"text_tokens": read, "image_tokens": 0},
    }
