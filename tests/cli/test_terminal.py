"""Whatever the terminal can show, and whatever users type."""

import io
import json
import os
import subprocess
import sys

import pytest
import typer
from rich.text import Text

from zipar.cli.main import app, main


@pytest.fixture
def printed(monkeypatch):
    """Runs a command line whose stdout has an encoding: printed("ascii", "plan") -> exit code, text."""

    def run(encoding, *args):
        out = io.TextIOWrapper(io.BytesIO(), encoding, errors="strict")
        monkeypatch.setattr(sys, "stdout", out)
        code = main([str(arg) for arg in args])
        out.flush()
        return code, out.buffer.getvalue().decode(encoding)

    return run


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_letters_that_a_terminal_lacks_are_spelt(printed, text_model, tmp_path, monkeypatch, encoding):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "狐").symlink_to(text_model)
    for arguments in (
        ["--help"],
        ["eval", "--help"],
        ["plan", "-m", "狐", "--window", "2", "--lookahead", "2"],
        ["prompts", "-m", "狐"],
        ["generate", "a 狐 fox", "-m", "狐", "-o", "狐.png", "--stats", "狐.json"],
        ["eval", "-m", "狐", "-s", "zipar:2", "--images", "2", "-o", "狐狸"],
    ):
        code, out = printed(encoding, *arguments)
        assert code == 0
        assert out
    assert "+/-" in out
    assert "\\u72d0\\u72f8: report.json" in out


def test_help_has_all_its_letters():
    """Rich takes words in brackets for markup: they have to be escaped, and nothing else."""

    def texts(command):
        yield command.help
        yield from (option.help for option in command.params if getattr(option, "help", None))
        for each in getattr(command, "commands", {}).values():
            yield from texts(each)

    found = [text for text in texts(typer.main.get_command(app)) if text]
    assert len(found) > 60
    for text in found:
        assert Text.from_markup(text).plain == text.replace("\\[", "["), text


def test_help_names_the_extra(zipar, plain):
    told = plain(zipar("eval", "--help")[1])
    assert "zipar-torch[fid]" in told
    assert "zipar-torch[efficientnet]" in told


@pytest.mark.parametrize("name", ["mm[/red]/x", "[bold]", "[/]", ":fox:"])
def test_what_users_type_is_no_markup(zipar, text_model, tmp_path, monkeypatch, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).symlink_to(text_model)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # then there is a spinner
    out = f"{name}/{name.replace('/', '')}.png"
    code, told, err = zipar("generate", f"a fox {name}", "-m", name, "--size", "16x16", "-o", out, "--animate", "a.gif")
    assert code == 0
    assert out in told
    assert f"loading {name}" in err
    code, _, err = zipar("plan", "-m", f"{name}/{name}")
    assert code == 2
    assert f"{name}/{name}" in err


def test_prompts_are_no_markup_of_the_reports_either(zipar, text_model, tmp_path):
    (tmp_path / "prompts.txt").write_text("a fox [/red]\na fox for $5 or $^\\frac{\n")
    assert zipar("eval", "prompts.txt", "-m", text_model, "-s", "zipar:2", "-o", "[/red]", "-q")[:2] == (0, "")


def test_prompts_are_utf8_in_any_locale(zipar, text_model, tmp_path):
    given = os.fsdecode("a fox é".encode("ascii", "backslashreplace")) + "\udcc3\udca9"  # as Python has it in C
    assert zipar("generate", given, "-m", text_model, "--stats", "x.json", "-q")[0] == 0
    assert "é" in (tmp_path / "x.json").read_text(encoding="utf-8")
    code, out, err = zipar("generate", "a fox \udcff", "-m", text_model)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "no text" in err


def test_names_that_are_no_utf8(zipar, text_model, tmp_path):
    code, out, err = zipar("generate", "a fox", "-m", text_model, "-o", "x\udcff.png")
    assert (code, err) == (0, "")
    assert out.startswith("x\\udcff.png: ")
    (tmp_path / "m\udcff").symlink_to(text_model)
    assert json.loads(zipar("plan", "-m", "m\udcff", "--json")[1])["model"] == "m\udcff"
    code, out, err = zipar("generate", "a fox", "-m", "m\udcff")  # safetensors opens no such file
    assert (code, out, err.count("\n")) == (2, "", 1)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has it")
def test_stdout_that_takes_nothing(text_model):
    command = [sys.executable, "-m", "zipar", "--help"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (2, "error: No space left on device\n")


@pytest.mark.parametrize("module", ["typer", "torch"])
def test_an_interrupt_while_modules_are_imported_is_quiet(module):
    script = f"""if True:
        import runpy, sys

        class Interrupted:
            def find_spec(name, *_):
                if name == {module!r}:
                    raise KeyboardInterrupt

        sys.meta_path.insert(0, Interrupted)
        sys.argv = ["zipar", "generate", "a fox"]
        runpy.run_module("zipar", run_name="__main__")
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
