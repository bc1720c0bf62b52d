"""OpenAI-compatible servers: a client with a bounded number of tries, and a cache of replies."""
