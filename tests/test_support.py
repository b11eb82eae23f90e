"""Edge cases of splitting, numbers, names, negations and windows in `kwanzaa_nb.evaluate.support`."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kwanzaa_nb.core.stats import LabelError, auroc
from kwanzaa_nb.core.text import mentions, normal_words, sentences, split_claims, tokens
from kwanzaa_nb.evaluate.support import SUPPORTED_AT, examine, failed_gates, fit_shares, reliability, support


@pytest.mark.parametrize(
    "text, expected",
    [
        ("A is so. [1] B is so [2].", [("A is so.", (1,)), ("B is so.", (2,))]),
        ("A is so. [1][2] [1] B is so.", [("A is so.", (1, 2)), ("B is so.", ())]),
        ("A is so.[1] B is so.[2]", [("A is so.", (1,)), ("B is so.", (2,))]),
        ("A is so.[1]B is so.[2]", [("A is so.", (1,)), ("B is so.", (2,))]),
        ("A [1] and B [2] are so.", [("A and B are so.", (1, 2))]),
        ("Dr. King spoke. [1]", [("Dr. King spoke.", (1,))]),
        ("Mrs. C. J. Walker sold 1.5 tons. [9]", [("Mrs. C. J. Walker sold 1.5 tons.", (9,))]),
        ("It left the U.S. in 1920. [1]", [("It left the U.S. in 1920.", (1,))]),
        ("It left the U.S. The crew stayed.", [("It left the U.S.", ()), ("The crew stayed.", ())]),
        ("Malcolm X. He spoke.", [("Malcolm X.", ()), ("He spoke.", ())]),
        ("See No. 5 of the list.", [("See No. 5 of the list.", ())]),
        ("He said no. Others agreed.", [("He said no.", ()), ("Others agreed.", ())]),
        ("Brown v. Board was decided. [1]", [("Brown v. Board was decided.", (1,))]),
        ("It began in 300 B.C. The town grew.", [("It began in 300 B.C.", ()), ("The town grew.", ())]),
        ('He said "Stop. Now." [1] She left.', [('He said "Stop. Now."', (1,)), ("She left.", ())]),
        ("He said “Stop. Now.” [1]", [("He said “Stop. Now.”", (1,))]),
        ('A board 6" wide broke. It fell.', [('A board 6" wide broke.', ()), ("It fell.", ())]),
        ("It is a work of art. Critics agreed. [1]", [("It is a work of art.", ()), ("Critics agreed.", (1,))]),
        ("Why? Because!", [("Why?", ()), ("Because!", ())]),
        ("- First item [1]\n- Second item", [("First item", (1,)), ("Second item", ())]),
        ("One paragraph\n\nAnother [2]", [("One paragraph", ()), ("Another", (2,))]),
        ("A line\nthat goes on. [1]", [("A line that goes on.", (1,))]),
        ("[1]", []),
        ("", []),
        (" ... ", []),
    ],
)
def test_claims(text, expected):
    assert [(claim.text, claim.marks) for claim in split_claims(text)] == expected


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from('aB 1.!?"“”[]()\n-é,'), max_size=60))
def test_splitting_loses_no_character(text):
    def kept(some):
        return [character for character in some if character.isalnum()]

    whole, found = kept(text), kept("".join(sentences(text)))
    missing = len(whole) - len(found)
    listed = sum(line.strip()[:1].isdigit() for line in text.splitlines())  # "1. " before a list item is dropped
    assert 0 <= missing <= 2 * listed


@pytest.mark.parametrize("left, right", [
    ("twenty-seven years", "27 years"), ("one hundred and five", "105"), ("two thousand five hundred", "2,500"),
    ("three million", "3,000,000"), ("1.5 million", "1,500,000"), ("the nineteenth century", "the 19th century"),
    ("twenty-first", "21st"), ("forty", "40"), ("Nguzo Saba’s", "nguzo saba"), ("Césaire", "Cesaire")])
def test_same_words(left, right):
    assert normal_words(left) == normal_words(right)


@pytest.mark.parametrize("left, right", [("19", "19th"), ("1960", "1960s"), ("2", "20"), ("1.5", "15"), ("1861-65", "186165")])
def test_different_words(left, right):
    assert normal_words(left) != normal_words(right)


def test_mentions_on_word_boundaries():
    assert mentions("It was Umoja.", ["umoja"])
    assert not mentions("It was Umojas.", ["umoja"])
    assert not mentions("anything", [""])
    assert not mentions("It is said. [7]", ["seven"])


CHUNK = (
    "Ida B. Wells was born in Holly Springs, Mississippi, on July 16, 1862. "
    "Wells co-owned the Memphis Free Speech from 1889. "
    "A mob did not spare the office and destroyed it in May 1892. Frederick Douglass wrote a letter to Wells."
)


@pytest.mark.parametrize(
    "claim",
    [
        "Ida B. Wells was born in Holly Springs, Mississippi, on July 16, 1862.",
        "Wells was born on 16 July 1862 in Holly Springs.",
        "A mob destroyed the office in May 1892.",
        "Wells co-owned the Memphis Free Speech.",
    ],
)
def test_supported(claim):
    assert support(claim, [CHUNK]) >= SUPPORTED_AT, examine(claim, [CHUNK])


@pytest.mark.parametrize(
    "claim, gate",
    [
        ("Ida B. Wells was born in Holly Springs, Mississippi, on July 16, 1863.", "number"),
        ("Ida B. Wells was born in Holly Springs, Mississippi, on May 16, 1862.", "date"),
        ("Ida B. Wells was born in Holly Springs, Alabama, on July 16, 1862.", "name"),
        ("Ida B. Douglass was born in Holly Springs, Mississippi, on July 16, 1862.", "name"),
        ("Ida B. Wells was not born in Holly Springs, Mississippi.", "negation"),
        ("A mob did spare the office.", "negation"),
        ("Garvey co-owned the Memphis Free Speech from 1889.", "name"),
        ("Three mobs destroyed the office in May 1892.", "number"),
    ],
)
def test_forged(claim, gate):
    found = examine(claim, [CHUNK])
    assert found.score < SUPPORTED_AT
    assert gate in found.failed


def test_only_the_cited_chunks_count():
    other = "The Chicago Defender was founded by Robert Abbott in 1905."
    claim = "Robert Abbott founded the Chicago Defender in 1905."
    assert support(claim, [CHUNK, other]) == support(claim, [other]) >= SUPPORTED_AT
    assert support(claim, [CHUNK]) < SUPPORTED_AT
    assert support(claim, []) == 0.0


def test_a_claim_may_draw_on_two_chunks():
    other = "The Chicago Defender was founded by Robert Abbott in 1905."
    claim = "Ida B. Wells was born in Holly Springs in 1862 and Robert Abbott founded the Chicago Defender in 1905."
    assert support(claim, [CHUNK]) < SUPPORTED_AT and support(claim, [other]) < SUPPORTED_AT
    assert support(claim, [CHUNK, other]) >= SUPPORTED_AT


def test_facts_far_apart_do_not_make_one():
    filler = " ".join(f"The committee met again in room {letter}." for letter in "abcdef")
    chunk = f"Wells lived in Memphis. {filler} The office burned in Chicago."
    assert support("The office burned in Memphis.", [chunk]) < SUPPORTED_AT


def test_what_stands_apart_in_a_chunk_ranks_higher_than_what_is_nowhere():
    filler = " ".join(f"The committee met again in room {letter}." for letter in "abcdef")
    chunk = f"Wells lived in Memphis. {filler} The office burned in Chicago."
    apart, nowhere = examine("The office burned in Memphis.", [chunk]), examine("The office burned in Boston.", [chunk])
    assert nowhere.score < apart.score < SUPPORTED_AT and nowhere.failed == ("name",)


def test_a_page_has_its_names_and_dates_in_its_opening():
    filler = " ".join(f"The committee met again in room {letter}." for letter in "abcdefghijklm")
    page = f"Wells and the Memphis Free Speech, 27 May 1892. {filler} A mob destroyed the office and its press at night."
    assert support("A mob destroyed the office of the Memphis Free Speech in May 1892.", [page]) >= SUPPORTED_AT
    assert support("A mob destroyed the office of the Memphis Free Speech in May 1893.", [page]) < SUPPORTED_AT
    assert support("A mob destroyed the office of the Boston Free Speech in May 1892.", [page]) < SUPPORTED_AT


def test_names():
    named = [token.stem for token in tokens("Scholars in New York met NAACP lawyers") if token.name]
    assert named == ["york", "naacp"] or named == ["new", "york", "naacp"]
    assert failed_gates("An Egyptian school was there.", ("A school stood in Egypt.",)) == ()
    assert failed_gates("Martin was there.", ("Martinez was there.",)) == ("name",)


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=80), st.lists(st.text(max_size=120), max_size=3))
def test_any_text_has_a_support_within_bounds(claim, chunks):
    first = support(claim, chunks)
    assert 0.0 <= first <= 1.0
    assert first == support(claim, chunks)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from("the press grew in Ghana 1957 not never Accra council votes".split()), min_size=3, max_size=12
    )
)
def test_a_sentence_supports_itself(words):
    sentence = " ".join(words) + "."
    expected = 1.0 if any(token.weight for token in tokens(sentence)) else 0.0
    assert support(sentence, [sentence]) == pytest.approx(expected)


def test_auroc():
    assert auroc([1, 2], [0, 0]) == 1.0
    assert auroc([0], [0]) == 0.5
    assert auroc([0, 2], [1]) == 0.5
    with pytest.raises(LabelError):
        auroc([], [1])


def test_reliability_reads_the_public_formats(tmp_path):
    (tmp_path / "begin_x_dev.tsv").write_text(
        "model_name\tdata_source\tknowledge\tmessage\tresponse\tbegin_label\n"
        'm\tx\tThe "Defender began in Chicago.\thi\tThe Defender began in Chicago\tFully attributable\n'
        "m\tx\tThe Defender began in Chicago.\thi\tI like trains\tGeneric\n",
        encoding="utf-8",
    )
    rows = [
        {"label": label, "claim": claim, "evidence": ["Title", "Ghana became independent in 1957."]}
        for label, claim in [
            ("supported", "Ghana became independent in 1957."),
            ("not_supported", "Kenya had many trains."),
            ("partially_supported", "Ghana became independent in 1958."),
        ]
    ]
    (tmp_path / "wice_claim_dev.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    begin, wice = reliability(tmp_path)
    assert begin == {"set": "begin_x_dev", "rows": 2, "supported": 1, "auroc": 1.0, "tpr": 1.0,
                     "fpr": 0.0, "open": 0.0}
    assert wice["auroc"] == 1.0 and wice["rows"] == 3


def test_a_set_that_was_left_out_of_the_fit_stands_beside_the_sets_of_the_fit(tmp_path, monkeypatch):
    from kwanzaa_nb.bench.benchmarks import measure_reliability
    from kwanzaa_nb.evaluate import instrument as shown

    rows = [("Fully attributable", "The Defender began in Chicago"), ("Generic", "I like trains")] * 3
    (tmp_path / "begin_x_dev.tsv").write_text("knowledge\tresponse\tbegin_label\n" + "".join(
        f"The Defender began in Chicago.\t{said}\t{label}\n" for label, said in rows), encoding="utf-8")
    assert [*map(set, measure_reliability(str(tmp_path)))] == [{"set", "rows", "supported", "auroc", "tpr", "fpr", "open"}]
    labels = [{"label": label, "claim": claim, "evidence": ["Ghana became independent in 1957."]} for label, claim in
              [("supported", "Ghana became independent."), ("not_supported", "Kenya had many trains.")] * 3]
    (tmp_path / "wice_claim_dev.jsonl").write_text("\n".join(map(json.dumps, labels)), encoding="utf-8")
    measured = measure_reliability(str(tmp_path))
    assert [row["left_out"]["set"] for row in measured] == ["begin_x_dev", "wice_claim_dev"]
    monkeypatch.setattr(shown, "stored", lambda name: {"measured": measured} if name == "reliability" else None)
    told = [row[0].partition("people, ")[2] for row in shown.instrument()[:4]]
    assert told == ["begin_x_dev, fitted on these sets", "begin_x_dev, fitted on the other sets",
                    "wice_claim_dev, fitted on these sets", "wice_claim_dev, fitted on the other sets"]


def test_reliability_says_what_is_wrong(tmp_path):
    with pytest.raises(LabelError, match="name the folder"):
        reliability(tmp_path)
    (tmp_path / "wice_claim_dev.jsonl").write_text('{"claim": "x"}\n', encoding="utf-8")
    with pytest.raises(LabelError, match="public format"):
        reliability(tmp_path)


FRESH = [  # what a chunk says, a false claim and a true one
    ("The hall was finished in 1921, three years after the war.", "The hall was finished three years before the war.",
     "The hall was finished after the war."),
    ("Women and men could join the society from 1890.", "Only women could join the society.",
     "Women and men could join the society."),
    ("About a third of the members were teachers.", "Most of the members were teachers.",
     "One third of the members were teachers."),
    ("The town was larger in 1920 than in 1930.", "The town was larger in 1930 than in 1920.",
     "The town was smaller in 1930 than in 1920."),
    ("Some say that the mayor ordered the fire.", "The mayor ordered the fire.",
     "It is said that the mayor ordered the fire."),
    ("In 1905 Clara Boyd sold the house to Henry Lane.", "In 1905 Clara Boyd bought the house from Henry Lane.",
     "In 1905 Henry Lane bought the house from Clara Boyd."),
    ("Mercer denied that he had burned the letters.", "Mercer burned the letters.",
     "Mercer denied that he burned the letters."),
    ("Ella Finch wrote the play in 1931. Rosa Dale directed it.", "Rosa Dale wrote the play in 1931.",
     "The play was written by Ella Finch in 1931."),
    ("The nurse opened the clinic in May. The priest raised the money.", "The priest opened the clinic in May.",
     "The nurse opened the clinic in May."),
    ("Jane Holt was born in 1862 and died in 1931.", "Jane Holt died at the age of 75.",
     "Jane Holt was born in the 19th century."),
    ("The bridge is 5 miles long.", "The bridge is 5 kilometres long.", "The bridge is five miles long."),
    ("The school planned to admit girls in 1950.", "The school admitted girls in 1950.",
     "In 1950 the school planned to admit girls."),
    ("At least 200 people heard her.", "Fewer than 200 people heard her.", "More than 200 people heard her."),
    ("Gomez taught Rivera to paint.", "Rivera taught Gomez to paint.", "Rivera learned to paint from Gomez."),
    ("The council rejected the plan because of its cost.", "The council rejected the plan despite its cost.",
     "The council rejected the plan due to its cost."),
    ("The library stayed open until 1934, when the money ran out.",
     "The library has been open since 1934.",
     "The library was open until 1934."),
    ("The orchestra was founded in 1912 and disbanded in 1929.",
     "The orchestra was disbanded in 1912.",
     "The orchestra disbanded in 1929."),
    ("She may have met Douglass in Rochester in 1849.",
     "She met Douglass in Rochester in 1849.",
     "It is possible that she met Douglass in Rochester in 1849."),
    ("The strike nearly closed the mill in the spring of 1907.",
     "The strike closed the mill in the spring of 1907.",
     "In the spring of 1907 the strike nearly closed the mill."),
    ("Members had to pay a dollar a month; visitors paid nothing.",
     "Visitors had to pay a dollar a month.",
     "Members paid a dollar each month."),
    ("The population grew from 4,000 in 1900 to 9,000 in 1910.",
     "The population grew from 9,000 in 1900 to 4,000 in 1910.",
     "By 1910 the population had grown to 9,000 from 4,000 in 1900."),
    ("The court did not hear the case until 1921.",
     "The court heard the case until 1921.",
     "The court first heard the case in 1921."),
    ("All but two of the houses survived the flood.",
     "Only two of the houses survived the flood.",
     "Two of the houses did not survive the flood."),
    ("Hughes admired the poems of Dunbar.",
     "Dunbar admired the poems of Hughes.",
     "The poems of Dunbar were admired by Hughes."),
    ("The governor refused to sign the bill.",
     "The governor signed the bill.",
     "The bill was not signed by the governor."),
    ("The museum lies ten miles north of Dayton.",
     "The museum lies ten miles south of Dayton.",
     "The museum is ten miles to the north of Dayton."),
    ("Brown was the father of the pianist Clara Brown.",
     "Brown was the son of the pianist Clara Brown.",
     "The pianist Clara Brown was a daughter of Brown."),
    ("Few of the pupils finished the course.",
     "Most of the pupils finished the course.",
     "Few pupils finished the course."),
    ("The hall was built by Ames and paid for by Lowell.",
     "The hall was built by Lowell.",
     "Ames built the hall."),
    ("Critics accused Reed of copying the design.",
     "Reed copied the design.",
     "Reed was accused by critics of copying the design."),
    ("If the bridge had been finished, the town would have grown.",
     "The bridge was finished and the town grew.",
     "The town would have grown if the bridge had been finished."),
    ("The company lost money in each year but 1913.",
     "The company lost money in 1913.",
     "The company lost money in each year except 1913."),
    ("More women than men signed the petition.",
     "More men than women signed the petition.",
     "Fewer men than women signed the petition."),
    ("The choir sang in Boston before it went to London.",
     "The choir sang in Boston after it went to London.",
     "The choir went to London after it sang in Boston."),
    ("Washington invited Carver to Tuskegee in 1896.",
     "Carver invited Washington to Tuskegee in 1896.",
     "Carver was invited to Tuskegee by Washington in 1896."),
    ("The river is shallower than the lake.",
     "The lake is shallower than the river.",
     "The lake is deeper than the river."),
    ("The treaty allowed the farmers to keep their land.",
     "The treaty forbade the farmers to keep their land.",
     "Farmers were allowed to keep their land under the treaty."),
    ("At most 40 children were taught at a time.",
     "At least 40 children were taught at a time.",
     "No more than 40 children were taught at a time."),
    ("The school was moved from Selma to Mobile in 1877.",
     "The school was moved from Mobile to Selma in 1877.",
     "In 1877 the school moved to Mobile from Selma."),
    ("Its roof is of slate and its walls are of brick.",
     "Its roof is of brick.",
     "The walls are made of brick."),
    ("The president vetoed the bill, but Congress passed it again.",
     "The president passed the bill again.",
     "Congress passed the bill again."),
    ("Half of the votes were counted by noon.",
     "All of the votes were counted by noon.",
     "By noon half of the votes had been counted."),
    ("The plant was formerly used as a medicine.",
     "The plant is now used as a medicine.",
     "The plant used to be used as a medicine."),
    ("Nobody was hurt in the fire of 1888.",
     "Several people were hurt in the fire of 1888.",
     "The fire of 1888 hurt nobody."),
    ("The record was broken by Owens in 1936.",
     "Owens set no record in 1936.",
     "Owens broke the record in 1936."),
    ("Wheat was cheaper than cotton in those years.",
     "Cotton was cheaper than wheat in those years.",
     "Cotton cost more than wheat in those years."),
    ("The letters were never published during her life.",
     "The letters were published during her life.",
     "The letters were not published while she was alive.")]


@pytest.mark.parametrize("chunk, false, true", FRESH)
def test_a_small_word_turns_a_claim_round(chunk, false, true):
    assert support(false, [chunk]) < SUPPORTED_AT <= support(true, [chunk])


@pytest.mark.parametrize("written", [
    "- **Rosa Dale** directed the play in 1931. [2][3]", "1. Rosa Dale directed the play in 1931 [1, 2].",
    "## Rosa Dale Directed The Play In 1931", "Sure! Rosa Dale directed the play in 1931.",
    "According to the passage, Rosa Dale directed the play in 1931."])
def test_the_form_of_an_answer_does_not_count(written):
    chunk = "Ella Finch wrote the play. In 1931 Rosa Dale directed the play at the Lakeside hall."
    assert support(written, [chunk]) >= SUPPORTED_AT, examine(written, [chunk])
    assert support(written.replace("1931", "1932"), [chunk]) < SUPPORTED_AT


def test_verdicts_and_texts_of_several_sentences():
    assert examine("The hall was finished in 1921.", ["The hall was finished in 1921."]).verdict == "supported"
    assert examine("The hall was finished in 1921.", ["A wall fell."]).verdict == "unsupported"
    both = examine("Yes! The hall was finished in 1921. Trains were late.", ["The hall was finished in 1921."])
    assert both.score == support("Trains were late.", ["The hall was finished in 1921."])


def test_weights_are_shares_and_come_from_labels(tmp_path):
    rows = [{"label": label, "claim": claim, "evidence": ["Ghana became independent in 1957."]} for label, claim in
            [("supported", "Ghana became independent."), ("not_supported", "Kenya had many trains.")] * 3]
    (tmp_path / "wice_claim_dev.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    weights = fit_shares(tmp_path)
    assert list(weights) == ["words", "pairs", "phrases", "clauses"] and min(weights.values()) >= 0
    assert sum(weights.values()) == pytest.approx(1, abs=0.03)
