"""Engines of the bench: this project, its peers, and a reference for gradients."""
