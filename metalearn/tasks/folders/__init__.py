"""Images in folders: layouts, splits, decoding."""
