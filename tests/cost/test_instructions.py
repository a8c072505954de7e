from pathlib import Path

import pytest

from reparam.cost.instructions import instruction_sets


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
