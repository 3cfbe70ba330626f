"""Several annotators per tile: their labels, their agreement, and a consensus."""
