"""What one torch function computes: how often it multiplies, adds, compares, ..., and what it moves.

Conventions, the same for every function:

- A multiply-accumulate is one `mul` and one `add`; a sum of n values is n additions, a maximum n comparisons.
- A mean multiplies its sum by a constant; dividing by a number known beforehand is a multiplication.
- `exp` stands for every transcendental function: exp, log, erf, sin, a general power. A tanh or a sigmoid is one, with
  the additions and the division around it.
- Flipping a sign and choosing between two values are free; views move nothing; what copies reads and writes each word.
- Batch norm in eval is one multiplication and one addition: its statistics are constants.
"""

from reparam.cost.formulas.activations import ACTIVATIONS
from reparam.cost.formulas.elementwise import ELEMENTWISE
from reparam.cost.formulas.form import Formula
from reparam.cost.formulas.moves import EXPANDING, FREE, MOVES
from reparam.cost.formulas.norms import NORMS
from reparam.cost.formulas.products import PRODUCTS
from reparam.cost.formulas.reductions import REDUCTIONS
from reparam.counts import OpCount
from reparam.trace.record import Op, Ref, Trace

_FORMULAS: dict[str, Formula] = {**PRODUCTS, **ACTIVATIONS, **ELEMENTWISE, **NORMS, **REDUCTIONS}


def count_op(op: Op) -> OpCount | None:
    """Returns the arithmetic of one torch function, empty for one that only moves data, None where none is known."""
    if op.name in FREE or op.name in MOVES:
        return OpCount()
    formula = _FORMULAS.get(op.name)
    return None if formula is None else formula(op)


def count_moves(op: Op, trace: Trace, *, images: int) -> OpCount:
    """Returns the words that one torch function reads and writes, each operand and result once.

    Weights, and whatever else follows from no input of the model, are read as "weight.f32", once for each image.
    """
    if op.name in FREE or (op.name == "getitem" and len(op.inputs) == 1):
        return OpCount()
    operands = dict.fromkeys(_stored(ref, trace) for ref in op.inputs)
    read = sum(ref.size for ref in operands if trace.depends_on_input(ref))
    weights = sum(ref.size for ref in operands if not trace.depends_on_input(ref))
    written = sum(ref.size for ref in dict.fromkeys(op.outputs))
    return OpCount({("read", "f32"): read, ("read", "weight.f32"): weights * images, ("write", "f32"): written})


def _stored(ref: Ref, trace: Trace) -> Ref:
    """What lies in memory where a value is an expanded view."""
    producer = trace.producer(ref)
    while producer is not None and producer.name in EXPANDING:
        ref = producer.inputs[0]
        producer = trace.producer(ref)
    return ref
