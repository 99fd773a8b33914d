"""A model's modules once more, around the same parameters: what a pass switches is switched on the double alone."""

from collections.abc import Sequence
from functools import partial
from threading import RLock
from types import MethodType
from typing import Any

from torch import nn

from zipar.models.packing import is_compiled, leaves


class Double:
    """Modules that compute what those of a model do, with our attention and with packed weights.

    The user's model is never touched, so other threads may use it meanwhile, and an error leaves nothing behind.
    Parameters, buffers and hooks are the user's own. A compiled module has no double: it runs itself.
    """

    def __init__(self, root: nn.Module) -> None:
        """``root``: all that may run is in it."""
        self.root = root
        self._twins: dict[nn.Module, nn.Module] = {}
        self._changing = RLock()

    def of(self, module: nn.Module) -> Any:
        """The double of a part of the model."""
        return self._twins[module]

    def refresh(self, stepped: Sequence[nn.Module], config: Any = None, ours: Any = None) -> None:
        """Be as the model is now: linear layers in ``stepped`` packed, and ``ours`` the config of what has ``config``.

        Passes of other threads may be running: nothing that they read is missing for a moment.
        """
        with self._changing:
            packed, known = leaves(stepped), self._twins
            twins: dict[nn.Module, nn.Module] = {}
            for module in self.root.modules():
                twin = known.get(module)
                if is_compiled(module):
                    twin = module
                elif twin is module or type(twin) is not type(module):
                    twin = object.__new__(type(module))
                twins[module] = twin
            # what is new is whole before anything that runs already leads to it
            for module, twin in sorted(twins.items(), key=lambda pair: known.get(pair[0]) is pair[1]):
                if twin is module:
                    continue
                now = {name: _bound(value, module, twin) for name, value in dict(vars(module)).items()}
                now["_modules"] = {
                    name: child if child is None else packed.get(child, twins[child])
                    for name, child in module._modules.items()
                }
                if config is not None and now.get("config") is config:
                    now["config"] = ours
                held = vars(twin)
                held.update(now)
                for name in held.keys() - now.keys():
                    del held[name]
            self._twins = twins


def _bound(value: Any, module: nn.Module, twin: nn.Module) -> Any:
    """What is bound to a module, such as the ``forward`` that a device map gives it, bound to its twin."""
    if isinstance(value, MethodType) and value.__self__ is module:
        return MethodType(value.__func__, twin)
    if isinstance(value, partial) and any(argument is module for argument in value.args):
        return partial(value.func, *(twin if given is module else given for given in value.args), **value.keywords)
    return value


def runs_itself(modules: Sequence[nn.Module]) -> bool:
    """Whether some of ``modules`` run code that was made of themselves: compiled, or put in place of ``forward``."""
    for part in (part for module in modules for part in module.modules()):
        forward = vars(part).get("forward")
        if is_compiled(part) or (forward is not None and _bound(forward, part, part) is forward):
            return True
    return False
