"""The base of everything that watches a run: its operators, or the modules that it calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.hooks import RemovableHandle


@contextmanager
def hung(hooks: Iterable[RemovableHandle]) -> Iterator[None]:
    """Inside, hooks hang on modules; they go afterwards, also where one of them could not be hung.

    Args:
        hooks: hangs one after the other as it is gone through.
    """
    handles: list[RemovableHandle] = []
    try:
        for handle in hooks:
            handles.append(handle)
        yield
    finally:
        for handle in handles:
            handle.remove()


class OperatorMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that costs no import: subclasses say how each operator runs."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it without types

    def run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator, and give what it puts out."""
        raise NotImplementedError

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        return self.run(func, args, kwargs or {})

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else PyTorch imports torch._dynamo when the first operator runs, which takes seconds."""
        return False
