"""Files: what goes in comes out, a save happens whole or not at all, and no file can do harm."""

from __future__ import annotations

import json
import os
import pickle
import stat
import struct
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import tinytensor as tt
from tinytensor import serialization
from tinytensor.tensor import as_tensor

DTYPES = [
    np.dtype(d)
    for d in (
        "float64", "float32", "float16", ml_dtypes.bfloat16, "int64", "int32", "int16", "int8",
        "uint64", "uint32", "uint16", "uint8", "bool",
    )
]  # fmt: skip

in_one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@st.composite
def tensors(draw: st.DrawFn) -> tt.Tensor:
    """Any dtype, any small shape (no axes and no elements too), any layout."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    array = np.asarray(rng.integers(0, 2 if dtype.kind == "b" else 100, shape)).astype(dtype)
    if draw(st.booleans()):
        array = array.T
    if array.ndim and draw(st.booleans()):
        array = array[::-2]
    return tt.from_numpy(array)


names = st.text(st.characters(codec="utf-8"), max_size=8).filter(
    lambda name: name != "__metadata__"
)
plain = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec="utf-8"))
)
trees = st.recursive(
    plain | tensors(),
    lambda branch: (
        st.lists(branch, max_size=3)
        | st.lists(branch, max_size=3).map(tuple)
        | st.dictionaries(names | st.integers(), branch, max_size=3)
    ),
    max_leaves=8,
)


def assert_same(a: Any, b: Any) -> None:
    assert type(a) is type(b)
    if isinstance(a, tt.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert a.data.numpy().tobytes() == b.data.numpy().tobytes()
    elif isinstance(a, dict):
        assert list(a) == list(b) and [type(k) for k in a] == [type(k) for k in b]
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b or (a != a and b != b)


# --- round trips -------------------------------------------------------------------------------


@in_one_folder
@given(
    st.dictionaries(names, tensors(), max_size=4),
    st.dictionaries(names, st.text("aé\n"), max_size=2),
)
def test_file_of_tensors_round_trip(tmp_path: Path, saved: Any, metadata: dict[str, str]) -> None:
    path = tmp_path / "x.safetensors"
    tt.save_file(saved, path, metadata)
    loaded = tt.load_file(path)
    assert loaded.keys() == saved.keys()
    for name, tensor in saved.items():
        assert_same(loaded[name], tensor)
        assert loaded[name].value.flags.writeable and not loaded[name].requires_grad
    assert serialization.load_metadata(path) == metadata


@in_one_folder
@given(trees)
@example({0: tt.zeros(1), "0": tt.ones(2)})
@example({"a.b": tt.zeros(1), "a": {"b": tt.ones(2)}, "tensor": {}})
@example(["tensor", "dict", {"list": ("tuple", [])}])
@example(tt.arange(3))
def test_checkpoint_round_trip(tmp_path: Path, tree: Any) -> None:
    tt.save(tree, tmp_path / "x")
    assert_same(tt.load(tmp_path / "x"), tree)


def test_other_readers_and_writers_of_the_format(tmp_path: Path) -> None:
    path = str(tmp_path / "x.safetensors")
    arrays = {"a": np.arange(6.0).reshape(2, 3), "b": np.ones(3, ml_dtypes.bfloat16)}
    safetensors.numpy.save_file(arrays, path)
    for loaded in (tt.load_file(path), tt.load(path)):
        assert_same(loaded, {name: tt.from_numpy(array) for name, array in arrays.items()})
    tt.save({"model": {"a": tt.arange(3)}, "step": 1}, path)
    np.testing.assert_array_equal(safetensors.numpy.load_file(path)["model.a"], [0, 1, 2])


def test_shared_memory_is_stored_once_and_shared_again(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    weight = tt.randn(100, 10)
    part = weight[:50]
    saved = {"wte": weight, "head": weight.detach(), "part": part, "turned": weight.transpose(0, 1)}
    tt.save_file(saved, path)
    loaded = tt.load_file(path)
    assert_same({name: loaded[name] for name in saved}, saved)
    assert loaded["head"].value is loaded["wte"].value
    assert not np.may_share_memory(loaded["part"].value, loaded["wte"].value)
    assert sorted(safetensors.numpy.load_file(path)) == ["part", "turned", "wte"]
    tt.save({"model": saved}, path)
    model = tt.load(path)["model"]
    assert model["head"].value is model["wte"].value


def test_state_dict_of_a_tied_model(tmp_path: Path) -> None:
    def tied() -> tt.nn.Module:
        model = tt.nn.Sequential(tt.nn.Embedding(5, 3), tt.nn.Linear(3, 5, bias=False))
        model[1].weight = model[0].weight
        return model

    first, second = tied(), tied()
    tt.save_file(first.state_dict(), tmp_path / "x")
    second.load_state_dict(tt.load_file(tmp_path / "x"))
    np.testing.assert_array_equal(second[1].weight.data.numpy(), first[0].weight.data.numpy())
    assert second[1].weight is second[0].weight


# --- mapped ------------------------------------------------------------------------------------


@in_one_folder
@given(st.dictionaries(names, tensors(), max_size=4))
def test_mapped_file_round_trip(tmp_path: Path, saved: Any) -> None:
    path = tmp_path / "x.safetensors"
    tt.save_file(saved, path)
    mapped = tt.load_file(path, mmap=True)
    assert len(mapped) == len(saved) and set(mapped) == set(saved)
    for name, tensor in saved.items():
        assert name in mapped
        assert_same(mapped[name], tensor)


def test_mapped_tensors_are_private_and_outlive_their_file(tmp_path: Path) -> None:
    path = tmp_path / "x"
    weight = tt.arange(6, dtype=tt.float32)
    tt.save_file({"a": weight, "same": weight}, path)
    mapped = tt.load_file(path, mmap=True)
    a = mapped["a"]
    a.mul_(2)
    assert mapped["a"].tolist() == mapped["same"].tolist() == weight.tolist()
    assert tt.load_file(path)["a"].tolist() == weight.tolist()
    path.unlink()
    del mapped
    assert a.tolist() == (weight * 2).tolist()


def test_mapped_file_is_checked_when_it_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "x"
    tt.save_file({"a": tt.arange(6)}, path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="x: "):
            tt.load_file(path, mmap=True)
    path.write_bytes(content)
    mapped = tt.load_file(path, mmap=True)
    os.truncate(path, len(content) - 1)
    with pytest.raises(ValueError, match=r"a could not be read .the file has been cut short since"):
        mapped["a"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a pipe")
@pytest.mark.parametrize("mmap", [False, True])
def test_pipes_and_devices_are_not_waited_for(tmp_path: Path, mmap: bool) -> None:
    os.mkfifo(tmp_path / "x")
    (tmp_path / "y").symlink_to("/dev/zero")
    for name in "xy":
        with pytest.raises(ValueError, match=f"{name}: this is a pipe or a device, not a file"):
            tt.load_file(tmp_path / name, mmap=mmap)


# --- writing: whole or not at all --------------------------------------------------------------


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    tt.save({"a": 1}, path)

    def interrupted(source: str, target: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(serialization.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tt.save({"a": tt.zeros(10)}, path)
    assert tt.load(path) == {"a": 1} and os.listdir(tmp_path) == ["x"]


@pytest.mark.skipif(os.name != "posix", reason="limits the size of files with setrlimit")
@pytest.mark.parametrize("existing", [True, False])
def test_full_disk(tmp_path: Path, existing: bool) -> None:
    path = tmp_path / "x"
    if existing:
        tt.save({"a": 1}, path)
    script = f"""
        import resource
        import tinytensor as tt
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            tt.save({{"a": tt.zeros(1_000_000)}}, {str(path)!r})
        except OSError as error:
            print(type(error).__name__, error.errno, error)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        cwd=os.getcwd(),
    )
    state = "the file that was there before is unchanged" if existing else "no file was made"
    assert "could not be written (File too large)" in run.stdout and state in run.stdout, run
    assert os.listdir(tmp_path) == ["x"] * existing
    if existing:
        assert tt.load(path) == {"a": 1}


@pytest.mark.skipif(os.name != "posix", reason="POSIX links and permissions")
def test_links_are_followed_and_permissions_are_the_usual_ones(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "target")
    tt.save([1], tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and tt.load(tmp_path / "target") == [1]
    (tmp_path / "plain").write_text("")
    usual = stat.S_IMODE(os.stat(tmp_path / "plain").st_mode)
    assert stat.S_IMODE(os.stat(tmp_path / "target").st_mode) == usual


def test_unusual_places(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        tt.save({}, tmp_path / "missing" / "x")
    with pytest.raises(IsADirectoryError, match="is a folder"):
        tt.save({}, tmp_path)
    with pytest.raises(FileNotFoundError):
        tt.load(tmp_path / "missing")
    with pytest.raises(TypeError, match="expected a path, got a BytesIO"):
        import io

        tt.load(io.BytesIO())


circular: list[Any] = []
circular.append(circular)


@pytest.mark.parametrize(
    ("obj", "error", "sentence"),
    [
        ({"a": [1, np.zeros(2)]}, TypeError, "a/1 is a numpy.ndarray; a checkpoint holds"),
        ({"a": {(1, 2): 3}}, TypeError, r"a has the key \(1, 2\); keys must be text or integers"),
        (tt.nn.Linear(1, 1), TypeError, "the object is a tinytensor.nn"),
        ({"a": {1, 2}}, TypeError, "a is a builtins.set"),
        (np.int64(3), TypeError, "numpy.int64"),
        (circular, ValueError, "nested too deeply, or contains itself"),
    ],
)
def test_what_a_checkpoint_cannot_hold(
    tmp_path: Path, obj: Any, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        tt.save(obj, tmp_path / "x")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    ("tensors", "metadata", "error", "sentence"),
    [
        ({"a": np.zeros(2)}, None, TypeError, "expected names and tensors, got 'a': ndarray"),
        ({3: tt.zeros(2)}, None, TypeError, "got 3"),
        ({"__metadata__": tt.zeros(2)}, None, ValueError, "kept by the file format"),
        ({"a": as_tensor(np.zeros(2, complex))}, None, TypeError, "a has dtype complex128"),
        ({}, {"a": 3}, TypeError, "metadata must map text to text, but 'a' is 3"),
        ({}, {"tinytensor.shared": "x"}, ValueError, "kept for tinytensor itself"),
    ],
)
def test_what_a_file_cannot_hold(
    tmp_path: Path, tensors: Any, metadata: Any, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        tt.save_file(tensors, tmp_path / "x", metadata)
    assert not os.listdir(tmp_path)


def test_header_longer_than_readers_allow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serialization, "_LONGEST_HEADER", 1000)
    with pytest.raises(ValueError, match="put long lists of numbers into tensors"):
        tt.save({"tokens": list(range(1000))}, tmp_path / "x")


# --- damaged and hostile files -----------------------------------------------------------------


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list[Any], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def structure(text: str) -> bytes:
    return file_of(
        {"__metadata__": {"tinytensor.structure": text}, "a": entry([1], 0, 4)}, bytes(4)
    )


def shared(text: str) -> bytes:
    return file_of({"__metadata__": {"tinytensor.shared": text}, "a": entry([1], 0, 4)}, bytes(4))


@pytest.mark.parametrize(
    ("content", "sentence"),
    {
        "empty": (b"", "the file is empty"),
        "short": (b"abc", "3 bytes, too few"),
        "text": (b"To be, or not to be", "not a safetensors file"),
        "pickle": (pickle.dumps({"a": 1}), "never does.*safetensors.torch.save_file"),
        "old PyTorch": (pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2) + bytes(99), "never does"),
        "long header": (file_of({}, length=10**18), "header should be 1,000,000,000,000"),
        "cut header": (file_of({"a": entry([1], 0, 4)})[:-5], "it is cut off"),
        "cut data": (file_of({"a": entry([2], 0, 8)}, bytes(4)), "damaged or cut off"),
        "more data": (file_of({"a": entry([1], 0, 4)}, bytes(8)), "damaged or cut off"),
        "no JSON": (file_of(b"{nonsense}"), "damaged or cut off"),
        "a list": (file_of([1, 2]), "no header begins"),
        "deep": (file_of(b'{"a":' * 10**5), "damaged or cut off"),
        "overlap": (file_of({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)), "damaged"),
        "hole": (file_of({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)), "damaged"),
        "backwards": (file_of({"a": entry([1], 4, 0)}, bytes(4)), "damaged"),
        "wrong size": (file_of({"a": entry([3], 0, 8)}, bytes(8)), "damaged"),
        "huge": (file_of({"a": entry([2**62, 2**62], 0, 4)}, bytes(4)), "damaged"),
        "huge and empty": (file_of({"a": entry([2**62, 0, 2**62], 0, 0)}), "damaged.file: "),
        "65 axes": (file_of({"a": entry([1] * 65, 0, 4)}, bytes(4)), "a could not be read"),
        "negative": (file_of({"a": entry([-1, -1], 0, 4)}, bytes(4)), "damaged"),
        "not a number": (file_of(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}'), "."),
        "twice": (
            file_of(b'{"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]},'
                    b'"a":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'),
            "damaged.*'a' twice",
        ),
        "unknown dtype": (file_of({"a": entry([1], 0, 4, "F9")}, bytes(4)), "damaged"),
        "other dtype": (file_of({"a": entry([4], 0, 4, "F8_E4M3")}, bytes(4)), "dtype F8_E4M3"),
        "bool of 2": (file_of({"a": entry([4], 0, 4, "BOOL")}, b"\0\1\2\0"), "other than 0 and 1"),
        "structure": (structure("{"), "structure is damaged"),
        "structure tag": (structure('["pickle", "x"]'), "unknown tag 'pickle'"),
        "structure name": (structure('["tensor", "b"]'), "structure is damaged"),
        "structure key": (structure('["dict", [["x"], 1]]'), "structure is damaged"),
        "structure depth": (structure("[" * 10**5), "structure is damaged"),
        "structure nothing": (structure("[]"), "structure is damaged"),
        "structure number": (structure("9" * 10**4), "structure is damaged"),
        "shared": (shared('{"b": "c"}'), "'b' cannot share the memory of 'c'"),
        "shared itself": (shared('{"a": "a"}'), "cannot share"),
        "shared list": (shared("[1]"), "record of shared tensors is damaged"),
        "shared metadata": (shared('{"b": "__metadata__"}'), "cannot share"),
        "shared unhashable": (shared('{"b": ["a"]}'), "record of shared tensors is damaged"),
    }.values(),
)  # fmt: skip
def test_damaged_files(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "damaged.file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence) as caught:
        tt.load(path)
    assert type(caught.value) is ValueError and "damaged.file" in str(caught.value)


def test_pytorch_file_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02.")
    for load in (tt.load, tt.load_file):
        with pytest.raises(ValueError, match=r"torch\.load\(path, weights_only=True\)"):
            load(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="means unpickling"):
        tt.load(tmp_path / "x.pt", weights_only=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "x"
    weight = tt.arange(6, dtype=tt.float32).reshape(2, 3)
    tt.save(
        {"model": {"w": weight, "tied": weight, "empty": tt.zeros(0, 4)},
         "on": tt.tensor([True, False]), "step": 3, 0: (1.5, None)},
        path,
    )  # fmt: skip
    return path.read_bytes()


def check_damage(path: Path, content: bytes) -> None:
    """Whatever the bytes are: a checkpoint of tensors, or one ValueError."""
    path.unlink(missing_ok=True)  # a new file is much faster than one cut to length 0
    path.write_bytes(content)
    for load in (tt.load, tt.load_file, serialization.load_metadata):
        try:
            load(path)
        except ValueError as error:
            assert type(error) is ValueError and str(path) in str(error)


def test_every_cut(tmp_path: Path, whole: bytes) -> None:
    for length in range(len(whole)):
        (tmp_path / "x").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="x: "):
            tt.load(tmp_path / "x")


@in_one_folder
@given(st.data())
def test_any_damage(tmp_path: Path, whole: bytes, data: st.DataObject) -> None:
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content)))
        stop = start + data.draw(st.sampled_from([0, 1, 1, 1, 5, 40]))
        content[start:stop] = data.draw(
            st.binary(max_size=3)
            | st.sampled_from([b"9", b"0", b'"', b"]", b"e9", b"-", b"\xff" * 8])
        )
    check_damage(tmp_path / "x", bytes(content))


@pytest.mark.nightly
def test_every_value_of_every_byte(tmp_path: Path, whole: bytes) -> None:
    for place in range(len(whole)):
        for value in range(256):
            check_damage(tmp_path / "x", whole[:place] + bytes([value]) + whole[place + 1 :])
