"""A language so small that every response can be listed, so that claims about objectives can be computed as sums."""
