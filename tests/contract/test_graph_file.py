"""Graph files: what is refused before anybody loads them, with `onnx` itself as the judge of what a file says."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from skillserve import graph_wire
from skillserve.errors import RepositoryError
from skillserve.graph_file import CONTRIBUTED, check_graph

FLIPS = 200
OPSETS = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("evil", 1)]


def small_graph(
    *, domain: str = "", inner_domain: str = "", product: str = "MatMul", inner: str = "Identity"
) -> onnx.ModelProto:
    """A product and a branch with a constant of its own; domain and name of the outer operator and the branch's."""
    weights = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "weights")
    constant = numpy_helper.from_array(np.ones(4, np.float32), "one")
    value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, [4])
    branch = helper.make_graph(
        [helper.make_node(inner, ["one"], ["inner"], domain=inner_domain)], "branch", [], [value], [constant]
    )
    nodes = [
        helper.make_node(product, ["x", "weights"], ["y"], domain=domain),
        helper.make_node("If", ["flag"], ["z"], then_branch=branch, else_branch=branch),
        helper.make_node("Add", ["y", "z"], ["sum"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3]),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, []),
        ],
        [helper.make_tensor_value_info("sum", TensorProto.FLOAT, ["n", 4])],
        [weights],
    )
    return helper.make_model(graph, opset_imports=OPSETS, ir_version=8)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(small_graph(), path)
    return path


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """The same graph with its weights in `model.onnx.data`."""
    path = tmp_path / "model.onnx"
    model = small_graph()
    onnx.save_model(model, path, save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    return path


def edited(path: Path, **entries: str | None) -> Path:
    """Change, add or drop (None) entries of the first tensor's external data."""
    model = onnx.load(path, load_external_data=False)
    tensor = model.graph.initializer[0]
    kept = {entry.key: entry.value for entry in tensor.external_data} | entries
    del tensor.external_data[:]
    for key, value in kept.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    return path


def test_a_sound_graph_passes_with_the_vendor_checker(graph: Path, external: Path) -> None:
    for path in (graph, external):
        found = check_graph(path, checker=onnx.checker.check_model)
        assert found.contributed == frozenset()
    assert check_graph(external).names == ("model.onnx", "model.onnx.data")
    assert (
        check_graph(external).num_bytes
        == external.stat().st_size + (external.parent / "model.onnx.data").stat().st_size
    )


def test_the_graph_digest_is_what_sha256sum_says_of_all_files(external: Path) -> None:
    names = ("model.onnx", "model.onnx.data")
    lines = "".join(f"{name}:{hashlib.sha256((external.parent / name).read_bytes()).hexdigest()}\n" for name in names)
    digest = hashlib.sha256(lines.encode()).hexdigest()
    assert check_graph(external).digest() == digest
    check_graph(external, digest=digest)
    data = external.parent / "model.onnx.data"
    content = bytearray(data.read_bytes())
    content[5] ^= 1
    data.write_bytes(bytes(content))
    with pytest.raises(RepositoryError, match="graph digest"):
        check_graph(external, digest=digest)


def test_operators_of_unknown_domains_are_refused_wherever_they_hide(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for where in ("domain", "inner_domain"):
        onnx.save(small_graph(**{where: "evil"}), path)
        with pytest.raises(RepositoryError, match="evil"):
            check_graph(path)
    model = small_graph()
    node = helper.make_node("Relu", ["a"], ["b"], domain="evil")
    model.functions.append(helper.make_function("local", "f", ["a"], ["b"], [node], OPSETS))
    onnx.save(model, path)
    with pytest.raises(RepositoryError, match="evil"):
        check_graph(path)


@pytest.mark.parametrize(("where", "what"), [("domain", "product"), ("inner_domain", "inner")])
def test_of_the_contributed_operators_only_known_ones_pass_where_they_belong(
    tmp_path: Path, where: str, what: str
) -> None:
    """The domain is ONNX Runtime's own, and no reason to run whatever else is in it."""
    path = tmp_path / "model.onnx"
    onnx.save(small_graph(**{where: "com.microsoft", what: "MatMulNBits"}), path)
    assert check_graph(path).contributed == {"MatMulNBits"}
    for precision, known in CONTRIBUTED.items():
        if precision in {"w8", "w4"}:
            check_graph(path, contributed=known)
            continue
        with pytest.raises(RepositoryError, match=r"com\.microsoft:MatMulNBits"):
            check_graph(path, contributed=known)
    for other in ("MatMul", "matmulnbits", "Attention", ""):
        onnx.save(small_graph(**{where: "com.microsoft", what: other}), path)
        with pytest.raises(RepositoryError, match=r"only standard operators, .*:FusedMatMul, .*:MatMulNBits"):
            check_graph(path)


@pytest.mark.parametrize(
    "location",
    ["../secret", "/etc/passwd", "a/../../secret", "./model.onnx.data", "", "*/_ORT_MEM_ADDR_/*", "a\\b", "model.onnx"],
)
def test_external_data_stays_in_its_folder_under_a_plain_name(external: Path, location: str) -> None:
    (external.parent.parent / "secret").write_bytes(bytes(1000))
    with pytest.raises(RepositoryError, match="plain path"):
        check_graph(edited(external, location=location))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"offset": "-1"}, "whole number"),
        ({"offset": "9" * 30}, "whole number"),
        ({"length": "47"}, "as its shape needs"),
        ({"length": "x"}, "whole number"),
        ({"location": "absent.data"}, "No such file"),
        ({"location": None}, "plain path"),
        ({"basepath": "/"}, "basepath"),
    ],
)
def test_external_data_that_does_not_fit_is_refused(external: Path, entries: dict[str, str | None], words: str) -> None:
    with pytest.raises(RepositoryError, match=words):
        check_graph(edited(external, **entries))


def test_the_last_byte_of_a_tensor_lies_in_its_file(external: Path) -> None:
    size = (external.parent / "model.onnx.data").stat().st_size
    check_graph(edited(external, offset=str(size - 48)))
    with pytest.raises(RepositoryError, match=f"{size + 1}, which its tensors need"):
        check_graph(edited(external, offset=str(size - 47)))


def test_a_length_that_is_not_given_is_the_shape(external: Path) -> None:
    check_graph(edited(external, length=None))


_PUTS: dict[str, Callable[[Path, Path], object]] = {
    "symbolic link": lambda place, content: place.symlink_to(content),
    "2 names": lambda place, content: os.link(content, place),
    "no regular file": lambda place, _: os.mkfifo(place),
    "which is no regular file": lambda place, _: place.mkdir(),
}


@pytest.mark.parametrize("words", _PUTS)
@pytest.mark.parametrize("victim", ["model.onnx", "model.onnx.data"])
def test_links_pipes_and_folders_are_refused(external: Path, victim: str, words: str) -> None:
    """The right content stands behind the links."""
    place, aside = external.parent / victim, external.parent / "aside"
    place.rename(aside)
    _PUTS[words](place, aside)
    with pytest.raises(RepositoryError, match=words):
        check_graph(external)


def test_a_link_on_the_way_to_external_data_is_refused(external: Path) -> None:
    (external.parent / "inner").symlink_to(external.parent)
    with pytest.raises(RepositoryError, match="symbolic link at `inner`"):
        check_graph(edited(external, location="inner/model.onnx.data"))


def test_a_graph_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="No such file"):
        check_graph(tmp_path / "nothing.onnx")


def test_a_graph_of_a_limited_size(external: Path) -> None:
    with pytest.raises(RepositoryError, match="--max-graph-gib"):
        check_graph(external, max_gib=1e-9)
    check_graph(external, max_gib=1)


def test_a_model_beyond_two_gibibytes_is_not_even_read(tmp_path: Path) -> None:
    """A sparse file: it takes no room."""
    path = tmp_path / "model.onnx"
    with path.open("wb") as file:
        file.truncate(1 << 31)
    with pytest.raises(RepositoryError, match="at most 2 GiB"):
        check_graph(path)


def test_what_only_the_vendor_knows_is_refused_in_our_words(tmp_path: Path) -> None:
    model = small_graph()
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "model.onnx")
    check_graph(tmp_path / "model.onnx")
    with pytest.raises(RepositoryError, match="ValidationError: No Op registered for NoSuchOperator"):
        check_graph(tmp_path / "model.onnx", checker=onnx.checker.check_model)


def test_nesting_and_the_number_of_parts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    attribute = b""
    for _ in range(200):  # attribute → graph → node → attribute → …
        node = b"\x2a" + _length(attribute) + attribute
        graph = b"\x0a" + _length(node) + node
        attribute = b"\x32" + _length(graph) + graph
    path.write_bytes(b"\x3a" + _length(graph) + graph)
    with pytest.raises(RepositoryError, match="nested"):
        check_graph(path)
    onnx.save(small_graph(), path)
    monkeypatch.setattr(graph_wire, "MOST_PARTS", 20)
    with pytest.raises(RepositoryError, match="more than 20 parts"):
        check_graph(path)


def _length(content: bytes) -> bytes:
    value, out = len(content), bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


Damage = Callable[[bytes, np.random.Generator], bytes]


def _flip(content: bytes, rng: np.random.Generator) -> bytes:
    damaged = bytearray(content)
    for at in rng.integers(0, len(content), rng.integers(1, 4)):
        damaged[at] ^= int(rng.integers(1, 256))
    return bytes(damaged)


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: rng.integers(0, len(content))]


@pytest.mark.parametrize("damage", [_flip, _cut])
@pytest.mark.parametrize("form", ["graph", "external"])
def test_damaged_bytes_are_an_error_of_ours_and_never_another_one(
    form: str, damage: Damage, request: pytest.FixtureRequest
) -> None:
    """With the digest every damage is found; without it, what passes is a model that `onnx` parses and checks, too."""
    path: Path = request.getfixturevalue(form)
    files = [path.parent / name for name in check_graph(path).names]
    digest = check_graph(path).digest()
    rng = np.random.default_rng(11)
    found = 0
    for turn in range(FLIPS):
        victim = files[turn % len(files)]
        content = victim.read_bytes()
        victim.write_bytes(damage(content, rng))
        with pytest.raises(RepositoryError) as caught:
            check_graph(path, digest=digest, checker=onnx.checker.check_model)
        assert caught.value.exit_code == 4
        try:
            passed = check_graph(path, checker=onnx.checker.check_model)
        except RepositoryError:
            found += 1
        else:
            assert passed.digest() != digest
            onnx.load(path)
        victim.write_bytes(content)
    check_graph(path, digest=digest, checker=onnx.checker.check_model)
    assert found > FLIPS // 4


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_refused_without_any_other_exception(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(RepositoryError):
        check_graph(path)


def test_the_walk_sees_what_onnx_sees(external: Path) -> None:
    """Operators of all subgraphs, and tensors of all places, counted by onnx's own objects."""
    with external.open("rb") as file:
        found = graph_wire.read_skeleton(file, external.stat().st_size)
    model = onnx.load(external, load_external_data=False)
    inner = [attribute.g for node in model.graph.node for attribute in node.attribute]
    assert found.num_nodes == sum(len(graph.node) for graph in (model.graph, *inner))
    tensors = [tensor for graph in (model.graph, *inner) for tensor in graph.initializer]
    away = {tensor.name for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL}
    assert {place.name for place in found.external} == away
