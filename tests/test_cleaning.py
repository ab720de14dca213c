import pytest

from rolellm_utils import cleaning
from rolellm_utils.records import Sample
from tests.test_splits import answers


@pytest.mark.parametrize(
    ("text", "rules"),
    [
        ("As an AI language model, I have no feelings.", ["AI identity"]),
        ("I am just an AI.", ["AI identity"]),
        ("I was trained by OpenAI.", ["AI identity"]),
        ("作为一个人工智能，我没有感情。", ["AI identity"]),
        ("作为一个AI，我没有感情。", ["AI identity"]),
        ("我是一个ai。", ["AI identity"]),
        ("AI assistants cannot love.", ["AI identity"]),
        ("“AI assistant” they call me.", ["AI identity"]),
        ("Well—AI models like me do not row.", ["AI identity"]),
        ("我只是一个AI助手。", ["AI identity"]),
        ("She said it again in the air.", []),
        ("我的模型飞机坏了。", []),
        ("In my script I never say that.", ["role identity"]),
        ("I am a fictional character, after all.", ["role identity"]),
        ("我的角色是一个船夫。", ["role identity"]),
        ("剧本里没有写。", ["role identity"]),
        ("I can read this script, sailor: it is Greek.", []),
        ("A man of strong character.", []),
        ("I'm sorry, but I cannot help with that.", ["refusal"]),
        ("I'm sorry, but as John Keating, I don't think that is relevant.", ["refusal"]),
        ("I’m sorry, but I can’t assist with that.", ["refusal"]),
        ("I can't help but laugh at you, lass.", []),
        ("I am sorry for your loss.", []),
        ("抱歉，我不能回答这个问题。", ["refusal"]),
        ("朕无法回答。", ["refusal"]),
        ("俺老孙不能饶你！", []),
        ("Sorry, as an AI model I cannot answer.", ["AI identity", "refusal"]),
        ("", ["incomplete"]),
        ("one, two, ", ["incomplete"]),
        ("...", ["incomplete"]),
        ("Aye, lass. The sea keeps her own books.", []),
        ("俺老孙来也！", []),
        ("42", []),
        ('It said "Go home."', []),
    ],
)
def test_the_four_cleaning_rules(text, rules):
    assert cleaning.broken_rules(text) == rules


def test_the_words_that_come_first_never_hide_what_the_pattern_would_find():
    texts = [
        "As an AI, no", "as an ai model", "AI助手", "我是AI", "作为AI", "GPT-4 says", "I am a chatbot", "智能助手",
        "by OpenAI", "my role in the play", "扮演的角色", "I'm not able to answer that", "I am unable to help you",
        "不好意思，我没法", "I'm afraid I do not know", "I apologise, I have no idea",
    ]  # fmt: skip
    for text in [*texts, *(text.lower() for text in texts), *(f"He said: “{text}”" for text in texts)]:
        rules = [rule for rule, (_, pattern) in cleaning.BREAKS.items() if pattern.search(text.replace("’", "'"))]
        assert cleaning.broken_rules(text, tuple(cleaning.BREAKS)) == rules, text


def test_cleaning_drops_references_then_rows_and_says_why():
    rows = answers(("A",), 3, 0)
    rows[0]["generated"] = ["As an AI, no.", "Aye."]
    rows[1]["generated"] = ["", "I cannot answer that."]
    rows[2]["generated"] = ["Aye.", "Aye.", "No."]
    samples, drops, verdicts = cleaning.clean(rows)
    kept = [(sample.question, sample.generated) for sample in samples]
    assert kept == [("general 0?", ["Aye."]), ("general 2?", ["Aye.", "No."])]
    reasons = ["AI identity", "incomplete", "refusal", "duplicate reference"]
    assert [drop["reason"] for drop in drops] == reasons
    assert [(verdict["verdict"], verdict["references"]) for verdict in verdicts] == [
        ("kept", 1), ("dropped", 0), ("kept", 2)
    ]  # fmt: skip
    assert verdicts[1]["reasons"] == {"incomplete": 1, "refusal": 1}


def test_repair_merges_rows_and_drops_references_and_records_each():
    rows = [
        Sample(role="A", question="q", generated=["one", "I am an AI language model."], type=["x", "y"]),
        Sample(role="B", question="q", generated=["I'm sorry, but I can't do that."], type=["x"]),
        Sample(role="A", question="q", generated=["one", "two"], type=["x", "z"]),
    ]
    repaired, drops = cleaning.repair(rows, "role_specific/test.jsonl")
    assert repaired == [Sample(role="A", question="q", generated=["one", "two"], type=["x", "z"])]
    assert sorted(drop["reason"] for drop in drops) == [
        "AI identity", "duplicate reference", "duplicate row, merged", "refusal", "row without a reference left"
    ]  # fmt: skip
    assert all(drop["file"] == "role_specific/test.jsonl" and drop["question"] == "q" for drop in drops)
    assert rows[0].generated == ["one", "I am an AI language model."], "the rows given stay as they are"
