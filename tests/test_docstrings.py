"""The examples in the docstrings of the public names are right, and the names have types."""

from __future__ import annotations

import doctest
import inspect

import pytest
import torch

import lirank_ext
from lirank_ext import models, nn

NAMED = {"lirank_ext": lirank_ext, "lirank_ext.nn": nn, "lirank_ext.models": models}
PUBLIC = {
    f"{place}.{name}": getattr(module, name)
    for place, module in NAMED.items()
    for name in module.__all__
    if callable(getattr(module, name))
}
EXAMPLES = {name: thing for name, thing in PUBLIC.items() if ">>>" in (thing.__doc__ or "")}


def test_the_main_names_have_examples():
    assert len(EXAMPLES) > 15


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_a_docstring_are_right(name):
    torch.manual_seed(0)
    given = {"torch": torch, "lirank_ext": lirank_ext}
    text = inspect.cleandoc(EXAMPLES[name].__doc__)
    test = doctest.DocTestParser().get_doctest(text, given, name, None, 0)
    said: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    assert test.examples and not said, "".join(said)


def signatures():
    """Every public function, and every public method that a class of the package defines."""
    for name, thing in PUBLIC.items():
        if not inspect.isclass(thing):
            yield name, thing
            continue
        for part, member in vars(thing).items():
            if inspect.isfunction(member) and (part == "__init__" or not part.startswith("_")):
                yield f"{name}.{part}", member


SIGNATURES = dict(signatures())


@pytest.mark.parametrize("name", SIGNATURES)
def test_every_argument_and_result_has_a_type(name):
    function = SIGNATURES[name]
    signature = inspect.signature(function)
    for argument in list(signature.parameters.values()):
        if argument.name not in ("self", "cls"):
            assert argument.annotation is not argument.empty, argument.name
    made_by_dataclass = name.endswith("__init__") and "return" not in function.__annotations__
    assert signature.return_annotation is not signature.empty or made_by_dataclass
