"An unfinished output: never given up while it can be saved, and soon when it cannot."

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from kwanzaa_nb.answer import AnswerError, ModelAnswer, parse_strict_json
from kwanzaa_nb.prefix import PrefixCheck

TEXT = st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=12)
NOTES = st.lists(TEXT, max_size=3)
ANSWER = st.fixed_dictionaries(
    {
        "citations": st.lists(st.fixed_dictionaries({"chunk_id": TEXT, "quote": TEXT}), max_size=3),
        "answer": st.fixed_dictionaries(
            {"completeness": st.sampled_from(["complete", "partial", "insufficient_data"]), "text": TEXT}
        ),
        "unknowns": st.fixed_dictionaries(
            {"unsupported_claims": NOTES, "missing_context": NOTES, "clarifying_questions": NOTES}
        ),
    }
)


def accepted(text):
    try:
        ModelAnswer.model_validate(parse_strict_json(text))
    except (AnswerError, ValueError):
        return False
    return True


@given(ANSWER, st.booleans(), st.sampled_from([None, 1]), st.randoms())
def test_whatever_the_parser_accepts_is_alive_to_its_end(answer, ascii_only, indent, chance):
    keys = list(answer)
    chance.shuffle(keys)
    text = json.dumps({key: answer[key] for key in keys}, ensure_ascii=ascii_only, indent=indent)
    assert accepted(text)
    check = PrefixCheck()
    assert all(check.feed(char) for char in text) and check.complete and check.feed(" \n")
    assert not check.feed("x")


@settings(max_examples=400)
@given(ANSWER, st.data())
def test_one_changed_character_is_alive_wherever_the_parser_still_accepts_it(answer, data):
    text = json.dumps(answer, ensure_ascii=False)
    place = data.draw(st.integers(0, len(text) - 1))
    char = data.draw(st.sampled_from(list('{}[]",:\\ \n\tua0d8é') + [""]))
    changed = text[:place] + char + text[place + 1 :]
    check = PrefixCheck()
    alive = check.feed(changed)
    if accepted(changed):
        assert alive and check.complete
    if not alive:
        # nothing that begins like this may be accepted, however it goes on
        start = changed[: check.read]
        for rest in (text[place:], text[place + 1 :], '"}]}', "}", '"', ""):
            assert not accepted(start + rest)


def test_dead_at_the_first_wrong_character():
    for text, read in (
        ("Sure", 1),
        ("  ```json", 3),
        ("\ufeff{", 1),
        ('{"answers"', 9),
        ('{"citations":{', 14),
        ('{"citations":[],]', 17),
        ('{"citations":[],"citations', 18),
        ('{"citations":[],}', 17),
        ('{"citations":[{"chunk_id":"\\ud83d"', 34),
        ('{"citations":[{"chunk_id":"\\udc00', 33),
        ('{"citations":[{"chunk_id":"\\x', 29),
        ('{"citations":[{"chunk_id":"a\n', 29),
        ('{"citations":[{"chunk_id":"a"}', 30),
        ('{"answer":{"completeness":"comb', 31),
        ('{"answer":{"completeness":"comp"', 32),
        ('{"citations":[1', 15),
        ('{"citations":[' + ",".join(['{"chunk_id":"a","quote":"b"}'] * 8) + ",{", 14 + 8 * 28 + 8 + 1),
    ):
        check = PrefixCheck()
        assert not check.feed(text) and check.read == read, (text, check.read)
