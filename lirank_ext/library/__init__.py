"""How ops are registered: loading, dispatch, autograd, argument checks and errors found late."""
