"""What a computation is made of."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Operations(TorchDispatchMode):
    """Counts what is computed within it, by name; the types of the results, and the most elements that one has."""

    def __init__(self):
        super().__init__()
        self.names, self.dtypes, self.largest = Counter(), Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        tensors = [tensor for tensor in tree_leaves(result) if isinstance(tensor, torch.Tensor)]
        self.names[func.overloadpacket.__name__] += 1
        self.dtypes.update(tensor.dtype for tensor in tensors)
        self.largest = max([self.largest, *(tensor.numel() for tensor in tensors)])
        return result
