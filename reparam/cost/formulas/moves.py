"""Functions that compute nothing: views and constants, which are free, and copies, which move words."""

#: Views that show one word in many places.
EXPANDING = {"broadcast_to", "broadcast_tensors", "expand", "expand_as"}

FREE = EXPANDING | {
    "alias", "arange", "as_strided", "as_tensor", "chunk", "data", "detach", "dropout", "empty",
    "empty_like", "flatten", "float", "full", "full_like", "getattr", "grad", "invert", "iter",
    "linspace", "logical_not", "long", "meshgrid", "movedim", "mT", "narrow", "neg", "new_empty", "new_full",
    "new_ones", "new_tensor", "new_zeros", "ones", "ones_like", "permute", "real", "requires_grad", "reshape",
    "reshape_as", "select", "split", "split_with_sizes", "squeeze", "swapaxes", "swapdims", "T", "t", "tensor",
    "tensor_split",
    "to", "transpose", "type", "type_as", "unbind", "unflatten", "unsafe_split", "unsqueeze", "view", "view_as",
    "zeros", "zeros_like",
}  # fmt: skip

MOVES = {
    "cat", "clone", "concat", "contiguous", "copy", "embedding", "fill", "flip", "gather", "getitem", "index_copy",
    "index_put", "index_select", "masked_fill", "masked_scatter", "masked_select", "one_hot", "pad", "pixel_shuffle",
    "pixel_unshuffle", "repeat", "repeat_interleave", "roll", "rot90", "scatter", "scatter_add", "setitem", "stack",
    "take_along_dim", "tile", "tril", "triu", "unfold", "where",
}  # fmt: skip
