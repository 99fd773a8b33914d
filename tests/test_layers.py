"""Imports run downward: whoever reads a module needs to know those below it alone."""

import ast
from pathlib import Path

import zipar

LAYERS = (
    {"errors"},
    {"arguments", "prompts", "writing", "pretrained"},
    {"grid"},
    {"decoding"},
    {"checkpoints", "image_tokenizers"},
    {"models", "videos"},
    {"conversion", "integrations", "pipeline", "evaluation"},
    {"serving"},
    {"cli"},
    {"__main__"},
)
"""From the bottom; those of one layer do not import each other."""
HOME = Path(zipar.__file__).parent
STRATEGIES = {f"zipar.decoding.{name}" for name in ("raster", "zipar", "adaptive", "jacobi")}


def arrows():
    """(importing module, imported module) of all of zipar, wherever in a file the import stands."""
    for path in HOME.rglob("*.py"):
        module = ".".join(["zipar", *path.relative_to(HOME).with_suffix("").parts])
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path} has a relative import"
                wanted = [f"{node.module}.{name.name}" for name in node.names]
                yield from ((module, each) for each in wanted)
            elif isinstance(node, ast.Import):
                yield from ((module, name.name) for name in node.names)


def piece(module):
    return [*module.split("."), ""][1]


def test_imports_run_downward():
    heights = {name: height for height, names in enumerate(LAYERS) for name in names}
    seen = set()
    for above, below in arrows():
        if above == "zipar.__init__" or below.split(".")[0] != "zipar" or piece(below) not in heights:
            continue  # the package itself hands out names of all layers
        seen.add(piece(above))
        assert piece(above) == piece(below) or heights[piece(above)] > heights[piece(below)], f"{above} -> {below}"
    assert {path.stem for path in HOME.iterdir()} & heights.keys() >= seen > {"cli", "models", "conversion"}


def test_every_piece_has_its_layer():
    pieces = {path.stem for path in HOME.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert pieces - {"__init__"} <= set().union(*LAYERS)


def test_models_know_no_strategy():
    for above, below in arrows():
        if piece(above) == "models":
            assert not any(f"{below}.".startswith(f"{strategy}.") for strategy in STRATEGIES), f"{above} -> {below}"


def test_few_modules_import_diffusers():
    importing = {above for above, below in arrows() if below.split(".")[0] == "diffusers"}
    assert importing == {"zipar.checkpoints.pretrained", "zipar.image_tokenizers.movqgan"}
