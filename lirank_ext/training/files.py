"""Older names of what :mod:`lirank_ext.data` holds, for code that was written before it moved."""

from ..data.broken import BadRows as Broken

__all__ = ["Broken"]
