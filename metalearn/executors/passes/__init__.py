"""Rewrites of a traced list of operations, each of which shortens it in place."""
