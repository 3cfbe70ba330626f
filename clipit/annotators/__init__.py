"""Several annotators per tile: labels, agreement and consensus."""
