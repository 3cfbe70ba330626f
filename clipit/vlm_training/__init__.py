"""Training of a VLM: contrastive examples, cached gradients, the loop."""
