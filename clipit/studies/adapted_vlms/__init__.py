"""Evaluation of a VLM before and after its adaptation, with controls."""
