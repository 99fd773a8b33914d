"""ZipAR: autoregressive image models, several times faster, with no retraining."""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from zipar.errors import ZipARError

if TYPE_CHECKING:
    from zipar.decoding.adaptive import AdaptiveZipAR
    from zipar.decoding.jacobi import CoupledJacobi
    from zipar.decoding.names import DEFAULT
    from zipar.decoding.raster import Raster
    from zipar.decoding.sampling import Sampling
    from zipar.decoding.strategy import Strategy
    from zipar.decoding.zipar import ZipAR
    from zipar.grid import TokenGrid
    from zipar.integrations.accelerate import accelerate
    from zipar.integrations.generate import generate
    from zipar.pipeline import DecodingStats, Pipeline, PipelineOutput, pipeline
    from zipar.videos import Video

__version__ = "0.1.0"

__all__ = [
    "DEFAULT",
    "AdaptiveZipAR",
    "CoupledJacobi",
    "DecodingStats",
    "Pipeline",
    "PipelineOutput",
    "Raster",
    "Sampling",
    "Strategy",
    "TokenGrid",
    "Video",
    "ZipAR",
    "ZipARError",
    "accelerate",
    "generate",
    "pipeline",
]

_HOMES = {
    "AdaptiveZipAR": "zipar.decoding.adaptive",
    "DEFAULT": "zipar.decoding.names",
    "CoupledJacobi": "zipar.decoding.jacobi",
    "DecodingStats": "zipar.pipeline",
    "Pipeline": "zipar.pipeline",
    "PipelineOutput": "zipar.pipeline",
    "Raster": "zipar.decoding.raster",
    "Sampling": "zipar.decoding.sampling",
    "Strategy": "zipar.decoding.strategy",
    "TokenGrid": "zipar.grid",
    "Video": "zipar.videos",
    "ZipAR": "zipar.decoding.zipar",
    "accelerate": "zipar.integrations.accelerate",
    "generate": "zipar.integrations.generate",
    "pipeline": "zipar.pipeline",
}
"""Where the public names are, which are imported once they are asked for."""
_MODULES = ("checkpoints", "decoding", "grid", "image_tokenizers", "integrations", "models", "pretrained", "prompts")
"""Reached by ``import zipar`` alone, as in ``zipar.models.emu3.Emu3``."""


class _Package(ModuleType):
    """This package, which imports torch and transformers when they are needed: they take seconds."""

    def __getattr__(self, name: str) -> Any:
        if name in _HOMES:
            value = getattr(import_module(_HOMES[name]), name)
            setattr(self, name, value)  # asked for once
            return value
        if name in _MODULES:
            for home in _HOMES.values():  # between them, they import all that is in the modules
                import_module(home)
            return vars(self)[name]
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}", name=name, obj=self)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__, *_MODULES})

    def __setattr__(self, name: str, value: Any) -> None:
        # whoever imports the module zipar.pipeline has it set here, where the function of that name belongs
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
