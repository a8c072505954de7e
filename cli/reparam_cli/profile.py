"""`reparam profile`: parameters, operations, size and latency of a run beside its dense original, or of any model."""

from pathlib import Path
from typing import Annotated

import typer

import reparam
from reparam_cli.options import AsJson, Source
from reparam_cli.streams import only_results_on_stdout, plain, print_json

BatchSize = Annotated[int, typer.Option("-b", "--batch-size", min=1, help="Images per forward.")]
NoLatency = Annotated[bool, typer.Option("--no-latency", help="Count only; run nothing.")]
NoDense = Annotated[bool, typer.Option("--no-dense", help="Leave out the dense original of a run.")]


def profile(
    source: Source,
    *,
    batch_size: BatchSize = 1,
    no_latency: NoLatency = False,
    no_dense: NoDense = False,
    as_json: AsJson = False,
) -> None:
    """Count parameters and operations and measure latency; a run stands beside its dense original."""
    original = Path(source) / "dense"
    with only_results_on_stdout():
        dense = None
        if original.is_dir() and not no_dense:
            dense = reparam.profile(str(original), batch_size=batch_size, measure=not no_latency)
        profiled = reparam.profile(source, batch_size=batch_size, measure=not no_latency)
    if as_json:
        print_json({**plain(profiled), "dense": plain(dense) if dense else None})
        return
    from reparam_cli.render.results import profile_view  # Rich, imported only when there is something to draw
    from reparam_cli.render.screen import show

    show(profile_view(profiled, dense=dense))
