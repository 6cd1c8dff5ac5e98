"""Modules and layers built on the ops."""
