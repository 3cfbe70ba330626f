"""Tasks on whole-slide images: tile, score and map slides, and compare arms on them."""
