"""``zipar serve``: an image server that OpenAI's clients can talk to."""

import re
from functools import partial
from typing import Annotated

import typer

from zipar.arguments import shown
from zipar.cli import options
from zipar.cli.terminal import orderly
from zipar.errors import ZipARError, reason
from zipar.serving import torchrun


@orderly()
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
            rich_help_panel=options.CAPACITY,
        ),
    ] = 2,
    queue: Annotated[
        int,
        typer.Option(
            min=10,
            max=65536,
            metavar="IMAGES",
            help="That wait at most; more are refused.",
            rich_help_panel=options.CAPACITY,
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
    ray: options.Ray = False,
    ray_address: options.RayAddress = None,
    replicas: Annotated[
        str,
        typer.Option(
            metavar="NUMBER[-MOST]",
            help="With --ray: processes with all models each, and a queue of their own; 1-4 for as many as there is "
            "work for.",
            **options.RAY,
        ),
    ] = "1",
) -> None:
    """Serve models over HTTP, as OpenAI's API for images does. Needs the extra zipar-torch\\[serve].

    Images join those that are being decoded, and leave as they are done. SIGTERM and Ctrl-C finish what was accepted; a
    second one does not. http://HOST:PORT/ is a page to try it, /openapi.json has the API, /metrics has figures for
    Prometheus.
    """
    wanted = [size for text in sizes or () if (size := options.parse_size(text))]
    names = list(dict.fromkeys(models or ["emoji"]))
    pairs = dict(alias.partition("=")[::2] for alias in aliases or ())
    aliased = {alias: model or names[0] for alias, model in pairs.items()}
    if api_key is not None and not api_key.strip():
        raise ZipARError("the API key is empty: give one, or leave it out to let everybody in")
    bounds = re.fullmatch(r"([1-9]\d{0,3})(?:-([1-9]\d{0,3}))?", replicas.strip(), re.ASCII)
    if not bounds or int(bounds[2] or bounds[1]) < int(bounds[1]):
        raise ZipARError(f"replicas {shown(replicas)} are none: use a number or two, such as 2 or 1-4")
    least, most = int(bounds[1]), int(bounds[2] or bounds[1])
    if most > 1 and not ray:
        raise ZipARError(f"--replicas {replicas} are of a Ray cluster: add --ray")
    if ray:
        torchrun.check_without_ray()
        if not port:
            raise ZipARError("port 0 is not possible with --ray, where each machine has it: give one")
        try:
            from zipar.serving.replicas import Setup, run
        except ImportError as error:
            raise ZipARError(f"this needs more packages ({reason(error)}): pip install 'zipar-torch[ray]'") from error
        from zipar.cli import session

        setup = Setup(
            models={name: session.anywhere(name) for name in names},
            strategy=strategy,
            sizes=wanted,
            dtype=dtype and dtype.value,
            quantize=quantize and quantize.value,
            device=device,
            cuda_graphs=cuda_graphs,
            rows=rows,
            lanes=lanes,
            queue=queue,
            longest_prompt=longest_prompt,
            aliases=aliased,
            api_key=api_key,
            allowed_origins=allowed_origins or (),
        )
        run(setup, ray_address, host, port, (least, most))
        return
    try:
        from zipar.serving import server
        from zipar.serving.app import application
    except ImportError as error:
        raise ZipARError(f"a server needs more packages ({reason(error)}): pip install 'zipar-torch[serve]'") from error
    from zipar.cli import session
    from zipar.decoding.names import parse
    from zipar.models.auto import find
    from zipar.serving.scheduler import Scheduler
    from zipar.serving.served import Served
    from zipar.serving.shards import follow, leading
    from zipar.serving.threads import aside

    chosen = None if strategy is None else parse(strategy)

    def load() -> list[Served]:
        several, quiet = torchrun.several(), torchrun.follows()
        served = []
        for name in names:
            place = find(name)
            pipe = aside(
                partial(session.load, name, place, dtype, quantize, device, cuda_graphs, quiet, tensor_parallel=several)
            )
            pipe.strategy = chosen or pipe.strategy
            served.append(Served.of(name, pipe, longest_prompt, wanted))
        return served

    if torchrun.follows():
        follow(load)
        return
    taken = server.bind(host, port)
    with session.enough_memory(), leading() as leader:
        leader.call_up()
        served = load()
        with Scheduler(served, rows=rows, lanes=lanes, queue=queue, aliases=aliased, lane=leader.lane) as scheduler:
            scheduler.warm_up()
            for each in served:
                print(f"{each.name}: {', '.join(each.sizes)} pixels, lanes of {scheduler.memory(each) / 2**20:.0f} MiB")
            memory = lanes * max(map(scheduler.memory, served))
            print(f"{lanes} lanes of {rows} images: {memory / 2**20:.0f} MiB of keys and values at most")
            address, number = taken.getsockname()[:2]
            url = f"http://{f'[{address}]' if ':' in address else address}:{number}/v1"
            app = application(scheduler, api_key=api_key, allowed_origins=allowed_origins or ())
            server.run(app, scheduler, taken, lambda: print(f"{url} is ready", flush=True), log_json)
