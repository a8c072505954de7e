import json
import tomllib
from typing import Any

import pytest

import reparam
from reparam.graph.explanation import Change, Explanation, Verdict
from tests.cli.conftest import RunCli

RULE = '[[stage.rule]]\nmatch = { path = "blocks.0.mlp.fc1" }\noperator = "shift_linear"'


def explanation_of(**changed: Any) -> Explanation:
    fields: dict[str, Any] = {
        "asked": "blocks.*.mlp.fc1",
        "path": "blocks.0.mlp.fc1",
        "type": "torch.nn.Linear",
        "recipe": "toy",
        "alike": tuple(f"blocks.{i}.mlp.fc1" for i in range(1, 11)),
        "others": ("blocks.11.mlp.fc1",),
        "verdicts": (
            Verdict(
                stage=0,
                stage_name="attention",
                outcome="no rule",
                kind="linear",
                reason="no rule picks it",
                missed={"stage 0, rule 0": 'it wants path = "head"'},
                changes=(Change(text="to make it shift_linear, put this into stage 0", toml=RULE),),
            ),
            Verdict(
                stage=1,
                stage_name="shift",
                outcome="becomes",
                kind="linear",
                operator="shift_linear",
                options={"bits": 4},
                remark="with a remark",
                rule="stage 1, rule 1",
            ),
        ),
        "facts": ("linear: takes (2, 4), gives (2, 4)",),
        "within": 'mlp "blocks.0.mlp"',
        "unseen": ("a branch",),
    }
    return Explanation.model_validate(fields | changed)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command line asked of `reparam.explain`; `answer` may hold what it gives."""
    arguments: dict[str, Any] = {}

    def explain(model: str, path: str, **options: Any) -> object:
        answer = arguments.pop("answer", explanation_of())
        arguments.update(options, model=model, path=path)
        return answer

    monkeypatch.setitem(vars(reparam), "explain", explain)
    return arguments


def test_without_options_the_library_gets_its_own_defaults(run_cli: RunCli, asked: dict[str, Any]) -> None:
    assert run_cli("explain", "deit_tiny", "blocks.0.attn").code == 0
    assert asked == {
        "model": "deit_tiny",
        "path": "blocks.0.attn",
        "recipe": None,
        "overrides": (),
        "num_classes": None,
        "img_size": None,
        "in_chans": None,
        "model_kwargs": {},
    }


def test_every_option_reaches_the_library(run_cli: RunCli, asked: dict[str, Any]) -> None:
    line = (
        "explain m head --recipe r --set stage.0.rule.0.bits=4 --num-classes 10 --img-size 32 --in-chans 1 "
        "--model-kwargs depth=2"
    )
    assert run_cli(*line.split()).code == 0
    assert asked == {
        "model": "m",
        "path": "head",
        "recipe": "r",
        "overrides": ["stage.0.rule.0.bits=4"],
        "num_classes": 10,
        "img_size": 32,
        "in_chans": 1,
        "model_kwargs": {"depth": 2},
    }


def test_json_is_the_explanation_and_nothing_else(run_cli: RunCli, asked: dict[str, Any]) -> None:
    answer = run_cli("explain", "m", "p", "--json")
    assert Explanation.model_validate(json.loads(answer.out)) == explanation_of()
    assert answer.err == ""


def test_the_answer_names_verdicts_neighbours_facts_and_what_was_not_seen(
    run_cli: RunCli, asked: dict[str, Any]
) -> None:
    assert run_cli("explain", "m", "p").out.splitlines() == [
        "blocks.0.mlp.fc1  torch.nn.Linear, recipe toy",
        "  10 other modules alike: blocks.1-10.mlp.fc1",
        "  1 module of the pattern unlike it: blocks.11.mlp.fc1",
        '  inside mlp "blocks.0.mlp"',
        "  a branch",
        "stage 0: attention",
        "  no rule picks it",
        '  stage 0, rule 0 does not pick it: it wants path = "head"',
        "  to make it shift_linear, put this into stage 0:",
        *(f"    {line}" for line in RULE.splitlines()),
        "stage 1: shift",
        "  becomes shift_linear bits=4; with a remark (stage 1, rule 1)",
        "found:",
        "  linear: takes (2, 4), gives (2, 4)",
    ]


def test_a_module_that_is_no_site_lists_the_tests_and_the_sites_inside(run_cli: RunCli, asked: dict[str, Any]) -> None:
    asked["answer"] = Explanation(
        asked="",
        path="",
        type="user.Net",
        recipe="toy",
        no_site={"attention": "no softmax", "linear": "its class is Net"},
        parts={"linear": tuple(f"blocks.{i}.fc" for i in range(3))},
    )
    assert run_cli("explain", "m", "").out.splitlines() == [
        "(the model)  user.Net, recipe toy",
        "no site of any kind:",
        "  attention: no softmax",
        "  linear: its class is Net",
        "sites inside it:",
        "  linear: blocks.0-2.fc",
    ]


def test_what_is_done_is_told_in_the_past_and_without_advice(run_cli: RunCli, asked: dict[str, Any]) -> None:
    change = Change(text="to keep it, put this before stage 0, rule 0", toml=RULE)
    verdict = Verdict(
        stage=0, stage_name="a", outcome="becomes", kind="linear", operator="shift_linear", changes=(change,)
    )
    done = [verdict.model_copy(update={"is_done": True}), *(verdict.model_copy(update={"number": n}) for n in (1, 2))]
    asked["answer"] = explanation_of(verdicts=done, alike=(), others=(), within=None, unseen=(), facts=())
    assert run_cli("explain", "m", "p").out.splitlines()[1:6] == [
        "stage 0: a",
        "  became shift_linear",
        "stage 0: a (sites 2 3 of its forward)",
        "  becomes shift_linear",
        "  to keep it, put this before stage 0, rule 0:",
    ]


@pytest.mark.parametrize("width", [40, 200])
def test_a_rule_can_be_copied_from_a_terminal_of_any_width(
    run_cli: RunCli, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    path = ".".join(["layers"] * 12)
    long = RULE.replace("blocks.0.mlp.fc1", path)
    verdict = Verdict(stage=0, stage_name="a", outcome="refused", changes=(Change(text="write", toml=long),))
    asked["answer"] = explanation_of(verdicts=[verdict], facts=())
    out = run_cli("explain", "m", "p").out
    written = tomllib.loads("[[stage]]\n" + out[out.index("[[stage.rule]]") :])
    assert written["stage"][0]["rule"][0]["match"] == {"path": path}


def test_an_unknown_path_is_bad_input(run_cli: RunCli) -> None:
    answer = run_cli("explain", "vit_tiny_patch16_224", "blok.0", "--img-size", "32")
    assert answer.code == 2
    assert 'error: VisionTransformer has no module or parameter "blok.0".' in answer.err
