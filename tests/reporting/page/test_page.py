"""The page as HTML, without a browser: whole, self-contained, and deaf to what names try to smuggle in."""

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from reparam.cost.measurement import Comparison, Measured, Measurement
from reparam.reporting.commands import Commands
from reparam.reporting.module_tree import Fate, ModuleNode
from reparam.reporting.page.page import render_page
from reparam.reporting.page.records import Missing, SiteLoss
from tests.reporting.page.facts import ROUTING, figures, history, page, run, tree

SECTIONS = ["summary", "modules", "cost", "exponents", "training", "routing", "sensitivity", "reproduce"]
MINUS = "\u2212"
_VOID = {"meta", "link", "img", "input", "br", "circle", "path"}


class Page(HTMLParser):
    """Tags with their attributes, the text outside scripts and styles, and whether every tag is closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def whole() -> str:
    return render_page(page())


def test_it_is_one_well_formed_document_with_every_section(whole: str) -> None:
    assert whole.startswith("<!doctype html>")
    assert [section["id"] for section in Page(whole).all("section")] == SECTIONS


def test_it_asks_nobody_for_anything(whole: str) -> None:
    for _, attributes in Page(whole).tags:
        for name in ("src", "href", "srcset", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), value
    assert not re.search(
        r"@import|url\((?!data:)|fetch\(|XMLHttpRequest|//[a-z]+\.[a-z]", whole.replace("http://www.w3.org", "")
    )


def test_navigation_and_labels_lead_somewhere(whole: str) -> None:
    parsed = Page(whole)
    identifiers = [attributes["id"] for _, attributes in parsed.tags if attributes.get("id")]
    assert len(identifiers) == len(set(identifiers))
    targets = [str(link["href"]).removeprefix("#") for link in parsed.all("a")]
    targets += [str(section["aria-labelledby"]) for section in parsed.all("section")]
    assert set(targets) <= set(identifiers)
    assert all(image.get("alt") for image in parsed.all("img"))


def test_it_says_what_is_measured_counted_and_modelled_and_shouts_where_it_is_slower(whole: str) -> None:
    text = Page(whole).text
    for word in ("measured here", "counted", "modelled", "slower than dense here"):
        assert word in text
    assert any("bad" in (attributes.get("class") or "") for attributes in Page(whole).all("b"))


HOSTILE = "\"'><script>alert(1)</script></script><img src=x onerror=alert(1)>{{ 7 * 777 }}</style>"


def test_names_cannot_smuggle_markup_in_anywhere() -> None:
    node = ModuleNode(
        name=HOSTILE, before=HOSTILE, after=HOSTILE + "!", parameters_before=1, parameters_after=1,
        fates=(Fate(operator=HOSTILE, stage=HOSTILE, rule=HOSTILE, why=HOSTILE, options={HOSTILE: HOSTILE}),),
    )  # fmt: skip
    images = tuple(image.model_copy(update={"truth": HOSTILE, "prediction": HOSTILE + "?"}) for image in ROUTING.images)
    layers = tuple(layer.model_copy(update={"path": HOSTILE + layer.path}) for layer in ROUTING.layers)
    (stage,) = history()
    epochs = tuple(
        type(epoch)(**{**{f: getattr(epoch, f) for f in epoch.__slots__}, "mult_share": {HOSTILE: 0.5}})
        for epoch in stage.epochs
    )
    told = type(stage)(report=stage.report, steps=stage.steps, epochs=epochs)
    site = SiteLoss(path=HOSTILE, kind="linear", operator=HOSTILE, top1_drop=1.0, kl=0.1)
    hostile = run(
        name=HOSTILE, folder=HOSTILE, model=HOSTILE, recipe=HOSTILE, summary=HOSTILE, paper=HOSTILE, tree=tree(node),
        unseen=(HOSTILE,), history=(told,), blocks=(HOSTILE, "b"),
        dense=figures(**{HOSTILE: {"mul.f32": 3}, "b": {"mul.f32": 1}}),
        exponents=tuple(layer.model_copy(update={"path": HOSTILE}) for layer in run().exponents),
        routing=ROUTING.model_copy(update={"images": images, "layers": layers, "where": HOSTILE}),
        sensitivity=(site,), commands=Commands(lines=(HOSTILE,), notes=(HOSTILE,)),
    )  # fmt: skip
    text = render_page(page(hostile, hostile))
    parsed = Page(text)
    assert len(parsed.all("script")) == 1
    assert len(parsed.all("img")) == 2 * len(images)
    assert not any(name.startswith("on") for _, attributes in parsed.tags for name in attributes)
    assert "<script>alert" not in text
    assert "<img src=x" not in text
    assert "5439" not in parsed.text
    assert [json.loads(str(chart["data-chart"])) for chart in parsed.all("figure") if "data-chart" in chart]


def test_a_section_without_facts_names_the_command_that_makes_it() -> None:
    bare = run(
        history=(), exponents=(), evaluation=None, dense_evaluation=None, stages=(),
        routing=Missing(why="It takes images", command="reparam report runs/run --data-dir DATA"),
    )  # fmt: skip
    text = Page(render_page(page(bare))).text
    for command in (
        "reparam finetune runs/run --data-dir DATA",
        "reparam report runs/run --data-dir DATA",
        "reparam sensitivity runs/run --data-dir DATA",
        "reparam evaluate runs/run --data-dir DATA",
    ):
        assert command in text


def test_sensitivity_is_ranked_by_divergence_and_signed_as_by_the_command() -> None:
    drops = ((0.5, 0.2), (-0.25, 0.3), (3.0, 0.9), (0.0, 0.1), (-0.001, 0.05))
    sites = tuple(
        SiteLoss(path=f"blocks.{i}", kind="mlp", operator="moe_mlp", top1_drop=drop, kl=kl)
        for i, (drop, kl) in enumerate(drops)
    )
    html = render_page(page(run(sensitivity=sites)))
    shown = [
        "blocks.2 moe_mlp +3.00 KL 9.00e-01",
        f"blocks.1 moe_mlp {MINUS}0.25 KL 3.00e-01",
        "blocks.0 moe_mlp +0.50 KL 2.00e-01",
        "blocks.3 moe_mlp +0.00 KL 1.00e-01",
        "blocks.4 moe_mlp +0.00 KL 5.00e-02",
    ]
    places = [Page(html).text.index(text) for text in shown]
    assert places == sorted(places)
    assert re.findall(r"left:0;width:([\d.]+)%", html) == ["100.00", "16.67"]


def measurement(status: str, batch_size: int, **changes: Any) -> Measurement:
    common = {"side": "dense", "engine": "bf16", "title": "eager, bf16"}
    return Measurement(**{**common, "status": status, "batch_size": batch_size, **changes})


def measured(*measurements: Measurement, ratio: float = 2.5, spread: float = 0.01) -> Measured:
    best = Comparison(
        batch_size=8, engine="bf16", title="eager, bf16", dense_ms=2.0, converted_ms=2 * ratio, ratio=ratio,
        spread=spread,
    )  # fmt: skip
    return Measured(
        machine="an EPYC", threads=2, torch="2.14", measurements=measurements, comparisons=(best,), schedules=(),
        no_energy=None,
    )  # fmt: skip


def baselines_text(found: Measured) -> str:
    text = Page(render_page(page(run(baselines=found)))).text
    return text.replace("\u00a0", " ").replace("\u00d7", "x")


def test_what_profile_measured_stands_with_its_machine_and_once_what_it_could_not() -> None:
    absent = [
        measurement("skipped", size, engine="openvino", title="OpenVINO", reason="it is not installed")
        for size in (1, 8)
    ]
    text = baselines_text(measured(measurement("measured", 8, latency=run().model_figures.latency), *absent))
    assert "8, dense: eager, bf16 2.00 ms" in text
    assert "on an EPYC, 2 threads, torch 2.14. OpenVINO skipped: it is not installed." in text
    assert text.count("OpenVINO skipped") == 1
    assert "--baselines all" not in text


def test_the_converted_model_is_held_against_the_best_dense_engine() -> None:
    slower = measured()
    assert "run is 2.50x slower than the best dense (eager, bf16) at batch 8." in baselines_text(slower)
    assert '<p class="notes bad">run is' in render_page(page(run(baselines=slower)))
    faster = measured(ratio=0.5, spread=0.3)
    told = "run is 2.00x faster than the best dense (eager, bf16) at batch 8; uncertain, rounds spread by 30 %."
    assert told in baselines_text(faster)
    assert '<p class="notes bad">run is' not in render_page(page(run(baselines=faster)))
    assert "run is as fast as the best dense" in baselines_text(measured(ratio=1.0))


def test_two_runs_stand_side_by_side() -> None:
    text = Page(render_page(page(run(), run(name="other", dense_evaluation=None)))).text
    assert text.count("run: evaluation") >= 1
    assert text.count("other: evaluation") >= 1


def test_the_overlay_says_that_class_tokens_are_left_out(whole: str) -> None:
    assert "Class and register tokens have no place in the image and are left out: 1 of each image." in Page(whole).text


def test_long_commands_are_broken_as_a_shell_takes_them() -> None:
    line = "reparam finetune runs/run " + " ".join(f"--setting-{i} {i}" for i in range(12))
    text = render_page(page(run(commands=Commands(lines=(line,)))))
    shown = re.findall(r'<code class="command" tabindex="0">(reparam finetune.*?)</code>', text, re.DOTALL)[-1]
    assert max(map(len, shown.splitlines())) <= 92
    assert shown.replace(" \\\n    ", " ") == line


def test_a_page_is_small(whole: str) -> None:
    assert len(whole.encode()) < 100_000
