"Uploads by the Hub's own client over HTTP: to a server on loopback, with every fault that it can make."

import json
from types import SimpleNamespace

import pytest
from hub_server import TOKEN, Hub, Repo
from huggingface_hub import HfApi
from tiny import tiny_config

from kwanzaa_nb.publish import dataset, hub
from kwanzaa_nb.publish.gate import PublishError
from kwanzaa_nb.publish.hub import Destination, upload
from kwanzaa_nb.publish.outgoing import OutgoingError
from kwanzaa_nb.core.prompt import render_user
from kwanzaa_nb.core.files import file_record

REPO, HEADER = "ada/adapter", json.dumps({"__metadata__": {"format": "pt"}}).encode()
FILES = {
    "adapter_config.json": b"{}\n", "adapter_model.safetensors": len(HEADER).to_bytes(8, "little") + HEADER + bytes(300_000),
    "README.md": b"---\nlicense: apache-2.0\n---\n\n# A card\n", "notebooks/02_train.ipynb": b'{"cells": []}\n',
}
THERE = Destination(REPO, "model", "v0", "adapter_config.json")


@pytest.fixture
def server(monkeypatch):
    "A Hub on loopback; the client waits for nothing, and tells how long it would have."
    import huggingface_hub.utils._http as client

    waited = []
    clock = SimpleNamespace(sleep=waited.append, time=client.time.time,
                            monotonic=client.time.monotonic)
    monkeypatch.setattr(client, "time", clock)
    monkeypatch.setattr(hub, "time", clock)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.file_download.time", clock, raising=False)
    started = Hub()
    started.waited = waited
    yield started
    started.close()


@pytest.fixture
def staged(tmp_path):
    folder = tmp_path / "publish"
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def send(server, staged, there=THERE, names=tuple(FILES), token=TOKEN):
    return upload(there, staged, names, tiny_config(), token,
                  HfApi(endpoint=server.url, token=token), report=lambda line: None)


def published(server, repo=REPO, kind="model"):
    tree = server.repos[kind, repo].commits[-1][1]
    return {path: content for path, (content, _) in tree.items() if path != ".gitattributes"}


def whole(staged):
    return {name: (staged / name).read_bytes() for name in FILES} == FILES


def test_one_private_commit_compared_and_tagged(server, staged):
    sentence = send(server, staged)
    repo = server.repos["model", REPO]
    assert repo.private and published(server) == FILES and len(repo.commits) == 2
    oid, message = repo.tags["v0"]
    assert oid == repo.commits[-1][0]
    sums = {name: file_record(staged / name)["sha256"] for name in FILES}
    assert message == "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))
    assert (staged.parent / "publish.sha256").read_text(encoding="utf-8") == message
    assert "all 4 downloaded again and equal, tag v0" in sentence and oid[:12] in sentence
    downloads = [path for path in server.paths("GET") if "/resolve/" in path]
    assert len(downloads) == 4 and server.paths("POST").index(f"/api/models/{REPO}/tag/{oid}") > 0


def test_again_sends_nothing(server, staged):
    send(server, staged)
    asked = len(server.asked)
    assert "nothing was sent, since all was there" in send(server, staged)
    assert not [path for method, path in server.asked[asked:]
                if method == "PUT" or "/commit/" in path]
    assert len(server.repos["model", REPO].commits) == 2


def test_a_new_version_sends_what_changed(server, staged):
    send(server, staged)
    (staged / "README.md").write_bytes(b"---\nlicense: mit\n---\n\n# Another\n")
    with pytest.raises(PublishError, match="has a version v0 already, of other files: write a new publishing.metadata.dataset_version"):
        send(server, staged)
    sentence = send(server, staged, Destination(REPO, "model", "v1", "adapter_config.json"))
    repo = server.repos["model", REPO]
    assert "1 files in one commit" in sentence and set(repo.tags) == {"v0", "v1"}
    assert len(server.paths("PUT")) == 1


@pytest.mark.parametrize("status, words, step", [
    (401, "does not accept the token", "/commit/"), (403, "may not write there", "batch"), (503, "the Hub answers 503", "preupload"),
    *((500, "the Hub answers 500", step) for step in ("create", "preupload", "batch", "/commit/", "/tag/", "/tree/"))])
def test_a_step_that_is_refused_is_one_sentence_and_can_be_run_again(server, staged, step, status, words):
    server.fail("GET" if step == "/tree/" else "POST", step, status, times=99)
    with pytest.raises(PublishError) as error:
        send(server, staged)
    text = str(error.value)
    assert words in text and "\n" not in text and TOKEN not in text and whole(staged)
    assert sum(server.waited) < 60
    server.faults.clear()
    send(server, staged)
    repo = server.repos["model", REPO]
    assert len(repo.commits) == 2 and published(server) == FILES and set(repo.tags) == {"v0"}


def test_a_wrong_token(server, staged):
    with pytest.raises(PublishError, match="does not accept the token: log in again"):
        send(server, staged, token="wrong-token-of-nobody")
    assert not server.repos and whole(staged)


def test_without_rights(server, staged):
    with pytest.raises(PublishError, match="may not write there: take a token with write access"):
        send(server, staged, Destination("grace/adapter", "model", "v0", "adapter_config.json"))
    assert not server.repos


def test_a_name_that_is_taken(server, staged):
    repo = server.repos["model", REPO] = Repo(private=True)
    repo.commit({"pytorch_model.bin": (b"x", True),
                 "README.md": (b"somebody else's", False)}, "first")
    with pytest.raises(PublishError,
                       match="the name ada/adapter is taken by something else .pytorch_model.bin."):
        send(server, staged)
    server.repos.clear()
    server.fail("POST", "create", 409)
    with pytest.raises(PublishError,
                       match="the name is taken by a repository that this token can't see"):
        send(server, staged)
    assert whole(staged)


def test_a_public_repository_is_said_to_be_public(server, staged):
    server.repos["model", REPO] = Repo(private=False)
    server.repos["model", REPO].commit({".gitattributes": (b"", False)}, "initial commit")
    told = []
    api = HfApi(endpoint=server.url, token=TOKEN)
    upload(THERE, staged, tuple(FILES), tiny_config(), TOKEN, api, report=told.append)
    assert any("is public" in line for line in told)


@pytest.mark.parametrize("step", ["create", "preupload", "/commit/", "/tag/"])
def test_a_short_rate_limit_is_waited_for(server, staged, step):
    server.fail("POST", step, 429, headers={"Retry-After": "7"})
    send(server, staged)
    assert 7 <= sum(server.waited) <= 9 and published(server) == FILES


@pytest.mark.parametrize("step", ["create", "preupload", "/commit/"])
def test_a_long_rate_limit_is_not(server, staged, step):
    server.fail("POST", step, 429, headers={"Retry-After": "3600"}, times=99)
    with pytest.raises(PublishError,
                       match="asks to wait 3600 seconds, longer than the limit of 60"):
        send(server, staged)
    assert sum(server.waited) < 1 and whole(staged)


def test_a_rate_limit_without_end(server, staged):
    server.fail("POST", "/commit/", 429, headers={"Retry-After": "5"}, times=99)
    with pytest.raises(PublishError, match="rate limit is reached"):
        send(server, staged)
    assert sum(server.waited) == 15


def test_a_connection_that_is_cut_in_the_middle_of_a_file_once(server, staged):
    server.fail("PUT", "storage", "cut")
    send(server, staged)
    assert published(server) == FILES and len(server.paths("PUT")) == 2


def test_a_connection_that_is_cut_each_time(server, staged):
    server.fail("PUT", "storage", "cut", times=99)
    with pytest.raises(PublishError, match="no connection to .*, or it was cut"):
        send(server, staged)
    assert whole(staged) and len(server.repos["model", REPO].commits) == 1, "no half commit"
    server.faults.clear()
    send(server, staged)
    assert len(server.repos["model", REPO].commits) == 2


def test_a_download_that_is_cut_goes_on(server, staged):
    server.fail("GET", "/resolve/.*safetensors", "cut")
    send(server, staged)
    assert len([path for path in server.paths("GET") if path.endswith("adapter_model.safetensors")]) == 2


LOST = pytest.mark.parametrize("status", [500, 502, 504, "cut", "hang"])


def losing(server, step, status, monkeypatch, times=1):
    "The work is done, the answer never comes."
    monkeypatch.setattr(hub, "TIMEOUT", 0.5)
    server.fail("POST", step, status, before=False, times=times)


@LOST
@pytest.mark.parametrize("later", [None, "README.md", "notes.txt"])
def test_a_commit_whose_answer_is_lost_is_not_made_twice(server, staged, monkeypatch, status,
                                                         later):
    "Nor is somebody's change written over that came after it."
    losing(server, "/commit/", status, monkeypatch)
    with pytest.raises(PublishError):
        send(server, staged)
    repo = server.repos["model", REPO]
    ours = repo.commits[-1][0]
    assert len(repo.commits) == 2 and not repo.tags and not (staged.parent / "publish.sha256").exists(), "called published and not verified"
    if later:
        repo.commit(repo.commits[-1][1] | {later: (b"theirs", False)}, "later")
    assert "nothing was sent, since all was there" in send(server, staged)
    assert len(repo.commits) == (3 if later else 2)
    assert {tag: oid for tag, (oid, _) in repo.tags.items()} == {"v0": ours}
    assert later is None or repo.commits[-1][1][later][0] == b"theirs"
    assert "nothing was sent, since all was there" in send(server,
                                                           staged), "and again, with its tag"
    assert len(repo.commits) == (3 if later else 2)


@LOST
@pytest.mark.parametrize("step", ["/tag/", "create"])
def test_other_lost_answers(server, staged, monkeypatch, status, step):
    losing(server, step, status, monkeypatch)
    try:
        send(server, staged)
    except PublishError:
        send(server, staged)
    repo = server.repos["model", REPO]
    assert len(repo.commits) == 2
    assert {tag: oid for tag, (oid, _) in repo.tags.items()} == {"v0": repo.commits[-1][0]}
    assert published(server) == FILES


def test_an_older_commit_of_the_same_message_and_other_files_is_not_it(server, staged):
    send(server, staged)
    repo = server.repos["model", REPO]
    repo.tags.clear()
    (staged / "README.md").write_bytes(FILES["README.md"] + b"more\n")
    assert "1 files in one commit" in send(server, staged)
    assert len(repo.commits) == 3


def test_what_comes_back_changed_gets_no_tag(server, staged, monkeypatch):
    send_commit = HfApi.create_commit

    def spoil(self, *args, **kwargs):
        done = send_commit(self, *args, **kwargs)
        oid, tree, _ = server.repos["model", REPO].commits[-1]
        tree["README.md"] = (tree["README.md"][0] + b"spoilt", False)
        return done

    monkeypatch.setattr(HfApi, "create_commit", spoil)
    with pytest.raises(PublishError,
                       match="what came back from ada/adapter is not what was sent .README.md."):
        send(server, staged)
    assert not server.repos["model", REPO].tags and not (staged.parent / "publish.sha256").exists()


def test_somebody_commits_in_between(server, staged, monkeypatch):
    real = hub.remote_state

    def late(api, there):
        found = real(api, there)
        if found:
            server.repos["model", REPO].commit({".gitattributes": (b"", False),
                                                "notes.txt": (b"x", False)}, "in between")
        return found

    monkeypatch.setattr(hub, "remote_state", late)
    with pytest.raises(PublishError, match="somebody else committed at the same time"):
        send(server, staged)
    assert "adapter_config.json" not in published(server)


def test_no_network(server, staged):
    server.close()
    with pytest.raises(PublishError, match="no connection to http://127.0.0.1.*check the network"):
        send(server, staged)
    assert whole(staged)


@pytest.mark.parametrize("name, content, words", [
    ("extra.txt", b"x", "extra.txt: not in the list"), ("README.md", b"my token hf_" + b"Q" * 30, "README.md, line 1: a Hugging Face token"),
    ("README.md", b"a\nsee /home/ada/data", "README.md, line 2: somebody's folder"), ("adapter_config.json", b"\x80\x04]", "a pickle")])
def test_nothing_is_asked_when_something_may_not_leave(server, staged, name, content, words):
    (staged / name).write_bytes(content)
    with pytest.raises(OutgoingError) as error:
        send(server, staged)
    assert words in str(error.value) and not server.asked


def test_the_data_set_goes_the_same_way_without_its_sealed_records(server, tmp_path, monkeypatch):
    contents = {"system": "Be exact.", "user": render_user("Why?", []), "assistant": "No."}
    messages = [{"role": role, "content": text} for role, text in contents.items()]
    record = {"category": "x", "answerable": False, "chunks": [], "messages": messages}
    for name in ("train.jsonl", "eval.jsonl", "sealed.jsonl"):
        row = json.dumps({"id": name, **record})
        (tmp_path / name).write_text(f"{row}\n", encoding="utf-8")
    files = {f"data.{name}_file": str(tmp_path / f"{name}.jsonl") for name in ("train", "eval")}
    config = tiny_config(**files, **{"publishing.dataset_repo": "ada/records"})
    staged = dataset.stage_dataset(config, tmp_path)
    monkeypatch.setattr("huggingface_hub.HfApi",
                        lambda token: HfApi(endpoint=server.url, token=token))
    told = dataset.publish_dataset(config, staged, TOKEN, report=str)
    sent = published(server, "ada/records", "dataset")
    assert "/datasets/ada/records" in told
    assert set(sent) == {"train.jsonl", "eval.jsonl", "README.md", "SHA256SUMS"}
    card = sent["README.md"].decode()
    assert "license: other" in card and "split: test" in card and "sealed records" in card
    assert file_record(tmp_path / "eval.jsonl")["sha256"] in card
    sealed = tiny_config(**files | {"data.eval_file": str(tmp_path / "sealed.jsonl")})
    assert set(dataset.split_files(sealed)) == {"train"}
