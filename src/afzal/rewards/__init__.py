"""Rewards of answers by a saved reward model or a function of two texts, and the assessment of reward models."""
