from pathlib import Path

import pytest

from reparam.cost.instructions import instruction_sets, saturates


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("model name\t: A\nflags\t\t: fpu avx2 sse2 avx512f avx512_vnni\n", ("AVX2", "AVX-512", "AVX-512 VNNI")),
        ("flags\t\t: fpu avx2 avx_vnni_int8\n", ("AVX2",)),
        ("Features\t: fp asimd asimddp\n", ("NEON", "NEON dot product")),
        ("nothing of the kind\n", ("riscv64",)),
    ],
    ids=["x86", "a longer flag is another one", "arm", "unknown"],
)
def test_sets_are_read_from_the_flags(text: str, wanted: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path, **options: text)
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert instruction_sets() == wanted


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ("flags: avx2", True),
        ("flags: avx2 avx512f", True),
        ("flags: avx2 avx512f avx512_vnni", False),
        ("flags: avx2 avx_vnni", False),
        ("Features: asimd asimddp", False),
    ],
)
def test_only_x86_without_vnni_adds_two_int8_products_in_16_bits(
    flags: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path, **options: flags)
    assert saturates() is wanted
