"""Zero-shot, linear-probe, k-NN, few-shot and retrieval scores of frozen models."""
