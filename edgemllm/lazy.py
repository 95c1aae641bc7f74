"""torch, imported when something is first computed: describing a policy, and planning with it, starts without torch.

`from edgemllm.lazy import Tensor, torch` takes the place of the two imports in policies and in what they are made of.
`Tensor` is a name for annotations alone, and nothing at the top of such a file (a decorator, a base class, a constant) may
use torch. In any other file, and in a policy of your own, `import torch` is right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Tensor", "torch"]


class _Torch:
    def __getattr__(self, name: str) -> Any:
        import torch

        found = self.__dict__[name] = getattr(torch, name)  # kept: some are used at every token
        return found


if TYPE_CHECKING:
    import torch
    from torch import Tensor
else:
    torch, Tensor = _Torch(), "torch.Tensor"
