"""Runs the decoders of transformers on our cache and attention, through the plug points that transformers has.

A family that transformers implements keeps its modules as they are: a ``Cache`` whose layers are those of the
``SlotCache``, an attention function, and 4-D masks, which its decoders pass on unchanged.
"""

import copy
import inspect
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from zipar.checkpoints.files import build
from zipar.decoding.attention import attend
from zipar.decoding.cache import SlotCache, SlotCacheLayer
from zipar.decoding.decodable import Prefix
from zipar.errors import ZipARError
from zipar.models.base import VisualModel
from zipar.models.double import runs_itself
from zipar.models.packing import is_bare, is_plain, packed


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    return attend(query, key, value, attention_mask, scaling).transpose(1, 2), None


AttentionInterface.register("zipar", _attention)
_MASKED = ("eager", "sdpa")
"""Of transformers' own attentions, those that take our masks."""


class _Layer(CacheLayerMixin):
    """One layer of a :class:`SlotCache`, as transformers wants it."""

    def __init__(self, layer: SlotCacheLayer) -> None:
        super().__init__()
        self.layer = layer

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return self.layer.update(key_states, value_states)

    def lazy_initialization(self, *args: Any) -> None:
        """The slot cache is allocated already."""

    def get_seq_length(self, *args: Any) -> int:
        return self.layer.placement.read.stop

    def get_mask_sizes(self, *args: Any) -> tuple[int, int]:
        return self.layer.placement.read.stop, 0

    def get_max_length(self) -> int:
        return self.layer.placement.entries

    get_max_cache_shape = get_max_length  # its name in older versions


class TransformersModel(VisualModel):
    """A family whose modules are transformers': it runs ``decoder``, and says what goes in and what comes out."""

    network: ClassVar[Any]
    """The class of transformers."""
    head_rows: slice | Tensor | None = None
    """Of an ``lm_head`` that writes text too: the rows of image tokens."""

    def __init__(self, model: PreTrainedModel, decoder: PreTrainedModel) -> None:
        """``model`` is the user's; ``decoder`` the part of it that takes ``inputs_embeds`` and gives hidden states."""
        super().__init__()
        self.model = model
        self.decoder = decoder
        self.layers = decoder.config.num_hidden_layers
        self._head: Callable[[Tensor], Tensor] | None = None
        uncompiled = getattr(decoder, "_orig_mod", decoder)  # torch.compile hides the signature
        names = inspect.signature(uncompiled.forward).parameters
        self._cache_argument = "cache" if "cache" in names else "past_key_values"  # its name before transformers 5.24

    @classmethod
    @abstractmethod
    def load(
        cls, directory: Path, dtype: torch.dtype, device: torch.device, sharded: bool = False
    ) -> "TransformersModel":
        """See ``VisualModel.load``; ``sharded`` as ``load_model`` takes it, of ``network``."""

    @classmethod
    def outline(cls, directory: Path) -> "TransformersModel":
        return cls(cls.without_weights(directory))  # type: ignore[call-arg]  # families know where their decoder is

    @classmethod
    def without_weights(cls, directory: Path) -> Any:
        """The network that a ``config.json`` of transformers describes, on the meta device.

        Raises:
            ZipARError: it is damaged.
        """
        with build(directory), torch.device("meta"):
            return cls.network(cls.network.config_class.from_pretrained(directory, local_files_only=True))

    @abstractmethod
    def embed(self, tokens: Tensor) -> Tensor:
        """Image tokens, int64 (rows, queries), as the sequence holds them -> embeddings (rows, queries, dim)."""

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (rows, queries, dim) -> float32 logits (rows, queries, vocabulary) of image tokens."""

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """Where prompts go in; under a device map, where the hook of the embeddings wants them."""
        embeddings: Any = self.decoder.get_input_embeddings()
        place = getattr(getattr(embeddings, "_hf_hook", None), "execution_device", None)
        return torch.device(next(embeddings.parameters()).device if place is None else place)

    def stepped(self) -> list[nn.Module]:
        return [self.decoder]

    def prefill(self, prefix: Prefix, cache: SlotCache, mask: Tensor) -> Tensor:
        self._take_up()
        if prefix.positions is None:
            positions = (prefix.valid.long().cumsum(1) - 1).clamp(min=0)
        else:
            positions = prefix.positions.movedim(-1, 0)
        logits = self.logits(self._run(prefix.embeddings, positions, cache, mask)[:, -1:])
        return logits.to(prefix.embeddings.device)  # a device map may have them elsewhere

    def step(self, tokens: Tensor, slots: Tensor, lengths: Tensor, cache: SlotCache, mask: Tensor) -> Tensor:
        logits = self.logits(self._run(self.embed(tokens), self.positions_of(slots, lengths), cache, mask))
        return logits.to(tokens.device)

    def positions_of(self, slots: Tensor, lengths: Tensor) -> Tensor:
        """Where slots are, int64 (rows, queries) or (axes, rows, queries); ``lengths`` as a prefix tells them."""
        return lengths[:, None] + slots

    def _take_up(self) -> None:
        """Follow what the user did with the model and its weights.

        Raises:
            ZipARError: the attention of code that was made of the model takes no masks.
        """
        own = self.decoder.config
        if runs_itself(self.stepped()) and own._attn_implementation not in _MASKED:
            raise ZipARError(
                f"{type(self.model).__name__} is compiled or wrapped, and its attention "
                f"({own._attn_implementation}) takes no masks: load it with attn_implementation='sdpa'"
            )
        ours = copy.copy(own)
        ours._attn_implementation_internal = "zipar"  # the setter would reach into what the copy shares
        self._follow(self.model, own, ours)
        self._head = None
        if self.head_rows is not None and is_plain(self.model.lm_head):
            self._head = packed(self.model.lm_head, self.head_rows).forward  # no module, which would be registered

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_head": None}

    def _run(self, embeddings: Tensor, positions: Tensor, cache: SlotCache, mask: Tensor) -> Tensor:
        layers = Cache(layers=[_Layer(layer) for layer in cache.layers])
        output = self.running(self.decoder)(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **{self._cache_argument: layers},
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """Float32 logits of ``head_rows`` of the vocabulary, by the ``lm_head`` of a model of text and images."""
        assert self.head_rows is not None
        if self._head is not None:
            return self._head(hidden).float()
        head = self.model.lm_head
        if type(head) is nn.Linear and is_bare(head) and type(head.weight) is nn.Parameter and head.bias is None:
            return F.linear(hidden.to(head.weight.device), head.weight[self.head_rows]).float()
        return head(hidden)[..., self.head_rows].float()  # sharded, quantised, wrapped: it alone knows its weights
