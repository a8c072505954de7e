"""Which vector instructions a CPU has, among those that decide how fast it multiplies in 8 and 16 bits."""

import platform
from pathlib import Path

#: Flags of /proc/cpuinfo (x86 `flags`, Arm `Features`), and what the instructions are called.
_SETS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512 VNNI",
    "avx512_bf16": "AVX-512 BF16",
    "amx_int8": "AMX int8",
    "amx_bf16": "AMX BF16",
    "asimd": "NEON",
    "asimddp": "NEON dot product",
    "i8mm": "NEON i8mm",
    "bf16": "NEON BF16",
    "sve": "SVE",
}


def instruction_sets() -> tuple[str, ...]:
    """Names of those that this CPU has; the architecture alone where the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))), [])
    return tuple(name for flag, name in _SETS.items() if flag in flags) or (platform.machine(),)


def saturates() -> bool:
    """Whether int8 products of this CPU go through sums of two that 16 bits hold: x86 without VNNI."""
    sets = instruction_sets()
    return any(name.startswith("AVX") for name in sets) and not any(
        "VNNI" in name or name == "AMX int8" for name in sets
    )
