"""Count personal data and secrets and list their rows; the text itself is never shown."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from afzal.data.dataset import Losses
from afzal.quality.columns import Column, FirstIds
from afzal.quality.finding import Finding, Severity, add_nothing, finding
from afzal.quality.item_facts import ItemFacts, ItemTable

PERSONAL = ("e-mail address", "phone number", "IBAN", "card number")
SECRETS = ("access key", "private key", "signed token")

_FEW_DIGITS = 7  # no phone number, account or card has fewer
# The shape of a text: digits become "0", capitals "A", all else is unchanged. Every number looked for has four digits
# in a row, or begins like the other two, and lies in a run of these characters, except for a few before it.
_SHAPES = bytes(48 if 48 <= n <= 57 else 65 if 65 <= n <= 90 else n for n in range(256))
_BEGINNINGS = (b"0000", b"+0", b"AA00")
_DOMAIN = re.compile(r"@((?:[A-Za-z0-9-]{2,63}\.)+[A-Za-z]{2,24})\b")
_LOCAL = re.compile(r"(?<![\w.+-])[\w.+-]{2,64}\Z")
_LONGEST_LOCAL = 65  # characters before the "@" that are read
_DENSE = re.compile(r"0[0A .()-]{6,}")
_BEFORE = 7
_PHONE = re.compile(
    r"(?<![\w.+-])(?:\+[1-9]\d{0,2}(?:[ .-]?\(?\d{1,4}\)?){2,5}"
    r"|(?:\+?1[ .-])?(?:\([2-9]\d\d\) ?[2-9]\d\d[ .-]\d{4}|[2-9]\d\d([.-])[2-9]\d\d\1\d{4}))(?![\w-])"
)
_IBAN = re.compile(r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b")
_CARD = re.compile(
    r"(?<![\w.,-])(?:\d{4}([ -]?)\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|3[47]\d\d([ -]?)\d{6}\2\d{5})(?![\w-]|[.,]\d)"
)
_KEY = re.compile(
    r"\b(?:sk-(?:proj-|ant-|live-|test-)?[A-Za-z0-9_-]{20,}|(?:AKIA|ASIA)[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36,}"
    r"|github_pat_[A-Za-z0-9_]{22,}|glpat-[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{30,}|AIza[0-9A-Za-z_-]{35}"
    r"|xox[abprs]-[0-9A-Za-z-]{10,}|[rs]k_live_[0-9A-Za-z]{20,}|npm_[A-Za-z0-9]{36})\b"
)
_PRIVATE = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\s*[A-Za-z0-9+/=\s]{64}")
_TOKEN = re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}")
# Domains that RFC 2606 and 6761 reserve for examples, and the ones people write in their place.
_EXAMPLES = re.compile(
    r".*example.*|(?:.*\.)?(?:test|invalid|localhost|(?:my|your)?(?:site|website|domain|company|email)\.com)"
)
_FILMS = re.compile(r"555\D{0,2}\d{4}$")  # numbers that American telephone companies reserve for fiction
_FEW_DIFFERENT = 8  # characters: "sk-xxxxxxxxxxxxxxxxxxxxxxxx" is a placeholder


class Private:
    """The hits so far, by kind: how many, and in which items."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._items: dict[str, Column] = {}

    def add(self, batch: Sequence[ItemFacts]) -> None:
        """Check more items."""
        for facts in batch:
            for kind in private_kinds(facts.full_text):
                self.counts[kind] += 1
                items = self._items.setdefault(kind, Column("I"))
                if not items or items[-1] != facts.index:
                    items.append(facts.index)

    def items(self, kinds: tuple[str, ...]) -> list[int]:
        """The numbers of the items that contain one of these kinds."""
        return sorted({item for kind in kinds for item in self._items.get(kind, ())})


class PersonalData:
    """Addresses, phone numbers and accounts in prompts and answers."""

    add = add_nothing

    def __init__(self, private: Private) -> None:
        self._private = private

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding:
        remedy = "replace them with placeholders before a model learns them"
        return _private_finding("personal_data", "minor", PERSONAL, self._private, table, remedy)


class Secrets:
    """Keys and tokens in prompts and answers."""

    add = add_nothing

    def __init__(self, private: Private) -> None:
        self._private = private

    def finding(self, table: ItemTable, losses: Losses, rows: int) -> Finding:
        remedy = "revoke them if they are real, and replace them with placeholders"
        return _private_finding("secrets", "major", SECRETS, self._private, table, remedy)


def private_kinds(text: str) -> list[str]:
    """The kind of every piece of personal data and every secret in a text, once per occurrence."""
    kinds: list[str] = []
    # Searching one character is fifty times as fast as a word or an expression, and nearly all texts lack some.
    if "@" in text:
        kinds += ["e-mail address"] * sum(_is_email(text, match) for match in _DOMAIN.finditer(text))
    shape = text.encode("utf-8", "surrogatepass").translate(_SHAPES)
    if b"0" in shape:
        if any(map(shape.__contains__, _BEGINNINGS)) and len(shape.split(b"0", _FEW_DIGITS)) > _FEW_DIGITS:
            kinds += _numbers(text, shape.decode("utf-8", "surrogatepass"))
        if _may_hold_key(text):
            kinds += ["access key"] * sum(len(set(match[0])) > _FEW_DIFFERENT for match in _KEY.finditer(text))
        if "J" in text and "eyJ" in text:
            kinds += ["signed token"] * len(_TOKEN.findall(text))
    if "-" in text and "-----BEGIN" in text:
        kinds += ["private key"] * len(_PRIVATE.findall(text))
    return kinds


def _is_email(text: str, domain: re.Match[str]) -> bool:
    """Whether a name precedes the "@" and the domain is not an example."""
    start = domain.start()
    return bool(_LOCAL.search(text[max(0, start - _LONGEST_LOCAL) : start])) and not _EXAMPLES.fullmatch(
        domain[1].lower()
    )


def _numbers(text: str, shape: str) -> list[str]:
    """The kinds of cards, accounts and phone numbers in a text; ``shape`` has one character for each of the text's."""
    kinds: list[str] = []
    for run in _DENSE.finditer(shape):
        if run[0].count("0") < _FEW_DIGITS:
            continue
        start, end = max(0, run.start() - _BEFORE), run.end()
        # beyond the end of the run, so that the text after it can reject a match
        cards = [match.span() for match in _matches_between(_CARD, text, start, end) if is_card(match[0])]
        kinds += ["card number"] * len(cards)
        accounts = [match.span() for match in _matches_between(_IBAN, text, start, end) if is_iban(match[0])]
        kinds += ["IBAN"] * len(accounts)
        for match in _matches_between(_PHONE, text, start, end):
            inside = any(match.start() < b and a < match.end() for a, b in cards + accounts)
            kinds += ["phone number"] * (not inside and _is_phone(match[0]))
    return kinds


def _matches_between(pattern: re.Pattern[str], text: str, start: int, end: int) -> Iterator[re.Match[str]]:
    """Matches that begin between two places; each also sees the text before and after it."""
    position = start
    while (match := pattern.search(text, position, min(len(text), end + 2))) and match.start() < end:
        yield match
        position = match.end()


def _may_hold_key(text: str) -> bool:
    return (
        ("-" in text and ("sk-" in text or "xox" in text or "glpat-" in text))
        or ("_" in text and any(piece.endswith(_UNDERSCORED) for piece in text.split("_")))
        or ("K" in text and "AKIA" in text)
        or ("S" in text and "ASIA" in text)
        or ("z" in text and "AIza" in text)
    )


_UNDERSCORED = ("hf", "ghp", "gho", "ghu", "ghs", "ghr", "pat", "live", "npm")


def is_card(text: str) -> bool:
    """Whether digits form a payment card number, by issuer digits, length and Luhn's checksum (ISO/IEC 7812)."""
    digits = [int(c) for c in text if c.isdigit()]
    head, n = int("".join(map(str, digits[:4]))), len(digits)
    issued = (
        (head // 1000 == 4 and n in (16, 19))
        or (n == 16 and (51 <= head // 100 <= 55 or 2221 <= head <= 2720 or 3528 <= head <= 3589))
        or (n == 15 and head // 100 in (34, 37))
        or (16 <= n <= 19 and (head == 6011 or 644 <= head // 10 <= 659 or head // 100 == 62))
    )
    return issued and luhn(digits)


def luhn(digits: list[int]) -> bool:
    """Whether the sum of the digits, every second from the right doubled, is a multiple of ten."""
    doubled = (2 * d - 9 * (d > 4) for d in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0


def is_iban(text: str) -> bool:
    """Whether letters and digits have the length and checksum of an IBAN (ISO 13616, ISO 7064 mod 97)."""
    compact = text.replace(" ", "")
    if not 15 <= len(compact) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in compact[4:] + compact[:4])) % 97 == 1


def _is_phone(text: str) -> bool:
    """Whether a match has a phone number's length (ITU-T E.164) and is not fictional; sums have longer digit runs."""
    digits = sum(c.isdigit() for c in text)
    most = 13 if text[1:].isdigit() else 15
    return 8 <= digits <= most and not _FILMS.search(text)


def _private_finding(
    code: str, severity: Severity, kinds: tuple[str, ...], private: Private, table: ItemTable, remedy: str
) -> Finding:
    hit, ids = private.items(kinds), FirstIds()
    for item in hit:
        ids.add(table.ids[item])
    counts = ", ".join(f"{kind} {private.counts[kind]}" for kind in kinds if private.counts[kind])
    message = f"{len(hit)} of {table.items} items contain {'personal data' if code == 'personal_data' else 'secrets'}"
    return finding(
        code, severity if hit else "ok", len(hit), table.items, message + (f": {counts}" if counts else ""), remedy, ids
    )
