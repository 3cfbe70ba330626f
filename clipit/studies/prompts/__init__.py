"""Effect of the wording of prompts."""
