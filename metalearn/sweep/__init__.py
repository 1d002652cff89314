"""Sweeps: a W&B sweep file, run here by as many workers as one likes, on one machine or several
with one folder.
"""
