"""What clipit costs beside the bare models: each figure is two things measured side by side."""
