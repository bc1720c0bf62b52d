"""Folders of models, adapters and tokenizers: inspected, compared with what they are to be used for, and opened.

:mod:`.load` is the only place that calls ``from_pretrained``.
"""
