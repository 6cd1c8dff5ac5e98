"""``verify`` must notice a deliberate bug in any op.

Every bug wraps the best backend of an op, as if its kernel were wrong. The generic bugs are applied
to every op. The others are typical mistakes of an op family. These tests check the cases of
``lirank_ext/verify/cases``: if ``verify`` misses a bug, a case must be added.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from unittest import mock

import pytest
import torch

from lirank_ext.library.op import OPS, implementations
from lirank_ext.ops import hashed_embedding_backward, hashed_embedding_packed, hashing
from lirank_ext.verify import Outcome, Row, compare, passed, summary
from lirank_ext.verify.cases import Case, all_cases

PUBLIC = compare.public_ops()
CHECKED = compare.checked_ops()
CASES = {op: [c for c in all_cases(op) if not c.big] for op in CHECKED}


def best(op: str) -> Callable:
    usable = implementations(op)
    return usable.get("cpu", usable["reference"])


def first_red(op: str, implementation: Callable, cases: list[Case]) -> Outcome | None:
    outcomes = (compare.check_case(case, implementation) for case in cases)
    return next((o for o in outcomes if not o.passed), None)


# ---- bugs that any kernel can have -----------------------------------------------------


def first_result(change: Callable) -> Callable:
    """A bug in the first tensor of the result."""

    def bug(call: Callable) -> Callable:
        def wrong(*args):
            result = call(*args)
            if isinstance(result, torch.Tensor):
                return change(result)
            return (change(result[0]), *result[1:])

        return wrong

    return bug


def other_dtype(t):
    return t.to(torch.float64 if t.dtype == torch.float32 else torch.float32)


def skipped_tail(t):
    flat = t.clone().reshape(-1)
    if flat.numel():
        flat[-1] = 77
    return flat.view(t.shape)


def rows_swapped(t):
    return t.flip(0)


def one_dimension_more(t):
    return t.unsqueeze(0)


def input_changed(call):
    def wrong(*args):
        result = call(*args)
        for t in (t.detach() for t in args if isinstance(t, torch.Tensor) and t.numel()):
            t[(0,) * t.dim()] += 1
        return result

    return wrong


def bad_input_accepted(call):
    def wrong(*args):
        try:
            return call(*args)
        except Exception:
            return torch.zeros(())

    return wrong


def refuses_in_other_words(call):
    def wrong(*args):
        try:
            return call(*args)
        except Exception as error:
            raise RuntimeError("something went wrong") from error

    return wrong


def crashes(call):
    def wrong(*args):
        raise ZeroDivisionError("a crash where a result was wanted")

    return wrong


def result_missing(call):
    def wrong(*args):
        result = call(*args)
        return [] if isinstance(result, torch.Tensor) else result[:-1]

    return wrong


GENERIC = {
    "other dtype": (first_result(other_dtype), "the fake kernel promised"),
    "skipped tail": (first_result(skipped_tail), ("error", "not bit-equal")),
    "rows swapped": (first_result(rows_swapped), ("error", "not bit-equal", "inf or NaN")),
    "one dimension more": (first_result(one_dimension_more), "the fake kernel promised"),
    "input changed": (input_changed, "an input was changed"),
    "bad input accepted": (bad_input_accepted, "bad input was accepted"),
    "refuses in other words": (refuses_in_other_words, "refused with another message"),
    "crashes": (crashes, "raised ZeroDivisionError"),
    "result missing": (result_missing, "results, wanted"),
}


@pytest.mark.parametrize("name", GENERIC)
@pytest.mark.parametrize("op", PUBLIC)
def test_generic_bug_turns_the_row_red(op, name):
    bug, expected = GENERIC[name]
    about_refusals = bug in (bad_input_accepted, refuses_in_other_words)
    cases = [c for c in CASES[op] if (c.raises is not None) == about_refusals]
    red = first_red(op, bug(best(op)), cases)
    assert red is not None, "the bug went unnoticed"
    texts = (expected,) if isinstance(expected, str) else expected
    assert any(text in red.problem for text in texts), red.problem


@pytest.mark.parametrize("op", PUBLIC)
def test_unchanged_op_is_green(op):
    red = first_red(op, best(op), CASES[op])
    assert red is None, f"{red.case.label}: {red.problem}"


def test_a_large_row_hides_no_wrong_small_one():
    """0.01 is a seventh of what is allowed in the row of 10,000."""
    case = Case("low_rank_cross", "two rows", ())
    wanted = torch.tensor([[1e4, -1e4], [1.0, 2.0]]).double()
    off = torch.tensor([[0.0, 0.0], [0.0, 1e-2]])
    assert compare._compare(wanted.float(), wanted, case, False, "result").passed
    wrong = compare._compare(wanted.float() + off, wanted, case, False, "result")
    assert "error 1.00e-02, allowed" in wrong.problem
    assert compare._compare(wanted.float() + off.flip(0), wanted, case, False, "result").passed


class GradientOff(torch.autograd.Function):
    """The identity, with a gradient one percent too large."""

    @staticmethod
    def forward(ctx, t):
        return t.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 1.01


WITH_GRADIENTS = [op for op in PUBLIC if any(c.grad for c in CASES[op])]


@pytest.mark.parametrize("op", WITH_GRADIENTS)
def test_wrong_gradient_turns_the_row_red(op):
    red = first_red(op, first_result(GradientOff.apply)(best(op)), CASES[op])
    assert red is not None and "gradient of argument" in red.problem


@pytest.mark.parametrize("op", WITH_GRADIENTS)
def test_lost_gradient_turns_the_row_red(op):
    red = first_red(op, first_result(torch.Tensor.detach)(best(op)), CASES[op])
    assert red is not None and "does not require grad" in red.problem


# ---- the mistakes of each family -------------------------------------------------------


def arguments(op: str, args: tuple) -> dict:
    """By name, with the defaults of the schema."""
    schema = OPS[op].overload._schema.arguments
    given = dict(zip((a.name for a in schema), args, strict=False))
    return {a.name: given.get(a.name, a.default_value) for a in schema}


def wrong_arguments(change: Callable[[dict], dict]) -> Callable:
    """The op is called with some arguments replaced: ignored, shifted, swapped."""

    def bug(op: str) -> Callable:
        def wrong(*args):
            named = arguments(op, args)
            changed = change(named)
            last = max([len(args), *(list(named).index(n) + 1 for n in changed)])
            return best(op)(*list({**named, **changed}.values())[:last])

        return wrong

    return bug


def wrong_result(change: Callable[[object, dict], object]) -> Callable:
    """The result is changed, knowing the arguments."""

    def bug(op: str) -> Callable:
        return lambda *args: change(best(op)(*args), arguments(op, args))

    return bug


def wrong_part(name: str, replacement: Callable) -> Callable:
    """A function of the hashed reference is replaced while the op runs."""

    def bug(op: str) -> Callable:
        def wrong(*args):
            with (
                mock.patch.object(hashed_embedding_backward, name, replacement),
                mock.patch.object(hashed_embedding_packed, name, replacement),
            ):
                return OPS[op].reference(*args)

        return wrong

    return bug


def without_bias(a):
    return {"bias": None if a["bias"] is None else a["bias"] * 0}


def shifted_bags(a):
    """The second bag starts one id early."""
    offsets = a["offsets"]
    if offsets is None or offsets.numel() < 2:
        return {}
    moved = offsets.clone()
    moved[1:] = torch.clamp(moved[1:] - 1, min=0)
    return {"offsets": moved}


def next_row(a):
    rows = a["packed"].shape[0]
    return {"indices": (a["indices"] + 1) % rows if rows else a["indices"]}


def unlike(value):
    """Mode ignored: another than asked for."""
    return lambda a: {"mode": value} if a["per_sample_weights"] is None else {}


WEIGHTS_IGNORED = wrong_arguments(lambda a: {"per_sample_weights": _ones(a["per_sample_weights"])})


def _copy(t):
    return None if t is None else t.clone()


def _ones(t):
    return None if t is None else t * 0 + 1


def codes_by(rounding):
    """quantize_rows with another rounding."""

    def change(result, a):
        _, scale, mid = result
        most = 2 ** (a["bits"] - 1)
        exact = (a["weight"].float() - mid[:, None]) / scale[:, None]
        return rounding(exact).clamp(-most, most - 1).to(torch.int8), scale, mid

    return wrong_result(change)


def middle_of_extremes(result, a):
    """The plain middle of a row, in place of the middle-max."""
    codes, scale, mid = result
    weight = a["weight"].float()
    return codes, scale, (weight.amax(1) + weight.amin(1)) / 2 if weight.numel() else mid


def rows_by(divide: Callable, split: Callable) -> Callable:
    """The row rule with another division or another way to take the halves."""

    def rows_of(ids, num_buckets, num_remainders, seed, prehashed):
        hashes = ids if prehashed else hashing.murmur(ids.long(), seed)
        rows = []
        for half in split(hashes):
            bucket = half % num_buckets
            quotient = divide(bucket, num_remainders).clamp(max=(num_buckets - 1) // num_remainders)
            rows += [quotient, bucket % num_remainders]
        return tuple(rows)

    return wrong_part("rows_of", rows_of)


def halves(h):
    return h & 0xFFFFFFFF, (h >> 32) & 0xFFFFFFFF


def floor_divide(bucket, m):
    return bucket // m


def float_divide(bucket, m):
    return (bucket.float() / m).floor().long()


def in_blocks_alone(a):
    """Text is hashed in blocks of 16 bytes; the rest of each string is forgotten."""
    ends = a["offsets"].tolist()
    kept = [a["bytes"][i : i + (j - i) // 16 * 16] for i, j in pairwise(ends)]
    lengths = torch.tensor([0, *map(len, kept)])
    joined = torch.cat([a["bytes"][:0], *kept])
    return {"bytes": joined, "offsets": lengths.cumsum(0).to(a["offsets"].dtype)}


def big_endian(a):
    raw = a["ids"].contiguous().view(torch.uint8).reshape(-1, 8).flip(1).contiguous()
    return {"ids": raw.view(torch.int64).view(a["ids"].shape)}


HASHED = {
    "float division in the row rule": rows_by(float_divide, halves),
    "both halves the same": rows_by(floor_divide, lambda h: (h & 0xFFFFFFFF, h & 0xFFFFFFFF)),
    "signed halves": rows_by(floor_divide, lambda h: (h & 0x7FFFFFFF, (h >> 32) & 0x7FFFFFFF)),
    "halves swapped": rows_by(floor_divide, lambda h: halves(h)[::-1]),
    "seed ignored": wrong_arguments(lambda a: {"seed": 0}),
    "prehashed ignored": wrong_arguments(lambda a: {"prehashed": False}),
    "sum for mean": wrong_arguments(unlike("sum")),
    "mean for sum": wrong_arguments(unlike("mean")),
    "off by one in a bag": wrong_arguments(shifted_bags),
    "weights ignored": WEIGHTS_IGNORED,
}


def keys_first(a: dict) -> list:
    """The attention layers with the kernels of queries and keys exchanged."""
    whole = a["attention"]
    layers = (whole[i : i + 5] for i in range(0, len(whole), 5))
    return [t for q, k, *rest in layers for t in (k, q, *rest)]


LOOK_UP = {
    "the row after": wrong_arguments(next_row),
    "sum for mean": wrong_arguments(unlike("sum")),
    "mean for sum": wrong_arguments(unlike("mean")),
    "off by one in a bag": wrong_arguments(shifted_bags),
    "weights ignored": WEIGHTS_IGNORED,
}
NET = {
    "temperature ignored": wrong_arguments(lambda a: {"temperature": 1.0}),
    "learned temperatures ignored": wrong_arguments(lambda a: {"log_temperatures": []}),
    "tokens ignored": wrong_arguments(lambda a: {"token_dim": 1}),
    "skip inverted": wrong_arguments(lambda a: {"skip": not a["skip"]}),
    "sum for mean": wrong_arguments(lambda a: {"merge": a["merge"] & 2}),
    "the last layer dropped": wrong_arguments(lambda a: {"attention": a["attention"][:-5]}),
    "queries and keys swapped": wrong_arguments(lambda a: {"attention": keys_first(a)}),
}
BUGS: dict[str, dict[str, Callable]] = {
    "residual_cross_net": NET,
    "residual_cross_score": {
        **NET,
        "bias dropped": wrong_arguments(without_bias),
        "the request before": wrong_arguments(lambda a: {"request": a["request"].roll(1, 0)}),
        "counts in reverse": wrong_arguments(lambda a: {"counts": a["counts"].flip(0)}),
    },
    "low_rank_cross": {
        "bias dropped": wrong_arguments(without_bias),
        "residual dropped": wrong_result(lambda y, a: y - a["x"]),
        "x for x0": wrong_arguments(lambda a: {"x0": a["x"]}),
        "products in half precision": wrong_arguments(
            lambda a: {"v": a["v"].bfloat16().to(a["v"].dtype)}
        ),
    },
    "outer_attention": {
        "temperature ignored": wrong_arguments(lambda a: {"temperature": 1.0}),
        "queries and keys swapped": wrong_arguments(lambda a: {"q": a["k"], "k": a["q"]}),
        "tokens ignored": wrong_arguments(lambda a: {"token_dim": 1}),
        "not divided by the root of the width": wrong_arguments(
            lambda a: {"temperature": a["temperature"] / a["token_dim"] ** 0.5}
        ),
    },
    "attention_cross": {
        "skip inverted": wrong_arguments(lambda a: {"skip": not a["skip"]}),
        "bias dropped": wrong_arguments(without_bias),
        "temperature ignored": wrong_arguments(lambda a: {"temperature": 1.0}),
        "queries and keys swapped": wrong_arguments(lambda a: {"q": a["k"], "k": a["q"]}),
        "tokens ignored": wrong_arguments(lambda a: {"token_dim": 1}),
    },
    "isotonic_calibration": {
        "one bucket too high": wrong_arguments(lambda a: {"logits": a["logits"] + a["step"]}),
        "negative slopes kept": wrong_arguments(lambda a: {"weight": a["weight"].abs()}),
        "embedding ignored": wrong_arguments(lambda a: {"embedding": None}),
        "bias dropped": wrong_arguments(without_bias),
        "lower end dropped": wrong_result(lambda y, a: y - a["lower"]),
    },
    "quantize_rows": {
        "rounded down": codes_by(torch.floor),
        "halves rounded up": codes_by(lambda x: (x + 0.5).floor()),
        "plain middle": wrong_result(middle_of_extremes),
        "scale and mid swapped": wrong_result(lambda r, a: (r[0], r[2], r[1])),
    },
    "dequantize_rows": {
        "mid dropped": wrong_arguments(lambda a: {"mid": a["mid"] * 0}),
        "scale of the row before": wrong_arguments(lambda a: {"scale": a["scale"].roll(1)}),
        "codes without a sign": wrong_result(
            lambda w, a: w + (a["codes"] < 0) * 256 * a["scale"][:, None]
        ),
    },
    "pack_rows": {
        "scale and mid swapped": wrong_arguments(lambda a: {"scale": a["mid"], "mid": a["scale"]}),
        "rows in reverse": wrong_arguments(lambda a: {"codes": a["codes"].flip(0)}),
        "last code lost": wrong_arguments(
            lambda a: {"codes": torch.cat([a["codes"][:, :-1], a["codes"][:, -1:] * 0], 1)}
        ),
    },
    "unpack_rows": {
        "scale and mid swapped": wrong_result(lambda r, a: (r[0], r[2], r[1])),
        "codes off by one": wrong_result(lambda r, a: (r[0] ^ 1, *r[1:])),
    },
    "quantized_embedding_bag": {
        **LOOK_UP,
        "last offset ignored": wrong_result(
            lambda y, a: torch.cat([y[:-1], y[-1:] * 0]) if a["include_last_offset"] else y
        ),
        "half precision kept too long": wrong_arguments(lambda a: {"output_dtype": torch.float32}),
    },
    "quantized_embedding_bags": {
        **{k: v for k, v in LOOK_UP.items() if k != "the row after"},
        "tables in reverse": wrong_result(lambda y, a: y.roll(1, 1)),
        "the id before": wrong_arguments(lambda a: {"indices": (a["indices"] - 1).clamp(min=0)}),
    },
    "murmur_hash": {
        "seed ignored": wrong_arguments(lambda a: {"seed": 0}),
        "32 bits of the id": wrong_arguments(lambda a: {"ids": a["ids"] & 0xFFFFFFFF}),
        "big-endian": wrong_arguments(big_endian),
        "sign lost": wrong_result(lambda h, a: h & 0x7FFFFFFFFFFFFFFF),
    },
    "hash_strings": {
        "seed ignored": wrong_arguments(lambda a: {"seed": 0}),
        "bytes after the last block ignored": wrong_arguments(in_blocks_alone),
        "7 bits of each byte": wrong_arguments(lambda a: {"bytes": a["bytes"] & 0x7F}),
        "sign lost": wrong_result(lambda h, a: h & 0x7FFFFFFFFFFFFFFF),
    },
    "vocabulary_lookup": {
        "oov ignored": wrong_arguments(lambda a: {"oov": -2}),
        "32 bits of the key": wrong_arguments(lambda a: {"keys": a["keys"] & 0xFFFFFFFF}),
        "the row before": wrong_result(lambda r, a: (r - 1).clamp(min=-1)),
        "tags ignored": wrong_result(lambda r, a: r.clamp(min=0)),
    },
    "hashed_embedding_bag": HASHED,
    "quantized_hashed_embedding_bag": HASHED,
    "hashed_embedding_bag_update": {
        "penalty ignored": wrong_arguments(lambda a: {"l2": 0.0}),
        "another rate": wrong_arguments(lambda a: {"lr": a["lr"] * 1.01}),
        "sum for mean": wrong_arguments(lambda a: {"mean": False}),
        "weights ignored": WEIGHTS_IGNORED,
        "sums stay": wrong_arguments(lambda a: {"sum_quotient_b": _copy(a["sum_quotient_b"])}),
        "a table stays": wrong_arguments(lambda a: {"remainder_c": a["remainder_c"].clone()}),
        "off by one in a bag": wrong_arguments(shifted_bags),
    },
}
FEWEST = 2


@pytest.mark.parametrize("op", CHECKED)
def test_every_public_op_has_bugs_of_its_own(op):
    assert len(BUGS.get(op, {})) >= FEWEST, f"{op} needs {FEWEST} deliberate bugs in {__name__}"


@pytest.mark.parametrize(("op", "name"), [(op, n) for op in CHECKED for n in BUGS.get(op, {})])
def test_bug_of_the_family_turns_the_row_red(op, name):
    good = [c for c in CASES[op] if c.raises is None]
    implementation, seen = BUGS[op][name](op), []
    for case in good:
        seen.append(compare.check_case(case, implementation).problem)
        # A bug that only crashes would prove nothing about the comparison.
        if seen[-1] and not seen[-1].startswith("raised"):
            return
    pytest.fail(f"went unnoticed: {[p for p in seen if p]}")


def test_the_row_rule_of_these_tests_is_the_right_one():
    """Else the bugs in it would be red for another reason."""
    for op in ("hashed_embedding_bag", "quantized_hashed_embedding_bag"):
        red = first_red(op, rows_by(floor_divide, halves)(op), CASES[op])
        assert red is None, f"{red.case.label}: {red.problem}"


# ---- what verify makes of rows ---------------------------------------------------------


def patched(monkeypatch, op, implementation):
    real = implementations
    monkeypatch.setattr(
        compare,
        "implementations",
        lambda name: {**real(name), "cpu": implementation} if name == op else real(name),
    )


def test_a_red_row_says_case_and_problem(monkeypatch):
    op = "isotonic_calibration"
    patched(monkeypatch, op, first_result(skipped_tail)(best(op)))
    reference, cpu = compare.verify(op, "cpu")
    assert reference.passed and not cpu.passed
    assert cpu.verdict.startswith("FAILED") and "allowed" in cpu.verdict
    assert not passed([reference, cpu])
    assert "1 of 2 rows FAILED" in summary([reference, cpu])
    assert cpu.as_json()["failures"][0]["case"]


def test_an_absent_backend_is_not_counted_as_passed():
    row = Row("isotonic_calibration", "triton", "cuda", absent="no CUDA device")
    assert not row.passed and not passed([row])
    assert row.verdict == "absent: no CUDA device"
    green = Row(row.op, "cpu", outcomes=[Outcome(CASES[row.op][0])])
    assert passed([row, green]) and "1 absent" in summary([row, green])


def test_a_failing_reference_makes_the_row_red(monkeypatch):
    op = "isotonic_calibration"

    def broken(*args):
        raise KeyError("the reference is broken")

    monkeypatch.setattr(OPS[op], "reference", broken)
    row = compare.verify(op, "cpu")[0]
    assert not row.passed and "KeyError" in row.verdict


def test_failing_cases_make_the_row_red(monkeypatch):
    def broken(*args):
        raise RuntimeError("no inputs")

    monkeypatch.setattr(compare, "all_cases", broken)
    row = compare.verify("isotonic_calibration", "cpu")[0]
    assert not row.passed and "making the inputs: raised RuntimeError: no inputs" in row.verdict


def test_an_op_without_cases_does_not_pass(monkeypatch):
    monkeypatch.setattr(compare, "all_cases", lambda *a: iter(()))
    row = compare.verify("isotonic_calibration", "cpu")[0]
    assert not row.passed and "no cases" in row.verdict


def test_inputs_keep_their_layout_on_another_device():
    """``Tensor.to`` would make these contiguous, and a kernel would never see strides."""
    base = torch.arange(100.0)
    call = (base[3:93].view(9, 10)[:, ::2], [base[1:].view(11, 9).t(), None], 3)
    strided, (turned, none), number = compare._on_device(call, "meta")
    assert (strided.stride(), strided.storage_offset()) == ((10, 2), 3)
    assert (turned.stride(), turned.storage_offset()) == ((1, 9), 1)
    assert strided.untyped_storage()._cdata == turned.untyped_storage()._cdata
    assert none is None and number == 3 and strided.is_meta


def test_nan_that_is_overwritten_counts_as_changed():
    case = next(c for c in CASES["isotonic_calibration"] if c.label == "NaN stays NaN")

    def wrong(logits, *rest):
        result = best(case.op)(logits, *rest)
        logits.zero_()
        return result

    assert compare.check_case(case, wrong).problem == "an input was changed"


def test_seed_changes_the_inputs():
    op = "isotonic_calibration"
    first, again, other = (next(all_cases(op, s)).call for s in (3, 3, 4))
    assert torch.equal(first[1], again[1]) and not torch.equal(first[1], other[1])


@pytest.mark.parametrize("bad", [{"op": "no_such_op"}, {"device": "tpu"}])
def test_refuses_unknown_names(bad):
    with pytest.raises(ValueError, match=r"no op named|wanted 'cpu'"):
        compare.verify(**bad)


def test_an_error_is_shown_as_a_share_of_what_its_dtype_allows():
    half, single = torch.ones(2, dtype=torch.bfloat16), torch.ones(2)
    outcomes = [
        Outcome(Case("murmur_hash", "half", {"x": half, "y": [single]}), 0.02, 0.1),
        Outcome(Case("murmur_hash", "single", (single,)), 1e-7, 1e-5),
    ]
    row = Row("murmur_hash", "cpu", outcomes=outcomes)
    assert row.cells() == ["murmur_hash", "cpu", "2", "20%", "bfloat16", "passed"]
