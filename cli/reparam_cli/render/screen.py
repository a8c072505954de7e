"""The two consoles, and how numbers are written. Colour, width and NO_COLOR are Rich's to decide."""

from rich.console import Console, RenderableType
from rich.table import Table

#: A narrower terminal breaks lines by itself, and loses nothing; Rich would leave out columns of tables.
_NARROWEST = 80


def show(*views: RenderableType) -> None:
    """Prints views on stdout."""
    console = Console(highlight=False)
    console.width = max(console.width, _NARROWEST)
    for view in views:
        console.print(view)


def message_console() -> Console:
    """The console for progress and notes: stderr."""
    return Console(stderr=True, highlight=False)


def columns(*, expand: bool = False) -> Table:
    """An empty table without lines, for aligned columns."""
    return Table.grid(padding=(0, 2), expand=expand)


def plain_table(*headings: str, title: str | None = None) -> Table:
    """An empty table with headings; the first column is text, the others are numbers."""
    table = Table(title=title, title_justify="left", box=None, header_style="bold", pad_edge=False, padding=(0, 1))
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right", overflow="fold", no_wrap=index > 0)
    return table


def amount(n: float) -> str:
    """Writes a count with three figures and a decimal prefix: 5.72 M."""
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(n) >= size * 0.9995:
            return f"{three_figures(n / size)} {prefix}"
    return three_figures(n) if n != int(n) else str(int(n))


def three_figures(n: float) -> str:
    """Writes a number with three significant figures: 5.90, 420, 12300."""
    return f"{n:#.3g}".rstrip(".") if abs(n) < 1000 else f"{n:.0f}"


def change(before: float, after: float) -> str:
    """Writes how an amount changed: `2.3x fewer`, `1.2x more`, `same`."""
    if before == after:
        return "same"
    if not before or not after:
        return "all new" if after else "all gone"
    ratio = before / after
    return f"{_factor(ratio)}x fewer" if ratio > 1 else f"{_factor(1 / ratio)}x more"


def file_size(n: int) -> str:
    """Writes bytes with a decimal prefix: 22.9 MB."""
    return f"{amount(n)}B" if n >= 1000 else f"{n} B"


def experts(mult_share: float) -> str:
    """Writes which share of the tokens took which expert."""
    return f"mult {mult_share:.0%} shift {1 - mult_share:.0%}"


def clock(seconds: float) -> str:
    """Writes seconds as `0:42` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def duration(seconds: float) -> str:
    """Writes seconds as `42 s` or `2 min 03 s`."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def _factor(ratio: float) -> str:
    return f"{ratio:.3f}" if ratio < 1.01 else three_figures(ratio)
