"""The page: complete, self-contained, safe, and honest about what is missing."""

import json
import re
from html.parser import HTMLParser

import helpers_report as rr
import pytest

from afzal import report
from afzal.errors import AfzalError
from afzal.report import views
from afzal.report.page import HTML, JSON
from afzal.report.run_files import load

VOID = {"meta", "link", "br", "hr", "img", "input"}


class Checker(HTMLParser):
    """Collects tags and attributes, and checks that elements nest."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.text, self.faults = [], [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.faults.append(f"</{tag}> closes nothing at {self.getpos()}")

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text.append(data)


def parse(html):
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert not checker.faults
    assert not checker.open
    return checker


def words(checker):
    return re.sub(r"\s+", " ", " ".join(checker.text))


def built(folder):
    return report.build(folder).read_text("utf-8")


@pytest.fixture(params=["dpo", "kto", "sft", "stopped", "empty"])
def any_run(request, tmp_path):
    if request.param == "stopped":
        return rr.stopped_run(tmp_path / "run")
    if request.param == "empty":
        return rr.empty_run(tmp_path / "run")
    return rr.write_run(tmp_path / "run", request.param)


def test_every_kind_of_run_gives_a_well_formed_page(any_run):
    page = parse(built(any_run))
    ids = [value for _, name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    links = [value[1:] for tag, name, value in page.attributes if tag == "a" and name == "href"]
    assert set(links) <= set(ids)
    assert "None" not in words(page).replace("None.", "")
    assert not re.search(r"\bnan\b", words(page))


def test_the_page_stands_alone(any_run):
    html = built(any_run)
    page = parse(html)
    assert not {"script", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    assert not [(t, n) for t, n, _ in page.attributes if n.startswith("on") or n in ("src", "srcset", "style")]
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert "url(" not in html
    policy = next(v for t, n, v in page.attributes if t == "meta" and n == "content" and v.startswith("default-src"))
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_the_policy_admits_the_style_sheet_and_nothing_else(tmp_path):
    import base64
    import hashlib

    html = built(rr.write_run(tmp_path / "run"))
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL).group(1)
    stated = re.search(r"style-src 'sha256-([^']+)'", html).group(1)
    assert stated == base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()


def test_the_key_numbers_stand_on_the_page_with_their_interval(tmp_path):
    folder = rr.write_run(tmp_path / "run")
    last = [m for m in rr.dpo_metrics() if m["kind"] == "eval"][-1]
    text = words(parse(built(folder)))
    assert f"{last['rewards/accuracies']:.4f}" in text
    assert f"[{last['rewards/accuracies_low']:.3f}, {last['rewards/accuracies_high']:.3f}]" in text
    for part in (
        "healthy",
        "stories260k",
        "189 held-out items",
        "identical pair",
        "over long",
        "0.6%",
        "longer answer",
    ):
        assert part in text, part


@pytest.mark.parametrize(
    ("method", "there", "absent"),
    [
        ("dpo", ["Reward accuracy", "Reward margin", "KL to the reference"], ["Perplexity", "desirable"]),
        ("kto", ["Reward of desirable", "undesirable", "KL estimate of the loss"], ["Reward accuracy", "Perplexity"]),
        (
            "sft",
            ["Perplexity", "Log-prob of responses"],
            ["Reward margin", "Implicit reward", "desirable", "of rejected"],
        ),
    ],
)
def test_sections_follow_the_method(tmp_path, method, there, absent):
    text = words(parse(built(rr.write_run(tmp_path / "run", method))))
    assert [part for part in there if part not in text] == []
    assert [part for part in absent if part in text] == []


def test_what_is_missing_is_said(tmp_path):
    text = words(parse(built(rr.empty_run(tmp_path / "run"))))
    for part in (
        "No evaluation was made",
        "nothing to draw",
        "No samples were drawn",
        "Nothing is recorded",
        "missing",
    ):
        assert part in text, part
    train_only = [m for m in rr.dpo_metrics() if m["kind"] == "train"]
    text = words(parse(built(rr.write_run(tmp_path / "train", metrics=train_only, samples=[]))))
    assert "No evaluation was made" in text
    assert "Nothing was held out" in text or "nothing was held out" in text


@pytest.mark.parametrize(
    ("settings", "missed"),
    [("method: irl\n", False), ("sample_prompts: 0\n", False), ("sample_prompts: 2\n", True), ("", True)],
)
def test_samples_are_missed_only_where_a_run_draws_some(tmp_path, settings, missed):
    (tmp_path / "run.json").write_text('{"afzal": "0"}')
    (tmp_path / "run.yaml").write_text(settings)
    assert ("samples.jsonl is missing." in load(tmp_path).notes) == missed


def test_a_stopped_run_says_so_and_its_torn_line_costs_nothing(tmp_path):
    text = words(parse(built(rr.stopped_run(tmp_path / "run"))))
    assert "unfinished: step 40 of 96" in text
    assert "SIGTERM" in text
    assert "metrics.jsonl: 1 damaged line skipped" in text
    assert "Not sampled." in text  # nothing was sampled after training


@pytest.mark.parametrize(
    "name", ["run.yaml", "data.json", "samples.jsonl", "dropped.jsonl", "metrics.jsonl", "sections.json"]
)
@pytest.mark.parametrize("content", [b"", b"\x00\xff{[", b"[1, 2]", b'"text"', b"null\n{}\n[]\n"])
def test_a_damaged_file_never_stops_the_report(tmp_path, name, content):
    folder = rr.write_run(tmp_path / "run")
    (folder / name).write_bytes(content)
    parse(built(folder))


def test_rows_left_out_are_read_from_folders_of_earlier_versions_too(tmp_path):
    folder = rr.write_run(tmp_path / "run")
    page = built(folder)
    assert "identical_pair" in words(parse(page))
    assert "the first 18 of dropped.jsonl" in words(parse(page))
    (folder / "dropped.jsonl").rename(folder / "losses.jsonl")
    assert built(folder) == page


@pytest.mark.parametrize(
    "content", [b"{}", b"[]", b"not json", b'{"data": 3, "model": [], "objective": null, "step": "x"}']
)
def test_damaged_facts_never_stop_the_report(tmp_path, content):
    folder = rr.write_run(tmp_path / "run")
    (folder / "run.json").write_bytes(content)
    parse(built(folder))


def test_numbers_that_are_not_finite_are_gaps_and_null(tmp_path):
    metrics = rr.dpo_metrics()
    metrics[20]["loss"], metrics[21]["grad_norm"], metrics[22]["rewards/margins"] = "NaN", float("nan"), float("inf")
    folder = rr.write_run(tmp_path / "run", metrics=metrics)
    text = words(parse(built(folder)))
    assert "not finite" in text
    told = (folder / JSON).read_text("utf-8")
    assert "NaN" not in told.replace('"NaN"', "")
    assert "Infinity" not in told
    json.loads(told, parse_constant=lambda c: pytest.fail(c))


def test_a_folder_that_is_no_run_is_refused_with_a_remedy(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(AfzalError) as fault:
            report.build(path)
        assert str(path) in str(fault.value)
        assert "afzal runs" in str(fault.value)


PAYLOADS = [
    "<script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title></head><body onload=alert(1)>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "{{ 7*7 }}{% for x in ().__class__.__bases__ %}x{% endfor %}",
    "javascript:alert(1)//",
    "]]><![CDATA[<script>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "<!--><script>alert(1)</script>-->",
    "\u202e\u2066<b>x\x00\ud800",
    "<a href='javascript:alert(1)'>x</a><iframe srcdoc='<script>alert(1)</script>'>",
]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_from_people_or_models_becomes_markup(tmp_path, payload):
    """With the payload in every text of the run folder, the page has the same elements as with harmless text."""

    def page(name, text):
        facts = rr.facts(command=text, stop_reason=text, reference=text, seed=text, started=text)
        facts["model"] = {"path": text, "architecture": text, "parameters": 1, "trainable": 1}
        facts["data"] |= {"source": text, "format": text, "dropped": {text: 2}, "cut": {text: 1}, "fingerprint": text}
        facts["objective"] = {"name": text, "params": {text: text}, "at_reference": None}
        facts["versions"], facts["hardware"] = {text: text}, {text: text}
        audit = {"audit": {text: 1, "findings": [{"code": text, "severity": text, "message": text, "remedy": text}]}}
        rows = [{"where": text, "item_id": text, "reason": text, "detail": text, "stage": text, "action": "dropped"}]
        folder = rr.write_run(
            tmp_path / name,
            facts=facts,
            config={**rr.config(), text: text},
            samples=rr.samples(prompt=text, text=text),
            audit={**audit, "notes": [text]},
            losses=rows,
        )
        series = report.Series(text, ((0, 1.0), (1, 2.0)), label=text)
        chart = report.LineChart((series,), x_label=text, y_label=text, rules=(report.Rule(1.5, text),))
        spots = report.FrontierChart((report.PolicyPoint(text, 1, 1),), ((0, 0), (1, 2)), (series,), text, text, text)
        table = report.Table((text,), ((text,),))
        extra = (report.Section(text, text, chart, table), report.Section(text, text, spots))
        return parse(report.build(folder, extra).read_text("utf-8"))

    evil, harmless = page("evil", payload), page("harmless", "harmless text")
    assert evil.tags == harmless.tags
    assert [(t, n) for t, n, _ in evil.attributes] == [(t, n) for t, n, _ in harmless.attributes]
    assert "alert(1)" not in "".join(v or "" for _, n, v in evil.attributes if n != "aria-label")


def test_the_run_name_is_escaped(tmp_path):
    name = "<img src=x onerror=alert(1)>"
    page = parse(built(rr.write_run(tmp_path / name)))
    assert "img" not in page.tags
    assert name in words(page)


def test_samples_show_what_the_model_read_and_those_of_earlier_versions_are_shown_as_well(tmp_path):
    now, before = rr.samples(1), rr.samples(1)
    now = [{**row, "prompt": [{"role": "user", "content": "hi"}], "rendered": "user: hi bot:"} for row in now]
    before = [{"text": row.pop("completion"), **row} for row in before]
    shown = views.samples([*now, *[{**row, "prompt_id": "old"} for row in before]], tmp_path)
    assert [entry["prompt"] for entry in shown] == ["user: hi bot:", before[0]["prompt"]]
    assert shown[0]["sides"] == shown[1]["sides"]
    assert all(text["text"] for entry in shown for side in entry["sides"] for text in side["texts"])


def test_control_characters_of_a_sample_are_shown(tmp_path):
    folder = rr.write_run(tmp_path / "run", samples=rr.samples(1, text="safe\u202etxt.exe\x1b[31m"))
    assert "safe⟨U+202E⟩txt.exe␛[31m" in words(parse(built(folder)))


def test_secrets_of_the_configuration_do_not_reach_the_page(tmp_path):
    secret = "hf_" + "A1b2" * 8
    folder = rr.write_run(tmp_path / "run", config={**rr.config(), "hub_token": secret, "api_key": "k-123456789"})
    html = built(folder)
    assert secret not in html
    assert "k-123456789" not in html
    assert secret not in (folder / JSON).read_text("utf-8").replace("run.yaml", "")


def test_long_samples_are_cut_with_a_count_and_many_prompts_with_a_note(tmp_path):
    folder = rr.write_run(tmp_path / "run", samples=rr.samples(60, text="word " * 2000))
    text = words(parse(built(folder)))
    assert "(6,000 more characters)" in text or "(5,999 more characters)" in text
    assert "the first 40 are shown" in text


def test_report_json_tells_machines_the_same(tmp_path):
    folder = rr.write_run(tmp_path / "run")
    html = built(folder)
    told = json.loads((folder / JSON).read_text("utf-8"))
    assert told["schema"] == "afzal.report/1"
    assert told["verdict"]["word"] == "healthy"
    assert told["verdict"]["sentence"] in words(parse(html))
    last = [m for m in rr.dpo_metrics() if m["kind"] == "eval"][-1]
    accuracy = next(m for m in told["measures"] if m["name"] == "Reward accuracy")
    assert accuracy["after"] == last["rewards/accuracies"]
    assert accuracy["before"] == 0.5
    assert len(told["metrics"]) == len(rr.dpo_metrics())


def test_building_twice_gives_the_same_bytes(tmp_path):
    folder = rr.write_run(tmp_path / "run")
    assert built(folder) == built(folder)
    assert not [p.name for p in folder.iterdir() if p.name.endswith(".tmp")]


def test_kept_weights_are_the_after(tmp_path):
    metrics = rr.dpo_metrics(held_out_loss=lambda t: rr.LN2 - 0.8 * t + 0.85 * t * t)
    reason = "held-out loss did not improve; kept the weights of step 50"
    folder = rr.write_run(tmp_path / "run", metrics=metrics, facts=rr.facts(kept_step=50, stop_reason=reason))
    html = built(folder)
    told = json.loads((folder / JSON).read_text("utf-8"))
    at_50 = next(m for m in metrics if m["kind"] == "eval" and m["step"] == 50)
    assert next(m["after"] for m in told["measures"] if m["name"] == "Loss") == at_50["loss"]
    assert "weights kept" in html
    assert told["verdict"]["word"] == "healthy"


def test_the_page_has_every_curve(tmp_path):
    page = built(rr.write_run(tmp_path / "run"))
    named = re.findall(r'aria-label="([^"]*) by step"', page)
    assert named == [
        "Loss",
        "Reward accuracy",
        "Reward margin",
        "Log-probability",
        "Implicit reward",
        "KL to the reference",
        "Response length",
        "Ended with EOS",
        "Gradient norm",
        "Learning rate",
    ]
    assert HTML == "report.html"


def test_rewards_are_called_what_they_are(tmp_path):
    """Only with a reference are they β (log π − log π_ref); SimPO has none, and a reward model has no β."""
    told = {
        "dpo": rr.facts("dpo"),
        "simpo": rr.facts("dpo") | {"method": "prefer", "reference": "none", "starts_at_reference": False},
        "reward": rr.facts("dpo") | {"method": "reward", "reference": "none", "starts_at_reference": False},
    }
    text = {name: words(parse(built(rr.write_run(tmp_path / name, facts=facts)))) for name, facts in told.items()}
    shown = {
        name: [part for part in ("Implicit reward", "π_ref", "β × nats", "β (beta)") if part in text[name]]
        for name in told
    }
    assert shown == {"dpo": ["Implicit reward", "π_ref", "β × nats", "β (beta)"], "simpo": [], "reward": []}
    assert "without a reference: chosen and rejected" in text["simpo"]
    assert "The reward model's score of chosen and rejected responses" in text["reward"]


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({}, "The policy before training; it stays fixed"),
        ({"reference_is_start": False}, "A model other than the policy before training"),
        ({"reference_is_start": True, "reference_moves": True}, "it moves towards the policy"),
    ],
)
def test_the_terms_say_what_the_reference_is(facts, said):
    assert said in dict(views.glossary(rr.facts("dpo", **facts)))["reference"]


def test_commands_in_advice_are_set_as_code(tmp_path):
    metrics = rr.dpo_metrics(accuracy=lambda t: 0.5)  # at chance, so that the page advises `afzal check`
    html = built(rr.write_run(tmp_path / "run", metrics=metrics))
    assert "<code>afzal check</code>" in html
    assert "`" not in words(parse(html))
