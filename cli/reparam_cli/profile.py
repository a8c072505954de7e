"""`reparam profile`: counts and size of a run or a model, and what it takes here beside the best dense baselines."""

from typing import Annotated

import typer

import reparam
from reparam_cli.measuring_options import Baselines, BatchSizes, Threads, numbers
from reparam_cli.options import AsJson, Device, Source
from reparam_cli.streams import only_results_on_stdout, plain, print_json

Tables = Annotated[
    list[str] | None,
    typer.Option(
        "--table",
        metavar="NAME|FILE.toml",
        help="Energy table; may be repeated. shiftaddvit-eyeriss is the paper's own accounting.",
        show_default="all that are installed",
    ),
]
_IN = "Memory of the energy table that {} lie in, such as dram; moving them is priced then."
WeightsIn = Annotated[str | None, typer.Option("--weights-in", metavar="MEMORY", help=_IN.format("weights"))]
ActivationsIn = Annotated[
    str | None, typer.Option("--activations-in", metavar="MEMORY", help=_IN.format("activations"))
]
NoLatency = Annotated[bool, typer.Option("--no-latency", help="Count only; run nothing.")]
NoDense = Annotated[bool, typer.Option("--no-dense", help="Leave out the dense original of a run.")]


def profile(
    source: Source,
    *,
    batch_size: BatchSizes = None,
    baselines: Baselines = "quick",
    threads: Threads = None,
    device: Device = None,
    table: Tables = None,
    weights_in: WeightsIn = None,
    activations_in: ActivationsIn = None,
    no_latency: NoLatency = False,
    no_dense: NoDense = False,
    as_json: AsJson = False,
) -> None:
    """Count operations, price them in energy, and measure latency and memory beside the best dense baselines."""
    from reparam_cli.render.screen import message_console, show  # Rich, imported only when needed
    from reparam_cli.render.training import progress_on

    has_memory = weights_in is not None or activations_in is not None
    with only_results_on_stdout(), progress_on(message_console()) as progress:
        profiled = reparam.profile(
            source,
            batch_size=numbers(batch_size or ["1"], flag="--batch-size"),
            measure=not no_latency,
            baselines=baselines,
            threads=threads,
            device=device,
            tables=table,
            memory=reparam.MemoryLevels(weights=weights_in, activations=activations_in) if has_memory else None,
            with_dense=not no_dense,
            progress=progress,
        )
    if as_json:
        print_json(plain(profiled))
        return
    from reparam_cli.render.energy import energy_view
    from reparam_cli.render.measured import measured_view
    from reparam_cli.render.results import profile_view

    show(profile_view(profiled))
    show(energy_view(profiled, weights_in=weights_in, activations_in=activations_in))
    if profiled.measured is not None:
        show(measured_view(profiled.measured))
