"""Cost of clipit relative to the bare models, both measured side by side."""
