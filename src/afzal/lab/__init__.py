"""A world so small that every response can be listed, so that claims about objectives are sums."""
