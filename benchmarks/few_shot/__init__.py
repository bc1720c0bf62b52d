"""Few-shot learning of preferences, with exact regret: scratch, transfer, meta-learning, prompt tuning, in context."""
