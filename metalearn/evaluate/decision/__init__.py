"""The method with the least total cost on new tasks: totals and the cheapest method."""
