"""Training of students: arms, batches, loss terms, steps and checkpoints."""
