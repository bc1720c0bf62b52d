"""Inspect the folders of models, adapters and tokenizers, compare them with their use, and open them.

:mod:`.load` is the only place that calls ``from_pretrained``.
"""
