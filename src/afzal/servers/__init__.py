"""OpenAI-compatible servers: one client with a bounded number of tries, and a cache of replies."""
