"""Boards: a configuration becomes wired objects."""
