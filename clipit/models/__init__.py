"""Vision-language models, backbones, LoRA, the student, and the exported classifier."""
