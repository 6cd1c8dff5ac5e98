"""Hashed tables as TorchRec's: its planner and its sharding spread them over devices."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..data.packages import need
from ..nn._common import refuse
from ..nn.hashed_embedding import TABLES, HashedEmbeddingBag

if TYPE_CHECKING:
    from torchrec import EmbeddingBagConfig, KeyedJaggedTensor, KeyedTensor

OWNER = "HashedEmbeddingBagCollection"


class HashedEmbeddingBagCollection(nn.Module):
    """TorchRec's ``EmbeddingBagCollection`` for features of any int64 id, without a vocabulary.

    An id is four row numbers, so a hashed table is four ordinary tables, and one feature of ids is
    four features of rows. This module computes these, hands them to the ``EmbeddingBagCollection``
    in ``tables``, and adds its four results. TorchRec finds that collection by its type, so
    ``EmbeddingShardingPlanner`` and ``DistributedModelParallel`` treat a model that holds this
    module as any other. The result is that of :class:`lirank_ext.nn.HashedEmbeddingBag` up to
    rounding.

    Args:
        tables: a hashed table for each feature. The four tables of each become tables of the
            collection: the same parameters, not copies. Tables on the meta device stay there, and
            ``DistributedModelParallel`` makes the parts of each device from random rows.
        is_weighted: the features carry a weight for each id. The mode must be "sum" then.

    Attributes:
        tables: the ``EmbeddingBagCollection``, or what TorchRec's sharding has put in its place.

    Raises:
        ValueError: there is no table, a name has a dot or belongs to two tables, a table is of mode
            "mean" with weights, or of another dtype than float32 and float16.
        MissingPackage: TorchRec is not installed.
    """

    def __init__(self, tables: Mapping[str, HashedEmbeddingBag], is_weighted: bool = False) -> None:
        super().__init__()
        torchrec = need("torchrec", "torchrec")
        _check(tables, is_weighted)
        self.names, self.is_weighted = tuple(tables), is_weighted
        # What maps ids to rows, without memory for rows.
        self.rules = nn.ModuleDict({name: _rule_of(table) for name, table in tables.items()})
        configs = [c for name, table in tables.items() for c in table_configs(name, table)]
        self.tables = torchrec.EmbeddingBagCollection(
            tables=configs, is_weighted=is_weighted, device=torch.device("meta")
        )
        bags = self.tables.embedding_bags
        for name, table in tables.items():
            for part in TABLES:
                bags[f"{name}_{part}"].weight = getattr(table, part)

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Pooled vectors of jagged ids.

        Args:
            features: a ``KeyedJaggedTensor`` of ids with a key for each table, in any order.
                Further keys are passed over.

        Returns:
            A ``KeyedTensor`` with the keys of the tables.
        """
        torchrec = need("torchrec", "torchrec")
        found = self.tables(self.row_features(features)).to_dict()
        pooled = []
        for name in self.names:
            parts = [found[f"{name}_{part}"] for part in TABLES]
            pooled.append(parts[0] + parts[1] + parts[2] + parts[3])
        widths = [p.shape[1] for p in pooled]
        return torchrec.KeyedTensor(list(self.names), widths, torch.cat(pooled, dim=1))

    def row_features(self, features: KeyedJaggedTensor) -> KeyedJaggedTensor:
        """The four features of rows for each feature of ids, in the order of the tables."""
        torchrec = need("torchrec", "torchrec")
        given = features.to_dict()
        missing = [name for name in self.names if name not in given]
        if missing:
            refuse(OWNER, "features", f"a key {missing[0]!r}", sorted(given), KeyError)
        keys, rows, lengths, weights = [], [], [], []
        for name in self.names:
            jagged = given[name]
            keys += [f"{name}_{part}" for part in TABLES]
            rows += self.rules[name].row_ids(jagged.values())
            lengths += [jagged.lengths()] * len(TABLES)
            if self.is_weighted:
                weights += [jagged.weights()] * len(TABLES)
        return torchrec.KeyedJaggedTensor(
            keys, torch.cat(rows), torch.cat(weights) if weights else None, torch.cat(lengths)
        )

    @torch.no_grad()
    def load_tables(self, tables: Mapping[str, HashedEmbeddingBag]) -> None:
        """Copy the rows of hashed tables into this module, sharded or not.

        Every process copies the parts that it holds. No process needs another for it.

        Args:
            tables: those of all features or of some, whole.
        """
        held = self._held()
        for name, table in tables.items():
            if name not in self.names:
                refuse(OWNER, "tables", f"names among {list(self.names)}", repr(name))
            _check_same(name, self.rules[name], table)
            for part in TABLES:
                source = getattr(table, part)
                for (row, column), target in _parts(held[f"{name}_{part}"]):
                    height, width = target.shape
                    target.copy_(source[row : row + height, column : column + width])

    @torch.no_grad()
    def hashed_tables(self) -> dict[str, HashedEmbeddingBag]:
        """The tables as hashed ones, each whole and on the CPU.

        Where the tables are sharded, all processes have to make this call, and all get the tables.
        """
        held, made = self._held(), {}
        for name in self.names:
            made[name] = _rule_of(self.rules[name])
            for part in TABLES:
                whole = _whole(held[f"{name}_{part}"])
                setattr(made[name], part, nn.Parameter(whole))
        return made

    def _held(self) -> dict[str, Any]:
        """Every table by its name: a tensor, or what holds this process's parts of one."""
        state = self.tables.state_dict()
        return {key.split(".")[-2]: table for key, table in state.items()}


def table_configs(name: str, table: HashedEmbeddingBag) -> list[EmbeddingBagConfig]:
    """TorchRec's configurations of the four tables of a feature.

    Args:
        name: of the feature. The tables and their features of rows have the names
            ``<name>_quotient_b``, ``<name>_remainder_b``, ``<name>_quotient_c`` and
            ``<name>_remainder_c``.
        table: the hashed table; it may be on the meta device.
    """
    kinds = need("torchrec.modules.embedding_configs", "torchrec")
    mean = kinds.PoolingType.MEAN
    return [
        kinds.EmbeddingBagConfig(
            name=f"{name}_{part}",
            feature_names=[f"{name}_{part}"],
            num_embeddings=getattr(table, part).shape[0],
            embedding_dim=table.dim,
            pooling=mean if table.mode == "mean" else kinds.PoolingType.SUM,
            data_type=_data_type(kinds, getattr(table, part).dtype),
            init_fn=functools.partial(nn.init.normal_, std=0.5 / math.sqrt(table.dim)),
        )
        for part in TABLES
    ]


def _data_type(kinds: Any, dtype: torch.dtype) -> Any:
    return kinds.DataType.FP16 if dtype == torch.float16 else kinds.DataType.FP32


def _check(tables: Mapping[str, HashedEmbeddingBag], is_weighted: bool) -> None:
    if not tables:
        refuse(OWNER, "tables", "at least one", "none")
    every = [f"{name}_{part}" for name in tables for part in TABLES]
    for name, table in tables.items():
        if not isinstance(table, HashedEmbeddingBag):
            refuse(OWNER, f"tables[{name!r}]", "a HashedEmbeddingBag", type(table).__name__)
        if "." in name or len(set(every)) < len(every):
            refuse(OWNER, "tables", "names without a dot, all different", list(tables))
        if is_weighted and table.mode != "sum":
            refuse(OWNER, f"tables[{name!r}]", "mode 'sum' with weights", repr(table.mode))
        dtypes = {getattr(table, part).dtype for part in TABLES}
        if not dtypes <= {torch.float32, torch.float16} or len(dtypes) > 1:
            refuse(OWNER, f"tables[{name!r}]", "float32 or float16 tables", dtypes)


def _rule_of(table: HashedEmbeddingBag) -> HashedEmbeddingBag:
    """A hashed table of the same rule, without parameters."""
    options = {"mode": table.mode, "seed": table.seed, "prehashed": table.prehashed}
    made = HashedEmbeddingBag(
        table.dim, table.num_buckets, table.num_remainders, device="meta", **options
    )
    for part in TABLES:
        made.register_parameter(part, None)
    return made


def _check_same(name: str, rule: HashedEmbeddingBag, table: HashedEmbeddingBag) -> None:
    mine, other = rule.meaning(), table.meaning()
    if mine != other:
        differ = [key for key in mine if mine[key] != other[key]]
        wanted, got = ({key: of[key] for key in differ} for of in (mine, other))
        refuse(OWNER, f"tables[{name!r}]", f"a table with {wanted}", got)


def _parts(held: Any) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """The first row and column of each part that this process holds, and the part."""
    if hasattr(held, "local_shards") and callable(held.local_shards):  # a ShardedTensor
        for shard in held.local_shards():
            yield tuple(shard.metadata.shard_offsets), shard.tensor
    elif hasattr(held, "to_local"):
        refuse(OWNER, "tables", "TorchRec's ShardedTensor: output_dtensor=False", "a DTensor")
    else:
        yield (0, 0), held


def _whole(held: Any) -> Tensor:
    """The table on the CPU, from the parts of all processes."""
    if isinstance(held, Tensor) and not hasattr(held, "local_shards"):
        return held.detach().cpu().clone()
    parts = list(_parts(held))
    device = parts[0][1].device if parts else torch.device("cpu")
    dtype = held.metadata().tensor_properties.dtype
    whole = torch.zeros(*held.size(), dtype=dtype, device=device)
    for (row, column), part in parts:
        whole[row : row + part.shape[0], column : column + part.shape[1]] = part
    dist.all_reduce(whole, group=held._process_group)  # everywhere else they are zeros
    return whole.cpu()
