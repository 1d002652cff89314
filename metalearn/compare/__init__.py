"""Several runs on the same episodes, controls, and reproduction."""
