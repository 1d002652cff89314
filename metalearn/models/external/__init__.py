"""Torch modules from outside as Learners, with their own function, names and start."""
