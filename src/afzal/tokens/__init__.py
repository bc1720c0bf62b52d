"""Turn texts and conversations into token trees, and trees into updates. Only this room calls a tokenizer."""

from afzal.tokens.encode import Encoded
from afzal.tokens.layout import distinct_prompts
from afzal.tokens.pack import mismatched, pack, update_order
from afzal.tokens.speaker import ENDLESS, Speaker, any_chat, encode
from afzal.tokens.template import resolve_template, template_hash
from afzal.tokens.tree import Branch, Tree, only_branch, tree

__all__ = [
    "ENDLESS",
    "Branch",
    "Encoded",
    "Speaker",
    "Tree",
    "any_chat",
    "distinct_prompts",
    "encode",
    "mismatched",
    "only_branch",
    "pack",
    "resolve_template",
    "template_hash",
    "tree",
    "update_order",
]
