"""Labels from several annotators per tile, with agreement and consensus."""
