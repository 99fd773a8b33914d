"""The names of the package, which are imported once they are asked for."""

import subprocess
import sys

import pytest

import zipar

HEAVY = ("torch", "transformers", "numpy", "matplotlib", "PIL")


def run(*scripts):
    """Run each script in a process where nothing of zipar is imported yet."""
    fresh = """if True:
        import sys
        for script in sys.argv[1:]:
            for name in [name for name in sys.modules if name.partition(".")[0] == "zipar"]:
                del sys.modules[name]
            exec(script, {})
    """
    done = subprocess.run([sys.executable, "-c", fresh, *scripts], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_package_alone_is_light():
    run(f"import sys, zipar; dir(zipar), zipar.__version__, zipar.ZipARError; assert not sys.modules.keys() & {HEAVY}")


def test_all_names_are_there():
    assert {"ZipARError", *zipar._HOMES} == set(zipar.__all__) <= set(dir(zipar))
    for name in zipar.__all__:
        assert getattr(getattr(zipar, name), "__name__", name) == name
        assert name in vars(zipar)
    everything = {}
    exec("from zipar import *", everything)
    assert everything.keys() - {"__builtins__"} == set(zipar.__all__)


def test_unknown_names_are_errors():
    assert not hasattr(zipar, "Columns")
    with pytest.raises(AttributeError, match="module 'zipar' has no attribute 'Columns'"):
        zipar.Columns  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Columns'"):
        from zipar import Columns  # noqa: F401


def test_modules_need_no_import_of_their_own():
    assert set(zipar._MODULES) <= set(dir(zipar))


def test_whatever_is_imported_first():
    """In one process, for torch and transformers take seconds to import."""
    imports = (
        "import zipar",
        "import zipar.pipeline",
        "import zipar; import zipar.pipeline",
        "import zipar; zipar.pipeline; import zipar.pipeline",
        "import zipar.models.auto, zipar; from zipar.pipeline import Pipeline",
        "import zipar; from zipar import pipeline; import zipar.pipeline; assert pipeline is zipar.pipeline",
    )
    is_the_function = """
import sys
from types import FunctionType
assert type(zipar.pipeline) is FunctionType, zipar.pipeline
assert zipar.pipeline is sys.modules["zipar.pipeline"].pipeline
"""
    run(
        *(each + is_the_function for each in imports),
        "import zipar.pipeline; assert zipar.pipeline('emoji').strategy",
        "import zipar; [getattr(zipar, module) for module in zipar._MODULES]",
        "import zipar; zipar.models.emu3.Emu3, zipar.decoding.names.parse, zipar.integrations.families.family_of",
        "import zipar; zipar.checkpoints.tuned.tuned, zipar.image_tokenizers.vq.VQModel, zipar.grid.TokenGrid",
        "import zipar; zipar.prompts.PromptVocabulary, zipar.pretrained.names, zipar.errors.ZipARError",
        "import sys; sys.modules['diffusers'] = None; import zipar.models.auto, zipar.pipeline",
        # what Windows lacks is not needed (here, where torch and transformers have found their own ways around it)
        "import sys; sys.modules.update(dict.fromkeys(('resource', 'fcntl', 'termios', 'pwd', 'grp')))",
        "import zipar.pipeline, zipar.integrations.accelerate, zipar.evaluation.report, zipar.conversion.llamagen",
        "import zipar.cli.main, zipar.cli.session, zipar.evaluation.plots",
    )


def test_names_can_be_replaced(monkeypatch):
    for name in ("pipeline", "Raster"):
        monkeypatch.setattr(zipar, name, None)
        assert getattr(zipar, name) is None
