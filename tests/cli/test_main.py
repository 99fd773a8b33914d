import re
import subprocess
import sys

import pytest
import typer

import zipar as library
from zipar.cli.generate import StrategyName
from zipar.cli.main import app
from zipar.decoding import names
from zipar.evaluation import tuning


def test_version_and_help(zipar):
    assert zipar("--version") == (0, f"zipar {library.__version__}\n", "")
    for arguments in ([], ["--help"], ["-h"]):
        code, out, err = zipar(*arguments)
        assert (code, err) == (0, "")
        assert all(command in out for command in ("generate", "compare", "plan", "prompts", "convert"))
    for command in ("generate", "compare", "plan", "prompts", "convert"):
        assert zipar(command, "--help")[0] == 0
    assert "llamagen" in zipar("convert")[1]


@pytest.mark.parametrize("arguments", [["paint"], ["--loud"], ["convert", "dalle"]], ids=" ".join)
def test_unknown_commands_end_in_one_line(zipar, arguments):
    code, out, err = zipar(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_process_of_its_own_is_as_quiet(text_model, tmp_path):
    command = [sys.executable, "-m", "zipar.cli.main", "generate", "a fox", "--model", text_model]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.match(r"zipar\.png: [1-6]\d forward passes instead of 64, ", done.stdout)


def _paths(command, *path):
    """The words that lead to each command: (), ("generate",), ("convert",), ("convert", "emu3") ..."""
    yield path
    for name, each in getattr(command, "commands", {}).items():
        yield from _paths(each, *path, name)


def test_help_and_slips_need_no_torch():
    # what takes seconds to import waits until options and paths have been found good
    slips = [["paint"], ["convert", "dalle"], ["generate"], ["plan", "--window", "x"]]
    slips += [["generate", "a fox", "--seed", "-1"], ["generate", "a fox", "--output", "fox.pdf"]]
    expected = [(arguments, 2) for arguments in slips] + [([], 0), (["convert"], 0), (["--version"], 0)]
    for path in _paths(typer.main.get_command(app)):
        expected += [([*path, "--help"], 0), ([*path, "--hlep"], 2)]
    assert len(expected) > 30
    script = f"""if True:
        import sys
        from zipar.cli.main import main
        for arguments, code in {expected}:
            assert main(arguments) == code, arguments
            heavy = {{"torch", "transformers", "numpy", "matplotlib", "PIL"}} & sys.modules.keys()
            assert not heavy, (arguments, heavy)
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["generate", "--hlep"]], ids=" ".join)
def test_a_process_of_its_own_needs_no_torch(arguments):
    command = [sys.executable, "-X", "importtime", "-m", "zipar.cli.main", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == (2 if "--hlep" in arguments else 0)
    imported = {line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "zipar.cli.generate" in imported
    assert not imported & {"torch", "transformers", "numpy", "matplotlib"}


def test_help_names_what_the_library_has(zipar, plain):
    # the help cannot ask modules that need torch, so it repeats them
    assert {each.value for each in StrategyName} == set(names.STRATEGIES)
    assert f"[default: ({tuning.TOLERANCE})]" in plain(zipar("tune", "--help")[1]).replace(" │ │ ", " ")
