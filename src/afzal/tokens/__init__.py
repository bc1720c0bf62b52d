"""Texts and conversations to token trees, and trees to updates: the only room that calls a tokenizer."""

from afzal.tokens.encode import Encoded, continuation, continuations, encode, encode_prompts
from afzal.tokens.layout import distinct_prompts
from afzal.tokens.loss import Loss
from afzal.tokens.pack import mismatched, pack, update_order
from afzal.tokens.template import end_ids, resolve_template, stop_token, template_hash
from afzal.tokens.tree import Branch, Tree, only_branch, tree

__all__ = [
    "Branch",
    "Encoded",
    "Loss",
    "Tree",
    "continuation",
    "continuations",
    "distinct_prompts",
    "encode",
    "encode_prompts",
    "end_ids",
    "mismatched",
    "only_branch",
    "pack",
    "resolve_template",
    "stop_token",
    "template_hash",
    "tree",
    "update_order",
]
