"""The routing map as overlays: for each layer and image a path over the multiplied tokens, and one over the others."""

from dataclasses import dataclass

from reparam.reporting.page import words
from reparam.reporting.page.records import RoutingFacts
from reparam.reporting.routing_map import LayerMap


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageOverlay:
    """Paths in units of tokens, and the share of the image's tokens that were multiplied."""

    multiplied: str
    shifted: str
    share: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerOverlay:
    """One layer that has a map, over every image."""

    title: str
    share: str
    width: int
    height: int
    prefix: int
    images: tuple[ImageOverlay, ...]


def draw_overlays(facts: RoutingFacts) -> tuple[LayerOverlay, ...]:
    """One overlay for each layer with a token grid."""
    return tuple(_layer(layer) for layer in facts.layers if layer.grid is not None)


def without_map(facts: RoutingFacts) -> tuple[tuple[str, str], ...]:
    """Path and reason of each layer without one."""
    return tuple((_name(layer), layer.no_grid) for layer in facts.layers if layer.no_grid)


def _layer(layer: LayerMap) -> LayerOverlay:
    assert layer.grid is not None
    every = "".join("".join(rows) for rows in layer.multiplied)
    return LayerOverlay(
        title=_name(layer),
        share=_share(every),
        width=layer.grid.width,
        height=layer.grid.height,
        prefix=layer.grid.prefix,
        images=tuple(_image(rows) for rows in layer.multiplied),
    )


def _image(rows: tuple[str, ...]) -> ImageOverlay:
    return ImageOverlay(multiplied=_path(rows, "1"), shifted=_path(rows, "0"), share=_share("".join(rows)))


def _path(rows: tuple[str, ...], digit: str) -> str:
    """Rectangles one token high over each run of `digit` in a row."""
    pieces = []
    for y, row in enumerate(rows):
        x = 0
        while x < len(row):
            run = len(row) - x - len(row[x:].lstrip(digit))
            if run:
                pieces.append(f"M{x} {y}h{run}v1h-{run}z")
            x += run or 1
    return "".join(pieces)


def _share(digits: str) -> str:
    return words.share(digits.count("1") / max(1, len(digits)))


def _name(layer: LayerMap) -> str:
    return layer.path.removesuffix(".router")
