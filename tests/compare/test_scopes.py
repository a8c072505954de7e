from reparam.compare.scopes import ScopedNode, module_outputs


def node(reads: str, writes: str, *scopes: str) -> ScopedNode:
    return ScopedNode(reads=tuple(reads.split()), writes=tuple(writes.split()), scopes=frozenset(scopes))


def test_a_modules_output_is_the_last_of_its_values_that_is_read_outside() -> None:
    nodes = [
        node("x", "size", "a"),  # read outside too, and earlier
        node("x", "product", "a", "a.fc"),
        node("product bias", "sum", "a", "a.fc"),
        node("sum", "act", "a"),
        node("act size", "y", "b"),
    ]
    assert module_outputs(nodes, ["y"]) == {"a.fc": "sum", "a": "act", "b": "y"}


def test_parts_stand_before_what_holds_them_and_values_nobody_reads_are_no_output() -> None:
    nodes = [node("x", "y unused", "a", "a.b", "a.b.c"), node("y", "z")]
    assert list(module_outputs(nodes, ["z"]).items()) == [("a.b.c", "y"), ("a.b", "y"), ("a", "y")]


def test_nodes_without_modules_give_none() -> None:
    assert module_outputs([node("x", "y"), node("y", "z")], ["z"]) == {}
