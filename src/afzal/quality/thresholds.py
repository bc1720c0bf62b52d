"""The thresholds at which a finding becomes minor or major, as numbers and in words.

``docs/audit.md`` shows the table; a test compares the two.
"""

from __future__ import annotations

LONG_CHARACTERS = 16_000
LENGTH_BIAS_MINOR, LENGTH_BIAS_MAJOR = 0.6, 0.8
LENGTH_BIAS_PAIRS = 20
LOW_AGREEMENT = 0.6
LOW_CLASS_SHARE = 0.2
MANY_DUPLICATES = 0.05
SHORTCUT = 0.6  # share of pairs that a mark or a source decides
SOURCE_SHORTCUT = 0.9
SHORTCUT_PAIRS = 50  # fewer prove nothing: with 50, chance alone exceeds SHORTCUT once in a thousand
ONE_KIND = 0.9
MANY_KINDS = 50  # a field with more distinct values does not sort the rows
NEAR = 0.8  # Jaccard similarity of sets of five characters
MANY_NEAR = 0.01
NARROW = 10.0  # Vendi score, a number of different prompts
NARROW_PROMPTS = 100
GRAM = 13  # words
MANY_OVERLAPS = 0.01
SURE = 0.9  # probability of the favoured answer at which a scorer counts as confident
UNSURE = 0.6
MANY_UNSURE = 0.5
SMALL_PIXELS, NARROW_SHAPE = 16, 20  # pixels of the shorter side; ratio of longer to shorter side
SHORT_SECONDS, LONG_SECONDS = 0.1, 30
SMALL_ITEMS, SMALL_CHARACTERS = 2_000, 4_000_000

THRESHOLDS = {
    "dropped_rows": "minor: a part of a row; major: one row",
    "identical_pairs": "major: one pair",
    "contradictions": "major: one pair or label",
    "cycles": "major: one prompt",
    "duplicate_items": f"minor: one item; major: more than {MANY_DUPLICATES:.0%}",
    "no_order": "major: all items",
    "label_balance": f"minor: the rarer label below {LOW_CLASS_SHARE:.0%}; major: one label only",
    "length_bias": f"minor: the whole interval beyond {LENGTH_BIAS_MINOR:.0%}; major: beyond {LENGTH_BIAS_MAJOR:.0%}; "
    f"from {LENGTH_BIAS_PAIRS} pairs",
    "length_bias_by_type": f"minor: the whole interval of one type beyond {SHORTCUT:.0%}; from {SHORTCUT_PAIRS} pairs",
    "format_bias": f"minor: the whole interval of one mark beyond {SHORTCUT:.0%}; from {SHORTCUT_PAIRS} pairs",
    "source_bias": f"minor: the whole interval of one source beyond {SOURCE_SHORTCUT:.0%}; from {SHORTCUT_PAIRS} pairs",
    "agreement": f"minor: below {LOW_AGREEMENT:.0%}",
    "score_mismatches": "minor: one pair",
    "balance": f"minor: the interval of one value's share above {ONE_KIND:.0%}",
    "over_long": f"minor: one item of more than {LONG_CHARACTERS:,} characters",
    "empty_prompts": "minor: one item, others having a prompt",
    "duplicate_ids": "minor: one id",
    "personal_data": "minor: one item",
    "secrets": "major: one item",
    "missing_media": "minor: one item",
    "odd_images": f"minor: one below {SMALL_PIXELS} pixels, or longer than {NARROW_SHAPE} times its width",
    "odd_sounds": f"minor: one shorter than {SHORT_SECONDS} s or longer than {LONG_SECONDS} s",
    "repeated_media": "never",
    "repeated_prompts": "never",
    "continued_answers": "never",
    "one_prompt": "minor: always",
    "near_duplicates": f"Jaccard similarity of {NEAR} or more; minor: the interval above {MANY_NEAR:.0%} of the items",
    "coverage": f"minor: a Vendi score below {NARROW:g}; from {NARROW_PROMPTS} different prompts",
    "overlap": f"minor: one test prompt; major: more than {MANY_OVERLAPS:.0%} of them",
    "suspicious_pairs": f"minor: the interval above {1 - SURE:.0%} of the pairs that the scores are {SURE:.0%} sure of",
    "ambiguous_pairs": f"an answer favoured with less than {UNSURE:.0%}; minor: the interval above {MANY_UNSURE:.0%}",
}
"""The thresholds in words, by code of the finding."""
