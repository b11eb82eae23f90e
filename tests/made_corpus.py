"A made-up corpus: libraries of towns, with a question of every sort on each of them."

from kwanzaa_nb.data.corpus import Chunk
from kwanzaa_nb.data.questions import Question

TOWNS = ("Akron Boston Camden Dayton Easton Fresno Galway Hobart Irvine Juneau Kenora Lisbon "
         "Mobile Newark Oxford Peoria Quebec Racine Salem Tacoma").split()
NAMES = "Ada Ben Cora Dan Eve Fay Gus Hal Ida Joe Kay Lee May Ned Ola Pam Roy Sue Tom Una".split()


def passage(name, text, document=None, namespace="libraries", year=1950):
    return Chunk(chunk_id=name, doc_id=document or name, citation_label=f"On {name}", text=text,
                 canonical_url="https://example.org/", source_org="An archive", year=year,
                 content_type="summary", license="CC0-1.0", namespace=namespace)


def facts(town, place):
    "The years of a town's library, and its first librarian."
    return {"town": town, "opened": 1701 + 3 * place, "closed": 1902 + 2 * place,
            "guide": 1501 + 2 * place, "letter": 1600 + 2 * place,
            "name": f"{NAMES[place]} Reed"}


TEXTS = (
    "The library of {town} opened in {opened}. Its first librarian was {name}. "
    "It is made of brick.",
    "The reading room in {town} closed in {closed}. Nobody had used it for long.",
    "A guide dates the gate of {town} to {guide}.",
    "A letter dates the gate of {town} to {letter}.")


def document(town, place):
    "Four passages of one document."
    return {f"{town}-{number}": passage(f"{town}-{number}", text.format(**facts(town, place)), town)
            for number, text in enumerate(TEXTS)}


def fact_questions(town, place):
    "Two questions, each answered by one sentence of the first passage."
    known, first = facts(town, place), f"{town}-0"
    return [
        Question(question_id=f"{town}-opened", question=f"When did the library of {town} open?",
                 answer=f"It opened in {known['opened']} [1].", groups=((f"{known['opened']}",),),
                 evidence=({"chunk_id": first, "quote": f"opened in {known['opened']}"},),
                 missing="the year of its opening", typed=f"{town} library open when".lower()),
        Question(question_id=f"{town}-who", question=f"Who first ran the library of {town}?",
                 answer=f"That was {known['name']} [1].", groups=((known["name"],),),
                 evidence=({"chunk_id": first, "quote": f"librarian was {known['name']}"},),
                 missing="who the first librarian was")]


def two_sided(town, place):
    "A question with two parts, and one whose sources disagree."
    known = facts(town, place)
    opened = {"chunk_id": f"{town}-0", "quote": f"opened in {known['opened']}"}
    closed = {"chunk_id": f"{town}-1", "quote": f"closed in {known['closed']}"}
    guide = {"chunk_id": f"{town}-2", "quote": f"gate of {town} to {known['guide']}"}
    letter = {"chunk_id": f"{town}-3", "quote": f"gate of {town} to {known['letter']}"}
    first = f"It opened in {known['opened']} [1]."
    second = f"The room closed in {known['closed']} [2]."
    old, young = f"A guide says {known['guide']} [1].", f"A letter says {known['letter']} [2]."
    years = {name: (str(known[name]),) for name in ("opened", "closed", "guide", "letter")}
    return [
        Question(question_id=f"{town}-both", question=f"When did {town}'s library open and close?",
                 type="several", answer=f"{first} {second}", evidence=(opened, closed),
                 groups=(years["opened"], years["closed"]), missing="the years of both",
                 parts=({"answer": first, "missing": "when the room closed", "evidence": (0,)},
                        {"answer": second, "missing": "when it opened", "evidence": (1,)})),
        Question(question_id=f"{town}-gate", question=f"How old is {town}'s gate?", type="conflict",
                 answer=f"{old} {young}", evidence=(guide, letter), missing="which date is right",
                 groups=(years["guide"], years["letter"]),
                 parts=({"answer": old, "missing": "a second date", "evidence": (0,)},
                        {"answer": young, "missing": "a second date", "evidence": (1,)}))]


def others(town, place):
    "A false premise, a question that fits two things, one that nothing answers, and a follow-up."
    known, first = facts(town, place), f"{town}-0"
    who = {"chunk_id": first, "quote": f"librarian was {known['name']}"}
    return [
        Question(question_id=f"{town}-wood", question=f"Why is {town}'s library made of wood?",
                 type="premise", premise=f"The library of {town} is made of wood.",
                 answer="It is made of brick [1].", groups=(("brick",),), missing="the reason",
                 evidence=({"chunk_id": first, "quote": "made of brick"},)),
        Question(question_id=f"{town}-it", question=f"When was it repaired in {town}?",
                 type="ambiguous", about=(first, f"{town}-1", f"{town}-2", f"{town}-3"),
                 answer="The passages tell of a library and of a room.",
                 clarify="Do you mean the library or the room?"),
        Question(question_id=f"{town}-price", question=f"What did a card of {town} cost?",
                 type="near_miss", about=(first,), missing="the price of a card",
                 refusal=f"The passage tells of {town}'s library and not of cards."),
        Question(question_id=f"{town}-then", question=f"And {town}'s first librarian?",
                 answer=f"It was {known['name']} [1].", groups=((known["name"],),), evidence=(who,),
                 after=f"{town}-opened", missing="who the first librarian was")]


def small_corpus(count):
    "Documents of one passage, with two fact questions each."
    chunks = {f"{town}-0": document(town, place)[f"{town}-0"]
              for place, town in enumerate(TOWNS[:count])}
    return chunks, [question for place, town in enumerate(TOWNS[:count])
                    for question in fact_questions(town, place)]


def full_corpus(count):
    "Documents of four passages, with a question of every sort."
    chunks, questions = {}, []
    for place, town in enumerate(TOWNS[:count]):
        chunks |= document(town, place)
        for make in (fact_questions, two_sided, others):
            questions += make(town, place)
    return chunks, questions
