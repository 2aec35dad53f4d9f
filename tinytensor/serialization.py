"""Tensors in files: `save_file` and `load_file` for a dict of tensors, `save` and `load` for a
checkpoint.

Both write the safetensors format: eight bytes that say how long the header is, the header (JSON:
name, dtype, shape and place of each tensor), the numbers. Any safetensors reader can open the
files. Nothing here ever unpickles: a pickle is a program, and a file from somewhere else should not
be run.

- A file is written whole or not at all: into a temporary file beside it, flushed to the disk, and
renamed.
- A file that is damaged, cut off or hostile gives one ValueError with the path and what is wrong.
The format has no checksum, so a number that was changed is not noticed: where that matters, keep
the file's hash beside it, as `gpt/runs.py` does.
- Tensors that share their memory (a tied weight) are stored once and shared again when they are
loaded.
"""

from __future__ import annotations

import errno
import json
import math
import mmap as memory_map
import os
import re
import secrets
import stat
import sys
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, Literal, overload

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file as _write_safetensors

from .backend import CPU, Array, DType, bfloat16, device, memory_range, to_device, to_numpy
from .tensor import Tensor, as_tensor

Path = str | os.PathLike[str]

_DTYPES: dict[str, DType] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": bfloat16,
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_SAVABLE = frozenset(_DTYPES.values())

# Entries of the file's metadata that belong to this module.
_SHARED = "tinytensor.shared"  # JSON: {name: name of the tensor whose memory it shares}
_STRUCTURE = "tinytensor.structure"  # JSON: what `save` was given, tensors replaced by their names

# Readers of the format refuse longer headers.
_LONGEST_HEADER = 100_000_000


# --- a dict of tensors -------------------------------------------------------------------------


def save_file(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write `tensors` to a safetensors file: any dtype and layout, on any device.

    `metadata` is text that travels along (`load_metadata` reads it). The file appears under its
    name when it is complete; until then, and if anything fails, what was there before stays. Raises
    TypeError for what the format cannot hold, and OSError when the file cannot be written.
    """
    where = f"save_file: {path}"
    for key, text in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise TypeError(f"{where}: metadata must map text to text, but {key!r} is {text!r}")
        if key in (_SHARED, _STRUCTURE):
            raise ValueError(f"{where}: the metadata entry {key!r} is kept for tinytensor itself")
    _write(where, dict(tensors), path, dict(metadata or {}))


@overload
def load_file(
    path: Path, device: device | str = CPU, *, mmap: Literal[False] = False
) -> dict[str, Tensor]: ...


@overload
def load_file(path: Path, device: device | str = CPU, *, mmap: bool) -> Mapping[str, Tensor]: ...


def load_file(
    path: Path, device: device | str = CPU, *, mmap: bool = False
) -> Mapping[str, Tensor]:
    """The tensors of a safetensors file, by name, on `device`; the numbers are read once, into new
    memory.

    With `mmap=True` nothing is read yet: each lookup maps that tensor's part of the file, which the
    system reads as the numbers are used and forgets with the tensor. Writing into such a tensor
    changes that tensor only. The file must stay as it is meanwhile.

    Raises ValueError if the file is not a whole and well-formed safetensors file, OSError if it
    cannot be read.
    """
    where = f"load_file: {path}"
    return _MappedFile(where, path, device) if mmap else _read(where, path, device)[0]


def load_metadata(path: Path) -> dict[str, str]:
    """The text that `save_file` was given as `metadata`; the tensors are not read."""
    with _opened(f"load_metadata: {path}", path) as (_, header):
        metadata = _metadata(header)
    return {key: text for key, text in metadata.items() if key not in (_SHARED, _STRUCTURE)}


# --- a checkpoint ------------------------------------------------------------------------------


def save(obj: Any, path: Path) -> None:
    """Write a checkpoint: dicts, lists and tuples, nested, of tensors, numbers, text, bools and
    None.

        tt.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 100},
        path)

    `load` gives the same back; keys of dicts may be text or integers. Tensors come back without
    history.
    Raises TypeError, with the place, for anything else (a module, an array, a dataclass): say in
    such plain values what it is made of.
    """
    where = f"save: {path}"
    tensors: dict[str, Tensor] = {}
    try:
        structure = json.dumps(_encode(where, obj, (), tensors), separators=(",", ":"))
    except RecursionError:
        raise ValueError(f"{where}: the object is nested too deeply, or contains itself") from None
    _write(where, tensors, path, {_STRUCTURE: structure})


def load(path: Path, map_location: device | str | None = None, *, weights_only: bool = True) -> Any:
    """What `save` was given, its tensors on `map_location` (None is the CPU).

    A safetensors file from elsewhere comes back as a dict of tensors. `weights_only=True` is how it
    always is: a file of PyTorch's own format, which would have to be unpickled, is refused with
    ValueError.
    """
    where = f"load: {path}"
    if not weights_only:
        raise ValueError(
            f"{where}: weights_only=False means unpickling, which tinytensor never does"
        )
    if not isinstance(map_location, str | device | None):
        raise TypeError(
            f"{where}: map_location must be a device, not a {type(map_location).__name__}"
        )
    tensors, metadata = _read(where, path, CPU if map_location is None else map_location)
    if _STRUCTURE not in metadata:
        return tensors
    try:
        return _decode(json.loads(metadata[_STRUCTURE]), tensors)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{where}: the description of its structure is damaged: {error!r}"
        ) from None


# A structure in JSON: plain values as themselves, and everything that JSON lacks as a list whose
# first element says what it is. (A list is therefore tagged too.)
#   ["tensor", name]   ["list", a, b]   ["tuple", a, b]   ["dict", [key, value], ...]


def _encode(where: str, x: Any, place: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    if x is None or isinstance(x, str | bool | int | float):
        return x
    if isinstance(x, Tensor):
        name = ".".join(place) or "tensor"
        while name in tensors:  # {"a.b": x, "a": {"b": y}}
            name += "~"
        tensors[name] = x
        return ["tensor", name]
    if isinstance(x, dict):
        for key in x:
            if not isinstance(key, str | int):
                raise TypeError(
                    f"{where}: {_name(place)} has the key {key!r}; keys must be text or integers"
                )
        return ["dict", *([k, _encode(where, v, (*place, str(k)), tensors)] for k, v in x.items())]
    if type(x) in (list, tuple):
        items = (_encode(where, v, (*place, str(i)), tensors) for i, v in enumerate(x))
        return [type(x).__name__, *items]
    raise TypeError(
        f"{where}: {_name(place)} is a {type(x).__module__}.{type(x).__qualname__}; a checkpoint "
        "holds "
        "tensors, numbers, text, bools, None, and dicts, lists and tuples of them"
    )


def _name(place: tuple[str, ...]) -> str:
    return "/".join(place) or "the object"


def _decode(x: Any, tensors: dict[str, Tensor]) -> Any:
    if not isinstance(x, list):
        if isinstance(x, dict):
            raise ValueError("a bare JSON object")
        return x
    tag, *items = x
    if tag == "tensor":
        (name,) = items
        return tensors[name]
    if tag == "dict":
        return {key: _decode(value, tensors) for key, value in items}
    if tag == "list":
        return [_decode(item, tensors) for item in items]
    if tag == "tuple":
        return tuple(_decode(item, tensors) for item in items)
    raise ValueError(f"unknown tag {tag!r}")


# --- writing -----------------------------------------------------------------------------------


def _write(where: str, tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    shared: dict[str, str] = {}
    first_with: dict[Any, str] = {}
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise TypeError(
                f"{where}: expected names and tensors, got {name!r}: {type(tensor).__name__}"
            )
        if name == "__metadata__":
            raise ValueError(f"{where}: the name '__metadata__' is kept by the file format")
        array = tensor.array
        if array.dtype not in _SAVABLE:
            raise TypeError(
                f"{where}: {name} has dtype {array.dtype}, which the format does not know"
            )
        memory = _memory(array)
        if memory in first_with:
            shared[name] = first_with[memory]
            continue
        if array.size:
            first_with[memory] = name
        arrays[name] = np.asarray(to_numpy(array), order="C")
    if shared:
        metadata[_SHARED] = json.dumps(shared)
    _check_header_length(where, arrays, metadata)
    with _replacing(where, os.fspath(path)) as temporary:
        _write_safetensors(arrays, temporary, metadata or None)


def _memory(array: Array) -> Any:
    """Equal for two arrays exactly if they show the same numbers in the same memory."""
    return (*memory_range(array), array.shape, array.strides, array.dtype)


def _check_header_length(
    where: str, arrays: Mapping[str, Array], metadata: Mapping[str, str]
) -> None:
    entries = sum(len(json.dumps(name)) + 20 * array.ndim + 100 for name, array in arrays.items())
    texts = sum(len(json.dumps(key)) + len(json.dumps(text)) for key, text in metadata.items())
    if entries + texts > _LONGEST_HEADER:
        raise ValueError(
            f"{where}: the values beside the tensors take about {texts:,} bytes of text, but the "
            "format allows a header of "
            f"{_LONGEST_HEADER:,}; put long lists of numbers into tensors"
        )


@contextmanager
def _replacing(where: str, path: str) -> Iterator[str]:
    """A name to write to; afterwards the file of that name stands, complete and on the disk, at
    `path`.
    """
    path = os.path.realpath(
        path
    )  # through a symbolic link, its target is replaced and not the link
    folder = os.path.dirname(path)
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, f"{where}: is a folder", path)
    if not os.path.isdir(folder):
        raise FileNotFoundError(errno.ENOENT, f"{where}: there is no folder", folder)
    # A visible name: after a power cut it says what it is and may be deleted.
    temporary = f"{path}.{secrets.token_hex(4)}.partial"
    try:
        try:
            with open(temporary, "xb") as file:  # shows which permissions a new file gets here
                permissions = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            yield temporary
            with open(temporary, "r+b") as file:
                os.fsync(file.fileno())
            os.chmod(temporary, permissions)  # the library makes a private file
            os.replace(temporary, path)
        except SafetensorError as error:  # the library reports what the system said as text
            number = re.search(r"(?:os error|code:) (\d+)", str(error))
            raise _not_written(where, path, int(number[1]) if number else 0, str(error)) from None
        except OSError as error:
            raise _not_written(where, path, error.errno or 0, str(error)) from None
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    _flush_folder(folder)


def _not_written(where: str, path: str, number: int, text: str) -> OSError:
    reason = os.strerror(number) if number else text
    before = (
        "the file that was there before is unchanged"
        if os.path.exists(path)
        else "no file was made"
    )
    return OSError(number, f"{where}: could not be written ({reason}); {before}")


def _flush_folder(folder: str) -> None:
    """Write the folder's new entry to the disk, where the system lets folders be opened (not on
    Windows).
    """
    if os.name != "posix":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (
            errno.EINVAL,
            errno.ENOTSUP,
        ):  # some network file systems have no such thing
            raise
    finally:
        os.close(number)


# --- reading -----------------------------------------------------------------------------------


def _read(where: str, path: Path, place: device | str) -> tuple[dict[str, Tensor], dict[str, str]]:
    place = device(place)
    arrays: dict[str, Array] = {}
    with _opened(where, path) as (file, header):
        metadata = _metadata(header)
        shared = _shared(where, metadata, header)
        for name, entry in header.items():
            if name != "__metadata__":
                arrays[name] = to_device(_read_array(where, file, name, entry), place)
    arrays.update({name: arrays[original] for name, original in shared.items()})
    return {name: as_tensor(array) for name, array in arrays.items()}, metadata


class _MappedFile(Mapping[str, Tensor]):
    """What `load_file(mmap=True)` returns: a safetensors file as a dict, one mapping a lookup."""

    def __init__(self, where: str, path: Path, place: device | str) -> None:
        self._where, self._place = where, device(place)
        with _opened(where, path) as (file, header):
            self._shared = _shared(where, _metadata(header), header)
            self._entries = {n: entry for n, entry in header.items() if n != "__metadata__"}
            for name, entry in self._entries.items():
                _layout(where, name, entry)
            self._file = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._file)

    def __getitem__(self, name: str) -> Tensor:
        original = self._shared.get(name, name)
        array = _map_array(self._where, self._file, original, self._entries[original])
        return as_tensor(to_device(array, self._place))

    def __contains__(self, name: object) -> bool:
        return name in self._entries or name in self._shared

    def __iter__(self) -> Iterator[str]:
        yield from self._entries
        yield from self._shared

    def __len__(self) -> int:
        return len(self._entries) + len(self._shared)


@contextmanager
def _opened(where: str, path: Path) -> Iterator[tuple[BinaryIO, dict[str, Any]]]:
    """The file and its header, which the library has found to be well-formed and to fit the file's
    length.

    The tensors' 'data_offsets' are made to count from the beginning of the file.
    """
    if not isinstance(path, str | os.PathLike):
        raise TypeError(f"{where}: expected a path, got a {type(path).__name__}")
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # a pipe would be waited for
        raise ValueError(f"{where}: this is a pipe or a device, not a file")
    with open(path, "rb") as file:
        try:
            with safe_open(os.fspath(path), framework="np"):
                pass
            length = int.from_bytes(file.read(8), "little")
            text = file.read(length).decode("utf-8")
            header = json.loads(text, object_pairs_hook=_unique)
        except (SafetensorError, ValueError, RecursionError) as error:
            raise ValueError(f"{where}: {_diagnosis(file, error)}") from None
        for name, entry in header.items():
            if name != "__metadata__":
                entry["data_offsets"] = [8 + length + offset for offset in entry["data_offsets"]]
        yield file, header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"its header names {twice!r} twice")
    return made


def _diagnosis(file: BinaryIO, error: Exception) -> str:
    """What is wrong with a file that the library refused, in words."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    if size == 0:
        return "the file is empty"
    if start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] in b"\x02\x03\x04\x05"):
        return (
            "this is a file of PyTorch's own format, or another pickle; reading it could run any "
            "program hidden "
            "in it, so tinytensor never does. Where PyTorch is installed, convert it: "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), 'model.safetensors')"
        )
    if size < 8:
        return f"the file has {size} bytes, too few for a safetensors file"
    if length > min(size - 8, _LONGEST_HEADER):
        return (
            f"the header should be {length:,} bytes long but the file has {size:,}: "
            "it is cut off, or not a safetensors file"
        )
    if start[8:] != b"{":
        return "this is not a safetensors file: no header begins at byte 8"
    return f"the file is damaged or cut off ({error})"


def _metadata(header: Mapping[str, Any]) -> dict[str, str]:
    return header.get("__metadata__") or {}


def _shared(where: str, metadata: Mapping[str, str], header: Mapping[str, Any]) -> dict[str, str]:
    """Names of tensors that were stored under another's name, and that name."""
    try:
        shared = json.loads(metadata.get(_SHARED, "{}"), object_pairs_hook=_unique)
        for name, original in shared.items():
            if name in header or original not in header or "__metadata__" in (name, original):
                raise ValueError(f"{name!r} cannot share the memory of {original!r}")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{where}: the record of shared tensors is damaged: {error}") from None
    return shared  # type: ignore[no-any-return]


def _layout(where: str, name: str, entry: Mapping[str, Any]) -> tuple[DType, int, int]:
    """A tensor's dtype, how many numbers it has, and at which byte of the file they begin."""
    dtype = _DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ValueError(
            f"{where}: {name} has the dtype {entry['dtype']}, which tinytensor does not have"
        )
    start, stop = entry["data_offsets"]
    count = math.prod(entry["shape"])
    if count * dtype.itemsize != stop - start:
        raise ValueError(f"{where}: the shape of {name} does not fit its {stop - start} bytes")
    return dtype, count, start


def _read_array(where: str, file: BinaryIO, name: str, entry: Mapping[str, Any]) -> Array:
    dtype, count, start = _layout(where, name, entry)
    file.seek(start)
    try:
        array = np.fromfile(file, dtype, count).reshape(entry["shape"])
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{where}: {name} could not be read ({error})") from None
    return _native(where, name, array)


def _map_array(where: str, number: int, name: str, entry: Mapping[str, Any]) -> Array:
    """The same, from memory that shows the file with this descriptor."""
    dtype, count, start = _layout(where, name, entry)
    before = start % memory_map.ALLOCATIONGRANULARITY  # a mapping begins where a page does
    length = before + count * dtype.itemsize
    try:
        if not count:
            return np.empty(entry["shape"], dtype)
        if os.fstat(number).st_size < start + count * dtype.itemsize:
            raise ValueError("the file has been cut short since it was opened")
        memory = memory_map.mmap(
            number, length, access=memory_map.ACCESS_COPY, offset=start - before
        )
        array = np.frombuffer(memory, dtype, count, before).reshape(entry["shape"])
        array = np.require(array, requirements="A")  # a header of odd length puts it anywhere
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{where}: {name} could not be read ({error})") from None
    return _native(where, name, array)


def _native(where: str, name: str, array: Array) -> Array:
    """The numbers in this machine's order of bytes, and bools that are bools."""
    if sys.byteorder == "big":
        array.byteswap(inplace=True)
    if array.dtype == np.bool_ and array.size and array.view(np.uint8).max() > 1:
        raise ValueError(f"{where}: {name} is of dtype bool but holds bytes other than 0 and 1")
    return array
