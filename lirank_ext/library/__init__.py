"""Registers the ops: loading, dispatch, autograd, argument checks, and errors found on devices."""
