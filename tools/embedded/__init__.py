"""Training of the embedded vision-language model and backbone."""
