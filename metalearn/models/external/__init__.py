"""Learners from torch modules of the user, with their own forward, names and initialization."""
