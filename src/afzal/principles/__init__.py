"""Pairs of answers from principles in words: what ``afzal revise`` does."""
