"""Array types of the index: names for what travels between its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Vectors = npt.NDArray[np.float32]  # (n, d), C-contiguous
Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Objects = npt.NDArray[Any]  # dtype object
Positions = npt.NDArray[np.bytes_]  # dtype S32: the wire form, whose order is the order of changes
Bytes = npt.NDArray[np.uint8]
Digests = npt.NDArray[np.uint64]
Times = npt.NDArray[np.float64]
Out = Callable[[bytes | memoryview], object]  # takes a piece of a file, which is void afterwards
