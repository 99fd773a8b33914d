"""``zipar serve``: an image server that OpenAI's clients can talk to."""

from typing import Annotated

import typer

from zipar.cli import options
from zipar.errors import ZipARError, reason

PANEL = "Capacity"


def serve(
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="An embedded model, a checkpoint directory or a hub id; may be given several times. Requests that "
            "name none get the first.",
            show_default="emoji",
        ),
    ] = None,
    aliases: Annotated[
        list[str] | None,
        typer.Option(
            "--alias",
            metavar="NAME[=MODEL]",
            help="Another name for a model, the first unless told otherwise: gpt-image-1, say, for front ends that "
            "know no other; may be given several times.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, metavar="NUMBER", help="0 for any that is free.")] = 8000,
    strategy: Annotated[
        str | None,
        typer.Option(
            "--strategy",
            "-s",
            metavar="NAME[:NUMBER...]",
            help="Of requests that name none, such as zipar:8.",
            show_default=f"what `zipar tune` chose, else {options.DEFAULT_STRATEGY}",
        ),
    ] = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option(
            "--size",
            metavar="HxW",
            help="Height x width in pixels that may be asked for besides the models' own; may be given several times.",
            show_default=False,
        ),
    ] = None,
    dtype: options.WeightType = None,
    quantize: options.Quantize = None,
    device: options.Device = None,
    cuda_graphs: options.CudaGraphs = True,
    rows: options.Rows = 8,
    lanes: Annotated[
        int,
        typer.Option(
            min=1,
            max=64,
            metavar="NUMBER",
            help="Held at most: each is for images of one model, size, strategy and filters.",
            rich_help_panel=PANEL,
        ),
    ] = 2,
    queue: Annotated[
        int,
        typer.Option(
            min=10, max=65536, metavar="IMAGES", help="That wait at most; more are refused.", rich_help_panel=PANEL
        ),
    ] = 64,
    longest_prompt: options.LongestPrompt = 256,
    api_key: Annotated[
        str | None,
        typer.Option(
            envvar="ZIPAR_API_KEY",
            metavar="KEY",
            help="That requests must bring.",
            show_default=False,
        ),
    ] = None,
    allowed_origins: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-origin",
            metavar="URL",
            help="Of web pages that may ask from browsers, such as https://example.org; may be given several times.",
            show_default="none",
        ),
    ] = None,
    log_json: Annotated[bool, typer.Option("--log-json", help="Write the log as JSON, a line a request.")] = False,
) -> None:
    """Serve models over HTTP, as OpenAI's API for images does. Needs the extra zipar-torch\\[serve].

    Images join those that are being decoded, and leave as they are done. SIGTERM and Ctrl-C finish what was accepted; a
    second one does not. http://HOST:PORT/docs has the API, /metrics figures for Prometheus.
    """
    wanted = [size for text in sizes or () if (size := options.parse_size(text))]
    names = list(dict.fromkeys(models or ["emoji"]))
    pairs = dict(alias.partition("=")[::2] for alias in aliases or ())
    if api_key is not None and not api_key.strip():
        raise ZipARError("the API key is empty: give one, or leave it out to let everybody in")
    try:
        from zipar.serving import server
        from zipar.serving.app import application
    except ImportError as error:
        raise ZipARError(f"a server needs more packages ({reason(error)}): pip install 'zipar-torch[serve]'") from error
    taken = server.bind(host, port)

    from zipar.cli import session
    from zipar.decoding.names import parse
    from zipar.models.auto import find
    from zipar.serving.scheduler import Scheduler
    from zipar.serving.served import Served

    chosen = None if strategy is None else parse(strategy)
    served = []
    for name in names:
        pipe = session.load(name, find(name), dtype, quantize, device, cuda_graphs, quiet=False)
        pipe.strategy = chosen or pipe.strategy
        served.append(Served.of(name, pipe, longest_prompt, wanted))
    known = {alias: model or names[0] for alias, model in pairs.items()}
    with session.enough_memory(), Scheduler(served, rows=rows, lanes=lanes, queue=queue, aliases=known) as scheduler:
        scheduler.warm_up()
        for each in served:
            print(f"{each.name}: {', '.join(each.sizes)} pixels, lanes of {scheduler.memory(each) / 2**20:.0f} MiB")
        most = lanes * max(map(scheduler.memory, served))
        print(f"{lanes} lanes of {rows} images: {most / 2**20:.0f} MiB of keys and values at most")
        address, number = taken.getsockname()[:2]
        url = f"http://{f'[{address}]' if ':' in address else address}:{number}/v1"
        app = application(scheduler, api_key=api_key, allowed_origins=allowed_origins or ())
        server.run(app, scheduler, taken, lambda: print(f"{url} is ready", flush=True), log_json)
