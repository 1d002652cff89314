"""Student's t, Holm's correction, and Fieller's intervals of ratios: pure functions of numbers."""
