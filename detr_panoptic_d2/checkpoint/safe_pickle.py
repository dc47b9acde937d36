"""Unpickling of plain data only: no class or function from a file is ever called.

A pickle may name any function of Python and have it called. Here a name that is not on a short list
of data types is refused before anything happens.
"""

import argparse
import collections
import contextlib
import pickle
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np
import torch

_KINDS = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")


def load_arrays(f: BinaryIO) -> Any:
    """Unpickle NumPy arrays in plain containers; strings of Python 2 are read as Latin-1.

    Raises:
        pickle.UnpicklingError: it names anything that is no array, as "class module.name".
        Exception: it is damaged.
    """
    return _ArrayUnpickler(f, encoding="latin1").load()


@contextlib.contextmanager
def data_types_allowed() -> Iterator[None]:
    """Within, ``torch.load(weights_only=True)`` also takes what official training files hold.

    That is their ``argparse.Namespace`` of options, and NumPy scalars.
    """
    # NumPy 2 renamed numpy.core; files of both generations are read under both.
    other = "numpy.core" if _SCALAR.__module__.startswith("numpy._core") else "numpy._core"
    allowed = [argparse.Namespace, _SCALAR, _under_name(_SCALAR, f"{other}.multiarray", "scalar")]
    allowed += [np.dtype, *(type(np.dtype(kind)) for kind in _KINDS)]
    if hasattr(torch.serialization, "safe_globals"):
        with torch.serialization.safe_globals(allowed):
            yield
        return
    # torch 2.4 can only add to its list, or clear it.
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(allowed)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy._core", "numpy.core")
        if (module, name) not in _ARRAY_PARTS:
            raise pickle.UnpicklingError(f"class {module}.{name} is no NumPy array")
        return _ARRAY_PARTS[module, name]


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it asks for the text encoding {encoding!r}")
    return text.encode("latin-1")


def _under_name(function: Callable, module: str, name: str) -> Callable:
    def call(*args):
        return function(*args)

    call.__module__, call.__name__, call.__qualname__ = module, name, name
    return call


# ``numpy.core.multiarray.scalar``, wherever this NumPy has it.
_SCALAR = np.float64(0).__reduce__()[0]
_ARRAY_PARTS = {
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
    ("numpy.core.numeric", "_frombuffer"): np.zeros(0).__reduce_ex__(5)[0],
    ("numpy.core.multiarray", "scalar"): _SCALAR,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode_latin1,
    ("collections", "OrderedDict"): collections.OrderedDict,
}
