"""Personal data and secrets: every kind is counted, examples and arithmetic ignored, the text never shown."""

import json
from dataclasses import asdict

import pytest

from afzal.data import Dataset
from afzal.quality import audit
from afzal.quality.private import PERSONAL, SECRETS, is_card, is_iban, luhn, private_kinds
from afzal.records import Item, Response

KEY = "".join(("sk-", "Ab3dE6gH9jK2mN5pQ8sT1vW4"))  # in parts, so that secret scanners ignore this file
HIT = {
    "write to dilnoza.k@umail.uz today": "e-mail address",
    "(me+you@sub.mail.co.uk)": "e-mail address",
    "call +998 90 123 45 67": "phone number",
    "call +998901234567.": "phone number",
    "call (215) 204-3120": "phone number",
    "call 323-856-7866, now": "phone number",
    "call +1 917-444-6321": "phone number",
    "IBAN DE89 3704 0044 0532 0130 00": "IBAN",
    "GB82WEST12345698765432": "IBAN",
    "card 4111 1111 1111 1111": "card number",
    "card 4111111111111111,": "card number",
    "card 5500-0000-0000-0004": "card number",
    "amex 3782 822463 10005": "card number",
    "+3782 822463 10005": "card number",  # and not a phone number
    f"key {KEY}.": "access key",
    "AKIA" + "IOSFODNN7EXAMPLE": "access key",
    "ghp_" + "a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8": "access key",
    "-----BEGIN RSA PRIVATE " + "KEY-----\n" + "MIIEpAIBAAKCAQEA" * 5: "private key",
    "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0NTY3ODkwIn0." + "dozjgNryP4J3jVmNHl0w5N": "signed token",
}
CLEAN = (
    "plain words and 12 eggs",
    "@property def x(self): return self@other",
    "user@example.com, a@b, name@localhost, you@yourcompany.com",
    "a@d.co b@x.co",
    "256626720691 + 1646615806005 = 1903242526696",
    "472547338 +960397912423686",
    "1.4111111111111111 and 0.5500000000000004",
    "4111 1111 1111 1112",  # Luhn says no
    "DE89 3704 0044 0532 0130 01",  # mod 97 says no
    "+1 (555) 555-5555 in films, 123-456-7890 in forms",
    "2023-11-28 12:30:45, 192.168.100.200, 978-3-16-148410-0",
    "345 678 1234 456 789 2345",
    "sk-xxxxxxxxxxxxxxxxxxxxxxxx and ask-me-anything-about-this-one-1",
    "-----BEGIN PRIVATE KEY-----\n...",
    "task_type, hf_dataset, k_live_1",
)


@pytest.mark.parametrize("text", HIT)
def test_every_kind_is_found_once(text):
    assert private_kinds(text) == [HIT[text]]
    assert private_kinds(f"{'so it is ' * 50}{text}\n{'and on ' * 50}") == [HIT[text]]


@pytest.mark.parametrize("text", CLEAN)
def test_examples_and_arithmetic_are_left_alone(text):
    assert private_kinds(text) == []


def test_the_tests_cover_every_kind():
    assert set(HIT.values()) == {*PERSONAL, *SECRETS}


def test_luhn_refuses_every_single_wrong_digit_and_nine_of_ten_numbers():
    digits = [int(c) for c in "4539578763621486"]
    assert luhn(digits)
    for k in range(16):
        for wrong in range(1, 10):
            assert not luhn([*digits[:k], (digits[k] + wrong) % 10, *digits[k + 1 :]])
    assert sum(luhn([int(c) for c in str(n)]) for n in range(10_000, 20_000)) == 1000
    assert is_card("4539 5787 6362 1486")
    assert not is_card("9539 5787 6362 1487")  # no issuer's


def test_an_account_needs_its_length_and_checksum():
    assert is_iban("GB82 WEST 1234 5698 7654 32")
    assert not is_iban("GB83 WEST 1234 5698 7654 32")
    assert not is_iban("GB82 WEST")


def test_rows_and_counts_are_told_and_never_the_text():
    texts = ["write to ali.valiyev@mail.uz or vali@mail.uz", "call +998 90 123 45 67", KEY, "nothing"]
    items = [Item(f"row{n}", text, (Response("fine"), Response("well"))) for n, text in enumerate(texts)]
    items.append(Item("row4", "Q", (Response("fine"), Response(texts[1]))))
    made = audit(Dataset(items, "standard", len(items)))
    by_code = {f.code: f for f in made.findings}
    personal, secrets = by_code["personal_data"], by_code["secrets"]
    assert (personal.severity, personal.count, personal.total, personal.ids) == (
        "minor",
        3,
        5,
        ["row0", "row1", "row4"],
    )
    assert "e-mail address 2, phone number 2" in personal.message
    assert (secrets.severity, secrets.count, secrets.ids) == ("major", 1, ["row2"])
    said = json.dumps(asdict(made))
    assert not [piece for piece in ("valiyev", "123 45", KEY) if piece in said]
