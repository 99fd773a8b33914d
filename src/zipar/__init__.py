"""ZipAR: autoregressive image models, several times faster, with no retraining."""

from zipar.decoding.adaptive import AdaptiveZipAR
from zipar.decoding.jacobi import CoupledJacobi
from zipar.decoding.raster import Raster
from zipar.decoding.sampling import Sampling
from zipar.decoding.strategy import Strategy
from zipar.decoding.zipar import ZipAR
from zipar.errors import ZipARError
from zipar.grid import TokenGrid
from zipar.integrations.accelerate import accelerate
from zipar.integrations.generate import generate
from zipar.pipeline import DecodingStats, Pipeline, PipelineOutput, pipeline

__version__ = "0.1.0"

__all__ = [
    "AdaptiveZipAR",
    "CoupledJacobi",
    "DecodingStats",
    "Pipeline",
    "PipelineOutput",
    "Raster",
    "Sampling",
    "Strategy",
    "TokenGrid",
    "ZipAR",
    "ZipARError",
    "accelerate",
    "generate",
    "pipeline",
]
