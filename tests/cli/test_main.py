import subprocess
import sys
from pathlib import Path

import pytest

import zipar as library


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
    assert done.stdout.startswith("zipar.png: 40 forward passes instead of 64, ")


def test_the_command_line_itself_needs_no_torch():
    # a bare package stands in for zipar, whose public names do need it
    script = f"""if True:
        import sys, types
        zipar = types.ModuleType("zipar")
        zipar.__path__, zipar.__version__ = [{str(Path(library.__file__).parent)!r}], "1"
        sys.modules["zipar"] = zipar
        from zipar.cli.main import main
        assert main(["generate", "--help"]) == 0
        assert "torch" not in sys.modules and "transformers" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
