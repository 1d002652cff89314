"""Real data sets, each from one prepared file in the data folder."""
