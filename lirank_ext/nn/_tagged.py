"""State dicts of tables that say how the table is to be read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import is_fake

FORMAT = 1  # of the tag, and of the packed layout
EXTRA = "_extra_state"  # the key that PyTorch gives to a module's extra state


class Tagged(nn.Module):
    """A module whose state dict carries a tag: sizes, bits, seed, whatever gives its bytes meaning.

    A state dict with another tag is refused before any table changes, since equal shapes do not
    make two tables the same. One without a tag was saved before tags existed, and loads. The tag is
    a uint8 tensor that holds JSON, so that safetensors can store it.
    """

    def meaning(self) -> dict[str, Any]:
        """What a table must have in common with this module's."""
        raise NotImplementedError

    def get_extra_state(self) -> Tensor:
        text = json.dumps({"format": FORMAT, **self.meaning()})
        return torch.tensor(list(text.encode()), dtype=torch.uint8, device="cpu")

    def set_extra_state(self, state: Any) -> None:
        """The tag was compared before, and the module keeps what it was built with."""

    def _load_from_state_dict(
        self, state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
    ) -> None:
        given = read_tag(state_dict.get(prefix + EXTRA))
        wanted = {"format": FORMAT, **self.meaning()}
        differ = [k for k in wanted if k in given and given[k] != wanted[k]]
        if differ:
            texts = (", ".join(f"{k} {tag[k]!r}" for k in differ) for tag in (wanted, given))
            name = f"'{prefix[:-1]}': " if prefix else ""
            error_msgs.append(
                "{}{}: argument 'state_dict': wanted a table with {}, got {}".format(
                    name, type(self).__name__, *texts
                )
            )
            return
        rest = (strict, missing_keys, unexpected_keys, error_msgs)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)
        if prefix + EXTRA in missing_keys:
            missing_keys.remove(prefix + EXTRA)


def read_tag(state: Any) -> dict[str, Any]:
    """The content of a tag; empty if there is none, or if it has no values, as a fake tensor."""
    if state is None or (isinstance(state, Tensor) and (state.is_meta or is_fake(state))):
        return {}
    try:
        tag = json.loads(bytes(torch.as_tensor(state).tolist()))
    except (ValueError, TypeError, RuntimeError, RecursionError) as error:
        raise ValueError("the tag of a table is damaged: it is no JSON") from error
    if not isinstance(tag, dict) or "format" not in tag:
        raise ValueError(f"the tag of a table is damaged: it names no format, got {tag!r:.40}")
    return tag


def tags_in(state_dict: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """All tags of a state dict, by the path of the module."""
    keys = [k for k in state_dict if k == EXTRA or k.endswith(f".{EXTRA}")]
    return {k[: -len(EXTRA) - 1]: read_tag(state_dict[k]) for k in keys}
