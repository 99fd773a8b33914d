"""Whatever users type: all commands and all options, with values that they were not made for."""

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zipar.cli.main import app
from zipar.errors import ZipARError

EXAMPLES = settings(max_examples=200, suppress_health_check=list(HealthCheck))
NUMBERS = ("-1", "0", "1", "2.5", "nan", "inf", "-inf", "1e-39", "1e999", "3e38", "9" * 20, "9" * 5000, "x", "-", "--")
STRANGE = (
    "",
    " ",
    "\udcff",
    "a \udcff fox",
    "[/red]",
    "[bold]",
    "a\nb",
    "\x1b[31m",
    "\u202e",
    "ﷺ",
    "%s",
    "{}",
    "$HOME",
)
NAMES = (
    "cpu",
    "cuda:99",
    "meta",
    "float32",
    "int8",
    "wave",
    "raster",
    "zipar:4",
    "zipar:0",
    "zipar:x:y:z",
    "jacobi:inf",
)
SIZES = ("8x8", "16x16", "16x", "0x0", "9" * 40 + "x1", "1x" + "9" * 5000, "512")
FILES = (".", "..", "/", "nowhere/at/all", "x.png", "x.npy", "x.json", "x.gif", ".png", "/dev/null", "a/../x.png")
odd = st.one_of(
    *map(st.sampled_from, (NUMBERS, STRANGE, NAMES, SIZES, FILES)),
    st.text(st.characters(codec=None, exclude_characters="\0"), max_size=8),
)


def commands(command, *names):
    """All commands that there are, by their names: ("convert", "anole") -> the command."""
    parts = getattr(command, "commands", {})
    found = {} if parts else {names: command}
    for name, part in parts.items():
        found |= commands(part, *names, name)
    return found


COMMANDS = commands(typer.main.get_command(app))


@pytest.fixture
def offline(monkeypatch):
    """No hub; and commands that make many images, or serve them, stop where the work would begin."""

    def stop(self, *strategy):
        raise ZipARError("enough")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("zipar.evaluation.samples.Study.warm_up", stop)
    monkeypatch.setattr("zipar.serving.scheduler.Scheduler.warm_up", stop)
    monkeypatch.setattr("zipar.serving.folder.Manifest.__init__", stop)


@pytest.fixture(scope="module")
def lines(text_model, tmp_path_factory):
    """Of each command, a line that it takes, but for files that no converter does."""
    folder = tmp_path_factory.mktemp("typed")
    prompts, lined, weights = folder / "prompts.txt", folder / "prompts.jsonl", folder / "weights.pt"
    prompts.write_text("a fox\nan apple\n")
    lined.write_text('{"prompt": "a fox"}\n')
    weights.write_bytes(b"no checkpoint")
    model = ["--model", text_model]
    found = {
        ("generate",): ["a fox", *model, "--quiet"],
        ("compare",): ["a fox", *model, "--quiet", "--strategy", "zipar:8"],
        ("eval",): [prompts, *model, "--quiet", "--strategy", "zipar:8"],
        ("tune",): [prompts, *model, "--quiet", "--images", 2],
        ("plan",): model,
        ("prompts",): model,
        ("serve",): [*model, "--port", "0"],
        ("batch",): [lined, "out", *model],
        ("convert", "commavq"): [folder, "out"],
        ("convert", "cosmos"): [weights, folder, "out"],
        ("convert", "emu3"): [folder, folder, "out"],
        ("convert", "emu3.5"): [folder, folder, "out"],
        ("convert", "emu3.5-image"): [folder, folder, "out"],
        ("convert", "janus"): [folder, "out", "--template", "t2i-r1"],
        ("convert", "liquid"): [folder, weights, "out"],
        ("convert", "llamagen"): [weights, weights, "out"],
        ("convert", "lumina-mgpt"): [folder, weights, "out", "--image-size", "512"],
        ("convert", "lumina-mgpt-2"): [folder, weights, "out"],
        ("convert", "anole"): [folder, weights, "out"],
        ("convert", "simplear"): [folder, folder, "out"],
    }
    return {names: [*names, *map(str, words)] for names, words in found.items()}


def test_all_commands_are_walked(lines, zipar, offline):
    assert lines.keys() == COMMANDS.keys()
    for names, line in lines.items():
        assert zipar(*line)[0] == (2 if names[0] in ("eval", "tune", "serve", "batch", "convert") else 0), line


@EXAMPLES
@given(st.data())
def test_commands_end_in_one_line_whatever_is_typed(lines, zipar, offline, data):
    names = data.draw(st.sampled_from(sorted(COMMANDS)), "command")
    line = typed(names, lines[names], data)
    code, _, err = zipar(*line)
    assert code in (0, 2)
    assert (code == 2) == err.rpartition("\n")[0].rpartition("\n")[2].startswith("error: ")


def typed(names, line, data):
    """The line with an odd value in place of an argument, or of an option, which it may hold already."""
    parameters = [each for each in COMMANDS[names].params if each.name != "help"]
    parameter = data.draw(st.sampled_from(parameters), "parameter")
    value = data.draw(odd, parameter.name)
    if parameter.param_type_name == "option":
        name = data.draw(st.sampled_from([*parameter.opts, *parameter.secondary_opts]))
        if parameter.is_flag:
            return [*line, name]
        return [*line, f"{name}={value}" if name.startswith("--") else name + value]
    arguments = [each for each in parameters if each.param_type_name == "argument"]
    place = len(names) + arguments.index(parameter)
    return [*line[:place], value, *line[place + 1 :]]
