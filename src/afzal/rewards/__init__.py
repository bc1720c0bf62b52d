"""What an answer is worth by a saved reward model or by a function of two texts, and how good a reward model is."""
