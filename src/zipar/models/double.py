"""A model's modules once more, around the same parameters: what a pass switches is switched on the double alone."""

import copy
from collections.abc import Sequence
from typing import Any

from torch import nn

from zipar.models.packing import is_compiled, packable, packed


class Double:
    """Modules that compute what those of a model do, with our attention and with packed weights.

    The user's model is never touched, so other threads may use it meanwhile, and an error leaves nothing behind.
    Parameters, buffers and hooks are the user's own.
    """

    def __init__(self, model: nn.Module, decoder: nn.Module, attention: str) -> None:
        """``decoder``: the part of ``model`` whose config names the ``attention``."""
        self.model, self._decoder, self._attention = model, decoder, attention
        self._twins: dict[nn.Module, nn.Module] = {}

    def of(self, module: nn.Module) -> Any:
        """The double of a part of the model."""
        return self._twins[module]

    def refresh(self, stepped: Sequence[nn.Module]) -> None:
        """Be as the model is now; linear layers in ``stepped`` are packed."""
        config: Any = copy.copy(self._decoder.config)
        config._attn_implementation_internal = self._attention  # the setter would reach into what the copy shares
        own = self._decoder.config
        leaves: dict[nn.Module, nn.Module] = {layer: packed(layer) for _, _, layer in packable(stepped)}
        for module in self.model.modules():
            if module not in self._twins:
                self._twins[module] = object.__new__(type(module))
        for module, twin in self._twins.items():
            held = vars(twin)
            held.clear()
            held.update(vars(module))
            held["_modules"] = {
                name: child if child is None else leaves.get(child, self._twins[child])
                for name, child in module._modules.items()
            }
            if held.get("config") is own:
                held["config"] = config


def can_be_doubled(modules: Sequence[nn.Module]) -> bool:
    """Whether all that runs is the modules' own code: not compiled, and not wrapped by the hooks of a device map."""
    parts = [part for module in modules for part in module.modules()]
    return not any(is_compiled(part) or "forward" in vars(part) for part in parts)
