"""Help in named sections, printed without Rich: `--help` stays fast, and the same in a pipe as on a terminal."""

from typing import Any

from typer.core import TyperCommand


class SectionedCommand(TyperCommand):
    """A command whose `--help` lists its options under the headings given as `rich_help_panel`."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Writes one section per heading, in the order of first appearance."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is None:
                continue
            default = "Arguments" if param.param_type_name == "argument" else "Options"
            heading = getattr(param, "rich_help_panel", None) or default
            sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)
