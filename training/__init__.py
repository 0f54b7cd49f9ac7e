"""Teaches a model to rank by reinforcement learning: rewards, training data, trainers."""
