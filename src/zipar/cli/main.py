"""Entry point of ``zipar``: finds the command, and turns whatever goes wrong into one line and an exit code."""

import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, TextIO

import typer

import zipar
from zipar.cli import batch, compare, convert, evaluate, generate, plan, prompts, serve, tune
from zipar.cli.terminal import give_up_stdout, spell_out
from zipar.errors import ZipARError, reason

app = typer.Typer(
    name="zipar",
    help="Autoregressive image models, several times faster, with no retraining.",
    epilog="`zipar COMMAND --help` tells more. Bad input exits with code 2, Ctrl-C with 130.",
    add_completion=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("generate")(generate.generate)
app.command("compare")(compare.compare)
app.command("eval")(evaluate.evaluate)
app.command("tune")(tune.tune)
app.command("serve")(serve.serve)
app.command("batch")(batch.batch)
app.command("plan")(plan.plan)
app.command("prompts")(prompts.prompts)
app.add_typer(convert.app, name="convert")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"zipar {zipar.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _zipar(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line ``args`` (None for the process's own); returns the exit code."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    spell_out()
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
            warnings.filterwarnings("default", category=UserWarning, module=r"zipar(\.|$)")
        warnings.showwarning = _show_warning
        try:
            result = typer.main.get_command(app).main(args, prog_name="zipar", standalone_mode=False)
            if sys.stdout is not None:  # closed by whoever started the process
                sys.stdout.flush()
        except (ZipARError, typer.TyperException) as error:
            message = error.format_message() if isinstance(error, typer.TyperException) else str(error)
            _tell("error", message)
            return 2
        except OSError as error:  # what the system refuses, such as a full disk behind stdout
            _tell("error", f"{error.filename}: {reason(error)}" if error.filename else reason(error))
            give_up_stdout()
            return 2
    return result if isinstance(result, int) else 0


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    _tell("warning", str(message))


def _tell(kind: str, message: str) -> None:
    with suppress(OSError):  # where nothing can be told, the exit code does
        print(f"{kind}: {' '.join(message.split())}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
