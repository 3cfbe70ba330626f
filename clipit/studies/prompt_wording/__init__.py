"""Effect of prompt wording."""
