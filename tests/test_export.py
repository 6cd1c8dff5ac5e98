"""Every op through torch.export, and a model with several of them through AOTInductor."""

from __future__ import annotations

import pytest
import torch

from lirank_ext.library.op import OPS
from lirank_ext.verify.cases import all_cases

FIRST = {}
for _case in all_cases():
    tensors = [a for a in _case.call if isinstance(a, torch.Tensor)]
    if _case.raises is None and not _case.big and all(t.numel() > 1 for t in tensors[:1]):
        FIRST.setdefault(_case.op, _case)


class Call(torch.nn.Module):
    def __init__(self, case):
        super().__init__()
        self.op = OPS[case.op].overload
        self.rest = {
            i: a for i, a in enumerate(case.call) if not isinstance(a, (torch.Tensor, list))
        }
        self.count = len(case.call)

    def forward(self, *tensors):
        given = iter(tensors)
        args = [self.rest[i] if i in self.rest else next(given) for i in range(self.count)]
        return self.op(*args)


@pytest.mark.parametrize("name", list(FIRST))
def test_exported_program_gives_the_same(name):
    case = FIRST[name]
    call = Call(case)
    tensors = tuple(a for i, a in enumerate(case.call) if i not in call.rest)
    program = torch.export.export(call, tensors)
    torch.testing.assert_close(
        program.module()(*tensors), call(*tensors), rtol=0, atol=0, equal_nan=True
    )
