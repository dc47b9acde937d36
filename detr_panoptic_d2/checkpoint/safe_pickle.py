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


class Refused(pickle.UnpicklingError):
    """A pickle names something that is not on the list."""


def load_arrays(f: BinaryIO) -> Any:
    """Unpickle NumPy arrays in plain containers; strings of Python 2 are read as Latin-1.

    Raises:
        Refused: it names anything that is no array.
        pickle.UnpicklingError, EOFError, ...: it is damaged.
    """
    return _ArrayUnpickler(f, encoding="latin1").load()


@contextlib.contextmanager
def data_types_allowed() -> Iterator[None]:
    """Within, ``torch.load(weights_only=True)`` also takes what official training files hold.

    That is their ``argparse.Namespace`` of options, and NumPy scalars.
    """
    allowed = _types_beside_tensors()
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
        # NumPy 2 renamed numpy.core; files of both are read under both.
        module = module.replace("numpy._core", "numpy.core")
        if (module, name) not in _ARRAY_PARTS:
            raise Refused(
                f"it names '{module}.{name}', which is no NumPy array (a pickle can have any "
                "function called)"
            )
        return _ARRAY_PARTS[module, name]


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How protocol 2 writes bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise Refused(f"it asks for the text encoding {encoding!r}")
    return text.encode("latin-1")


def _scalar_function() -> Callable:
    """``numpy.core.multiarray.scalar``, wherever this NumPy has it."""
    return np.float64(0).__reduce__()[0]


def _types_beside_tensors() -> list[Any]:
    kinds = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
    scalar = _scalar_function()
    other = "numpy.core" if scalar.__module__.startswith("numpy._core") else "numpy._core"
    alias = _under_name(scalar, f"{other}.multiarray", "scalar")
    types = [type(np.dtype(kind)) for kind in kinds]
    return [argparse.Namespace, scalar, alias, np.dtype, *types]


def _under_name(function: Callable, module: str, name: str) -> Callable:
    """The same function, under the name that the other generation of NumPy writes."""

    def call(*args):
        return function(*args)

    call.__module__, call.__name__, call.__qualname__ = module, name, name
    return call


_ARRAY_PARTS = {
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
    ("numpy.core.numeric", "_frombuffer"): np.zeros(0).__reduce_ex__(5)[0],
    ("numpy.core.multiarray", "scalar"): _scalar_function(),
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode_latin1,
    ("collections", "OrderedDict"): collections.OrderedDict,
}
