from reparam.survey.page import page
from tests.survey.stand_ins import attention, check, coverage, examination, reason

CHANNELS = "it attends over channels (cross-covariance), so it is already linear in the tokens"
WHOLE = examination("vit_a", tallies=[attention(found=12, converted=12)])
MIXED = examination(
    "xcit_b",
    tallies=[attention(found=10, converted=4, no_gain=3, refused=2, keep=1)],
    reasons=[reason(CHANNELS, 3, fate="no gain"), reason("it is causal", 2), reason("mine", 1, fate="keep")],
)
BROKEN = examination("vit_c", error="ValueError: a | b <c>")


def test_totals_are_those_of_the_records() -> None:
    text = page([coverage(WHOLE, MIXED, BROKEN)])
    for line in (
        "| examined | 3 |  |",
        "| with softmax attention | 2 | 22 |",
        "| converted |  | 16 |",
        "| refused or without gain for a mathematical reason |  | 3 |",
        "| refused or without gain for another reason |  | 2 |",
        "| kept by the recipe |  | 1 |",
        "| **converted or mathematically refused** | 1 (50.00 %) | 19 (86.36 %) |",
        "| ended by an error | 1 |  |",
    ):
        assert line in text.splitlines(), line


def test_every_failure_stands_there_by_name_with_its_reason() -> None:
    failed = examination("swin_d", checks=[check("forward"), check("gradients", "failed", "norm gets none")])
    lines = page([coverage(BROKEN, failed, WHOLE)]).splitlines()
    listed = lines[lines.index("### Failures") : lines.index("### What was not converted, and why")]
    assert listed[2:4] == ["- `vit_c`: ValueError: a \\| b \\<c>", "- `swin_d`: gradients: norm gets none"]
    assert not any("vit_a" in line for line in listed)
    assert "None." in page([coverage(WHOLE)]).splitlines()


def test_reasons_are_summed_and_told_apart() -> None:
    other = MIXED.model_copy(update={"name": "xcit_e"})
    lines = page([coverage(MIXED, other)]).splitlines()
    assert f"| attention | no gain | {CHANNELS} | yes | 6 | 2 | `xcit_b: blocks.0.attn` |" in lines
    assert "| attention | refused | it is causal | no | 4 | 2 | `xcit_b: blocks.0.attn` |" in lines
    assert not any(line.startswith("| attention | keep") for line in lines)
    assert "- `xcit_e`: 2 refused, it is causal" in lines
    assert "- `xcit_e`: 3 no gain" not in "\n".join(lines)


def test_a_family_is_one_row() -> None:
    lines = page([coverage(WHOLE, BROKEN, MIXED)]).splitlines()
    assert "| vit | 2 | 12 / 12 |  |  |  | 1 |" in lines
    assert "| xcit | 1 | 4 / 10 |  |  |  |  |" in lines


def test_full_depth_shows_checks_round_trips_and_what_was_not_reached() -> None:
    passed = WHOLE.model_copy(update={"checks": (check("exact round trip"), check("forward")), "stands_for": 5})
    cut = examination("vit_f", error="timed out after 9 s", checks=[check("exact round trip", "failed", "differs")])
    plain = examination("res_g", checks=[check("exact round trip", "not applicable", "no attention is converted")])
    lines = page([coverage(passed, cut, plain, depth="full")]).splitlines()
    assert "| exact round trip | 1 | 1 | 1 | 0 |" in lines
    assert "| forward | 1 | 0 | 0 | 2 |" in lines
    assert "The architectures without a failure stand for 6 of 7 names." in lines
    assert "| exact round trip | no attention is converted | 1 |" in lines
    assert "| vit | 2 | 12 / 12 |  |  |  | 1 / 2 | 1 |" in lines
    assert "| res | 1 |  |  |  |  |  |  |" in lines


def test_several_coverages_are_sections_and_figures_carry_versions_and_the_kind_of_machine() -> None:
    text = page([coverage(WHOLE), coverage(BROKEN, depth="full")])
    assert text.count("\n## `toy`, ") == 2
    assert "2 toys. Made with reparam 1, torch 2, timm 3; 2 cores, CPU." in text
    newer = MIXED.versions.model_copy(update={"torch": "9"})
    mixed = page([coverage(WHOLE, MIXED.model_copy(update={"versions": newer}))])
    assert "Made with reparam 1, torch 2, timm 3; reparam 1, torch 9, timm 3; 2 cores" in mixed
    assert text.endswith("|\n")
