"""Language models of transformers whose vocabulary goes on with a codebook behind all words of their tokenizers."""

from typing import Any, ClassVar

from tokenizers import Tokenizer
from torch import Tensor

from zipar.decoding.sampling import Sampling
from zipar.errors import ZipARError
from zipar.models.base import configured, to_bytes
from zipar.models.mixed_modal import MixedModal


class Extended(MixedModal):
    """What its families share. Tokens are codebook indices, and logits are of these alone."""

    sampling: ClassVar[Sampling]
    """How the family's authors sample."""
    special: ClassVar[tuple[str, ...]]
    """The special tokens that its prompts hold."""

    def __init__(
        self,
        model: Any,
        tokenizer: Tokenizer | None,
        image_tokenizer: Any,
        image_size: int,
        first: int,
        defaults: Sampling | None = None,
    ) -> None:
        """All parts of a checkpoint; only prompts need ``tokenizer``.

        Args:
            image_size: side in pixels of the square images that it makes unless told otherwise.
            first: the id of code 0: as many words as the tokenizer knows come before.
            defaults: None for the authors' way of sampling.

        Raises:
            ZipARError: the parts do not fit each other, or the tokenizer is not that of the family.
        """
        codes = image_tokenizer.config.codebook_size
        super().__init__(model, tokenizer, image_tokenizer, codes, first)
        self.image_size = (image_size, image_size)
        self.positions = model.config.max_position_embeddings
        self.defaults = defaults or configured(self.sampling, model.generation_config)
        if first + codes > model.config.vocab_size:
            raise ZipARError(
                f"{first} words and {codes} codes are more than the {model.config.vocab_size} that this "
                f"{type(self).__name__} knows: tokenizer, image decoder and model do not belong together"
            )
        self.ids = {} if tokenizer is None else {name: self._id_of(name, tokenizer) for name in self.special}
        """Of the special tokens, by name."""

    @classmethod
    def settings(cls, config: dict[str, Any]) -> dict[str, Any]:
        return {name: int(config[name]) for name in ("image_size", "first")}

    def vocabulary_ids(self, tokens: Tensor) -> Tensor:
        return tokens + self.first

    def pixels(self, tokens: Tensor) -> Tensor:
        return to_bytes(((self.decoded(tokens) + 1) * 127.5).round()).permute(0, 2, 3, 1)

    def _id_of(self, name: str, tokenizer: Tokenizer) -> int:
        if (token := tokenizer.token_to_id(name)) is None:
            raise ZipARError(f"the tokenizer has no token {name}: it is not that of a {type(self).__name__}")
        return token
