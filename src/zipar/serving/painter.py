"""From tokens to files, in a thread of its own, so that the decoder never waits for pixels."""

import io
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from zipar.grid import TokenGrid
from zipar.models.base import VisualModel
from zipar.serving import threads
from zipar.serving.events import Rows
from zipar.videos import Video

EMPTY = 0xE6
"""The grey of tokens that are still to come."""


class Painter:
    """One thread, and on a GPU a stream of its own."""

    def __init__(self) -> None:
        self._thread = threads.single("zipar-painter")
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def put(self, work: Callable[..., None], device: torch.device, *arguments: Any) -> "Future[None]":
        """Have ``work(*arguments)`` done, once what the caller has asked of the device is."""
        ready = torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None
        return self._thread.submit(self._do, work, device, ready, arguments)

    def stop(self) -> None:
        self._thread.shutdown()

    @torch.inference_mode()
    def _do(self, work: Callable[..., None], device: torch.device, ready: Any, arguments: tuple[Any, ...]) -> None:
        if ready is None:
            return work(*arguments)
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        stream = self._streams[device]
        stream.wait_event(ready)
        for each in arguments:
            if isinstance(each, Tensor):
                each.record_stream(stream)
        with torch.cuda.stream(stream):
            return work(*arguments)


def frames(model: VisualModel, grid: TokenGrid, tokens: Tensor, born: Tensor | None = None) -> list[Image.Image]:
    """The frames of a sequence of tokens: of an image it is one, of a clip one a frame of tokens.

    Args:
        tokens: int64 (slots,), as the model writes them.
        born: of an image that is not done, the pass of each token; those to come, 0, are left grey.
    """
    came = torch.ones_like(tokens, dtype=torch.bool) if born is None else born > 0
    came[grid.first] = True  # by the prefill
    # what is to come is painted as the first token, for not every model has something to show of token 0
    codes = model.codes(model.pick(tokens.where(came, tokens[grid.first])[None], grid))
    painted = [Image.fromarray(frame) for frame in model.pixels(codes).flatten(0, -4).cpu().numpy()]
    if born is not None:
        to_come = model.pick(~came[None], grid).flatten(0, -3).cpu().numpy()
        for frame, cells in zip(painted, map(Image.fromarray, to_come), strict=True):
            frame.paste((EMPTY,) * 3, mask=cells.resize(frame.size, Image.Resampling.NEAREST))
    return painted


def rows(model: VisualModel, grid: TokenGrid, numbers: Tensor) -> Rows:
    """The numbers of an image's tokens, int64 (slots,), as the tokens lie in it."""
    return model.pick(numbers[None], grid)[0].tolist()


def encode(
    frames: list[Image.Image], form: str, compression: int, text: str | None = None, fps: float | None = None
) -> bytes:
    """A file of an image, or of a clip.

    Args:
        form: "png", "jpeg" or "webp"; clips play in the first and the last.
        compression: the quality, 0 to 100, of "jpeg" and "webp"; of no effect on "png".
        text: ASCII that a "png" carries under the keyword "zipar"; of no effect on others.
        fps: frames a second, of clips alone.
    """
    buffer, said = io.BytesIO(), PngInfo()
    if text is not None:
        said.add_text("zipar", text)
    settings: dict[str, Any] = {"pnginfo": said} if form == "png" else {"quality": compression}
    if fps is not None:
        return Video(frames, fps).animation(form, **settings)
    frames[0].save(buffer, form, **settings)
    return buffer.getvalue()
