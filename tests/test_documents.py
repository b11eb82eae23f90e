"PDF, Word and data sets of the Hub as a corpus; every fault has its mend."

import io
import zipfile

import pytest
from test_corpus import CHUNK, QUESTION
from test_own_corpus import DEFAULTS, ROOT, as_csv, as_jsonl, put

from kwanzaa_nb.core.config import load_config
from kwanzaa_nb.core.jsonl import DataError
from kwanzaa_nb.data import documents
from kwanzaa_nb.data.corpus import CorpusOptions, corpus_paths
from kwanzaa_nb.data.questions import load_corpus

HEADING = '<w:p><w:pPr><w:pStyle w:val="Heading1"/></w:pPr><w:r><w:t>{}</w:t></w:r></w:p>'
TYPE = "application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"
NAMESPACE = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
SEVEN = '<w:p><w:r><w:t>Seven [4] "candles" *burn*, A_B.</w:t></w:r></w:p>'
HELD = "It was first held in 1966."


def pdf(*pages):
    "A PDF of pages, each a list of lines."
    kids = " ".join(f"{4 + 2 * place} 0 R" for place in range(len(pages)))
    objects = ["<< /Type /Catalog /Pages 2 0 R >>",
               f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
               "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    for place, lines in enumerate(pages):
        shown = " ".join(f"({line}) Tj T*" for line in lines)
        stream = f"BT /F1 12 Tf 72 720 Td 14 TL {shown} ET"
        objects.append("<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources "
                       f"<< /Font << /F1 3 0 R >> >> /Contents {5 + 2 * place} 0 R >>")
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    content, table = b"%PDF-1.4\n", b"0000000000 65535 f \n"
    for number, one in enumerate(objects, start=1):
        table += f"{len(content):010d} 00000 n \n".encode()
        content += f"{number} 0 obj\n{one}\nendobj\n".encode()
    size = len(objects) + 1
    end = f"trailer << /Size {size} /Root 1 0 R >>\nstartxref\n{len(content)}\n%%EOF\n"
    return content + f"xref\n0 {size}\n".encode() + table + end.encode()


def locked(password):
    pypdf = pytest.importorskip("pypdf", reason="the extra documents is not installed")
    writer, held = pypdf.PdfWriter(clone_from=io.BytesIO(pdf([HELD]))), io.BytesIO()
    writer.encrypt(password, "owner", algorithm="RC4-128")
    writer.write(held)
    return held.getvalue()


def docx(*body):
    "A Word document of paragraphs as XML; a text becomes one."
    run = "<w:p><w:r><w:t>{}</w:t></w:r></w:p>"
    paragraphs = "".join(part if part.startswith("<") else run.format(part) for part in body)
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as parts:
        parts.writestr("[Content_Types].xml", '<Types xmlns="http://schemas.openxmlformats.org/'
                       'package/2006/content-types"><Override PartName="/word/document.xml" '
                       f'ContentType="{TYPE}"/></Types>')
        parts.writestr("word/document.xml", f'<w:document xmlns:w="{NAMESPACE}"><w:body>'
                                            f"{paragraphs}</w:body></w:document>")
    return held.getvalue()


def load(tmp_path, **files):
    "Load documents by name, _ for the dot, and one question on them."
    for name, content in files.items():
        put(tmp_path / "corpus" / name.replace("_", "."), content)
    question = {**QUESTION, "evidence": [{"quote": "first held in 1966"}]}
    put(tmp_path / "q.jsonl", as_jsonl(question))
    return load_corpus(tmp_path / "corpus", tmp_path / "q.jsonl", CorpusOptions(defaults=DEFAULTS))


def faults(tmp_path, **files):
    with pytest.raises(DataError) as error:
        load(tmp_path, a_txt=HELD, **files)
    return {problem.where: problem for problem in error.value.problems}


@pytest.fixture
def installed():
    for name in ("pypdf", "mammoth", "markdownify"):
        pytest.importorskip(name, reason="the extra documents is not installed")


# ---- PDF

def test_a_pdf_is_read_like_a_text(tmp_path, installed):
    pages = ["Seven candles burn. It was", "first held in", ""], ["1966.", "Second."]
    chunks, [question] = load(tmp_path, a_pdf=pdf(*pages))
    assert list(chunks) == ["a-01"] and chunks["a-01"].citation_label == "a"
    assert chunks["a-01"].text == "Seven candles burn. It was\nfirst held in\n1966.\n\nSecond."
    assert question.evidence[0].quote == "first held in\n1966"


def test_pages_without_text_are_named(tmp_path, installed):
    with pytest.warns(UserWarning, match="a.pdf: no text on page 2, 3, which is skipped"):
        load(tmp_path, a_pdf=pdf([HELD], [], []))


def test_a_pdf_that_anybody_may_open_is_read_though_it_is_encrypted(tmp_path):
    assert load(tmp_path, a_pdf=locked(""))[0]["a-01"].text == HELD


# ---- Word

def test_a_word_document_is_read_like_markdown(tmp_path, installed):
    content = docx(HEADING.format("Kinara"), HELD, HEADING.format("When"), SEVEN)
    chunks, _ = load(tmp_path, a_docx=content)
    first, second = chunks.values()
    assert (first.citation_label, second.citation_label) == ("Kinara", "Kinara: When")
    assert first.text == f"# Kinara\n\n{HELD}"
    assert second.text == '# When\n\nSeven [4] "candles" *burn*, A_B.'


def test_tracked_changes_are_accepted_and_said(tmp_path, installed):
    run = "<w:r><w:t xml:space='preserve'>{}</w:t></w:r>"
    body = (f"<w:p>{run.format('It was ')}<w:del><w:r><w:delText>never</w:delText></w:r></w:del>"
            f"<w:ins>{run.format('first')}</w:ins>{run.format(' held in 1966.')}"
            f"<w:moveFrom>{run.format('Gone.')}</w:moveFrom>"
            f"<w:moveTo>{run.format(' Moved.')}</w:moveTo></w:p>")
    with pytest.warns(UserWarning, match="a.docx: has tracked changes; it is read as if all were"):
        chunks, _ = load(tmp_path, a_docx=docx(body))
    assert chunks["a-01"].text == "It was first held in 1966. Moved."


# ---- faults

def test_every_bad_document_is_one_problem_and_all_come_at_once(tmp_path, installed):
    whole = docx(HELD)
    found = faults(
        tmp_path, b_pdf=locked("secret"), c_pdf=pdf([], []), d_pdf=pdf([HELD])[:300], e_pdf=b"",
        f_docx=whole[:-30], g_docx=b"", h_docx=docx(""), i_docx=b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        j_pdf=b"<!doctype html>", k_docx=b"Plain words.", l_docx=docx("<w:p"))
    assert {where: problem.code for where, problem in found.items()} == {
        "b.pdf": "encrypted", "c.pdf": "no_text", "d.pdf": "damaged", "e.pdf": "empty_file",
        "f.docx": "damaged", "g.docx": "empty_file", "h.docx": "empty_file", "i.docx": "encrypted",
        "j.pdf": "other_format", "k.docx": "other_format", "l.docx": "damaged"}
    assert all(problem.mend and "\n" not in str(problem) for problem in found.values())


def test_the_extra_that_is_missing_is_named(tmp_path, monkeypatch):
    find = documents.importlib.util.find_spec
    gone = ("pypdf", "mammoth", "markdownify")
    monkeypatch.setattr(documents.importlib.util, "find_spec",
                        lambda name: None if name in gone else find(name))
    found = faults(tmp_path, b_pdf=pdf([HELD]), c_docx=docx(HELD))
    assert str(found["b.pdf"]) == ("b.pdf: a PDF can't be read, since pypdf is not installed "
                                   "(pip install 'kwanzaa_nb[documents]')")
    assert "mammoth and markdownify are not installed" in found["c.docx"].what


# ---- data sets of the Hub

def config_of(corpus, questions):
    return load_config(ROOT / "configs" / "demo.cpu.yaml",
                       {"data.corpus": corpus, "data.questions": questions})


@pytest.fixture
def hub(tmp_path, monkeypatch):
    "Data sets of an owner, as folders that the library takes for those of the Hub."
    put(tmp_path / "ada/chunks/train.csv", as_csv(CHUNK))
    put(tmp_path / "ada/asked/test.jsonl", as_jsonl({**QUESTION, "ask": QUESTION["question"]}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    return tmp_path


def test_a_data_set_is_read_like_a_table(hub):
    paths = corpus_paths(config_of("hf://ada/chunks", "hf://ada/asked#test"), hub / "run/hub")
    assert [path.name for path in paths] == ["ada--chunks.parquet", "ada--asked#test.parquet"]
    options = CorpusOptions({"question": "ask"}, ignore_fields=("question",))
    chunks, [question] = load_corpus(*paths, options)
    assert chunks["c-1"].text == CHUNK["text"] and question.chunk_ids == ("c-1",)


@pytest.mark.parametrize("corpus, questions", [
    ("hf://ada/letters/test", "hf://ada/letters#test"),
    ("hf://ada/letters@test", "hf://ada/letters#test"),
    ("hf://ada/letters/test", "hf://ada/letters@test")])
def test_subset_split_and_revision_of_one_name_are_kept_apart(
        tmp_path, monkeypatch, corpus, questions):
    fetched = []
    monkeypatch.setattr("kwanzaa_nb.data.corpus._fetch_rows",
                        lambda address, parts, path: fetched.append(path))
    paths = corpus_paths(config_of(corpus, questions), tmp_path)
    assert list(paths) == fetched and paths[0] != paths[1]


def test_columns_that_are_no_fields_are_named_with_the_key_to_set(hub):
    put(hub / "ada/other/train.csv", as_csv({"uid": "c-1", "body": CHUNK["text"]}))
    paths = corpus_paths(config_of("hf://ada/other", "hf://ada/asked#test"), hub / "run")
    with pytest.raises(DataError) as error:
        load_corpus(*paths, CorpusOptions({"question": "ask"}, ignore_fields=("question",)))
    [problem] = error.value.problems
    assert problem.what == "none of its columns is a field of a chunk: uid, body"
    assert "data.fields" in problem.mend


def test_addresses_splits_and_local_paths(hub):
    with pytest.raises(DataError) as error:
        corpus_paths(config_of("hf://ada", "hf://ada/asked"), hub)
    assert [problem.code for problem in error.value.problems] == ["bad_address", "bad_dataset"]
    assert "test" in error.value.problems[1].what
    config = config_of("data/corpus", "data/questions")
    assert corpus_paths(config, hub) == (config.path("data/corpus"), config.path("data/questions"))


@pytest.mark.parametrize("raised, code, words", [
    ("datasets.exceptions.DatasetNotFoundError", "no_dataset", "no such data set"),
    ("builtins.ConnectionError", "no_network", "the Hub can't be reached"),
])
def test_what_the_hub_does_not_give_is_a_sentence(hub, monkeypatch, raised, code, words):
    module, _, name = raised.rpartition(".")
    kind = getattr(__import__(module, fromlist=[name]), name)

    def load_dataset(*_, **__):
        raise kind("its own words")

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    with pytest.raises(DataError) as error:
        corpus_paths(config_of("hf://ada/x", "hf://ada/y@v1"), hub)
    assert [(problem.where, problem.code) for problem in error.value.problems] == [
        ("hf://ada/x", code), ("hf://ada/y@v1", code)]
    assert words in error.value.problems[0].what and error.value.problems[0].mend
