"""Vision-language models, backbones, LoRA, the student, and the classifier that is exported."""
