"""Segmentation of tiles: zero-shot, with few masks, and with a U-Net as a baseline."""
