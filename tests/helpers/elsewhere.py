"""Reading pickles as where netslim is not installed."""

from __future__ import annotations

import io
import pickle
from typing import Any


class Without(pickle.Unpickler):
    """Has no netslim."""

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "netslim":
            raise ModuleNotFoundError(f"{module}.{name}")
        return super().find_class(module, name)

    @classmethod
    def loads(cls, written: bytes) -> Any:
        return cls(io.BytesIO(written)).load()
