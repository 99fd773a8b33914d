"""Lanes as the server has them."""

from collections.abc import Sequence

from torch import Tensor

from zipar.decoding.lane import Lane
from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.serving.served import Style


class StyleLane(Lane):
    """A lane for images of a style, which come as prompts."""

    def __init__(self, style: Style, rows: int) -> None:
        self.style = style
        served, model = style.served, style.served.model
        super().__init__(
            *(model, style.grid, style.strategy, style.sampling, rows, served.longest_prompt),
            device=model.device,
            dtype=model.dtype,
            cuda_graphs=served.pipe.cuda_graphs and model.capturable(),
        )

    def take(
        self, prompts: Sequence[str], negatives: Sequence[str] | None, sampling: Sampling, seeds: Sequence[int]
    ) -> list[tuple[int, Tensor]]:
        """Take images in, one of each prompt.

        Args:
            negatives: one a prompt, or None for the model's own.
            sampling, seeds: see ``admit``.

        Returns:
            Of each image its ticket, and where its prefix holds tokens, bool (length,).

        Raises:
            ZipARError: a prompt that the model cannot take, or that is too long.
        """
        served = self.style.served
        prefix = served.model.prefix(prompts, negatives, self.sampling.guided, self.grid)
        if prefix.prompt > served.longest_prompt:
            raise ZipARError(
                f"prompt of {prefix.prompt} tokens is too long: this server takes {served.longest_prompt} at most"
            )
        tickets = self.admit(prefix, sampling, seeds)
        return list(zip(tickets, prefix.valid, strict=False))  # unconditional rows come last
