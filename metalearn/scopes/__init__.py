"""What the code around a forward pass tells the layers inside it."""
