"""Energy tables: one TOML file each, with its citation; packages bring theirs by the entry point `reparam.energy`."""

import tomllib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from reparam.counts import VERBS
from reparam.errors import CostError
from reparam.recipe.schema import Frozen
from reparam.suggest import did_you_mean

_SHIPPED = Path(__file__).parent / "tables"
#: An entry point of this group is the path of a TOML file.
_GROUP = "reparam.energy"
Picojoules = Annotated[float, Field(ge=0, allow_inf_nan=False)]
#: "f32" or "i8".
Type = Annotated[str, Field(pattern=r"^[fi]\d+$")]


class EnergyTable(Frozen):
    """What one operation costs, in picojoules.

    Attributes:
        name: how options call it.
        title: what it is a table of: process node, voltage, board.
        source: citation.
        operations: pJ of one operation, by verb and operand type: {"mul.f32": 3.7, ...}.
        memory: pJ of one bit that is read from or written to each memory.
        stand_ins: for a verb that the source lacks, the one whose price it takes.
    """

    name: Annotated[str, Field(pattern=r"^[\w.+-]+$")]
    title: str
    source: Annotated[str, Field(min_length=1)]
    operations: Annotated[dict[str, Picojoules], Field(min_length=1)]
    memory: dict[str, Picojoules] = Field(default_factory=dict)
    stand_ins: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _knows_its_verbs(self) -> "EnergyTable":
        verbs = {key.partition(".")[0] for key in self.operations} | self.stand_ins.keys()
        for verb in sorted(verbs - set(VERBS)):
            hint = did_you_mean(verb, VERBS) or f" Known: {', '.join(VERBS)}."
            raise ValueError(f'unknown verb "{verb}".{hint}')
        return self


class MemoryLevels(Frozen):
    """Which memory of a table weights and activations lie in; None leaves their transport out."""

    weights: str | None = None
    activations: str | None = None


class _File(Frozen):
    """A table as its file holds it: operations by verb, then by type."""

    name: str
    title: str
    source: str
    operations: dict[str, dict[Type, Picojoules]]
    memory: dict[str, Picojoules] = Field(default_factory=dict)
    stand_ins: dict[str, str] = Field(default_factory=dict)


@cache
def energy_tables() -> Mapping[str, EnergyTable]:
    """Every shipped table, and those of installed packages, by name.

    Raises:
        CostError: a table cannot be read, or two have one name.
    """
    shipped = sorted(_SHIPPED.glob("*.toml"))
    tables: dict[str, EnergyTable] = {}
    for path in (*shipped, *(Path(point.load()) for point in entry_points(group=_GROUP))):
        table = read_table(path)
        if table.name in tables:
            raise CostError(f'two energy tables are called "{table.name}"; the second is {path}')
        tables[table.name] = table
    return tables


def load_table(source: str | Path) -> EnergyTable:
    """Returns the table of a name, or of a TOML file.

    Raises:
        CostError: no table has that name, or the file is not one.
    """
    if isinstance(source, Path) or source.endswith(".toml"):
        return read_table(Path(source))
    tables = energy_tables()
    if source not in tables:
        hint = did_you_mean(source, tables) or f" Known: {', '.join(tables)}; or give a .toml file."
        if source == "shiftaddvit-eyeriss":
            hint = " That is no table but an accounting of whole layers, which only profile has."
        raise CostError(f'unknown energy table "{source}".{hint}')
    return tables[source]


def read_table(path: Path) -> EnergyTable:
    """Reads a table from its TOML file; raises CostError with every fault at once."""
    try:
        written = _File.model_validate(tomllib.loads(path.read_text("utf-8")))
        flat = {f"{verb}.{dtype}": pj for verb, of in written.operations.items() for dtype, pj in of.items()}
        fields: dict[str, Any] = {**written.model_dump(), "operations": flat}
        return EnergyTable.model_validate(fields)
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise CostError(f"energy table {path} cannot be read: {reason}") from None
    except tomllib.TOMLDecodeError as error:
        raise CostError(f"energy table {path} is not TOML: {error}") from None
    except ValidationError as error:
        faults = [f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}" for fault in error.errors()]
        raise CostError("\n".join(f"energy table {path}: {fault}" for fault in faults)) from None
