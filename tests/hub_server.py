"A server on loopback with the part of the Hub's protocol that its client uses; it fails on request."

import base64
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "loopback-token-of-ada"


def git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    "Commits, newest last, each with its whole tree."

    private: bool
    commits: list = field(default_factory=list)  # (oid, {path: (content, is_lfs)}, message)
    tags: dict = field(default_factory=dict)  # name: (oid, message)

    def commit(self, tree: dict, message: str) -> str:
        seed = repr((len(self.commits), message,
                     sorted((path, git_hash(content)) for path, (content, _) in tree.items())))
        oid = hashlib.sha1(seed.encode()).hexdigest()
        self.commits.append((oid, tree, message))
        return oid

    def at(self, revision: str) -> "tuple | None":
        oid = self.commits[-1][0] if revision == "main" else self.tags.get(revision, (revision,))[0]
        return next((commit for commit in self.commits if commit[0] == oid), None)


class Hub:
    "The server: its repositories, what it was asked, and the faults it is to make."

    def __init__(self):
        self.repos, self.blobs, self.asked, self.faults = {}, {}, [], []
        self.writers = {"ada"}  # owners that the token may write to
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def fail(self, method, pattern, status, times=1, headers=None, before=True):
        "Answer the next requests with a status; `cut` sends half and hangs up, `hang` lets one wait. before=False: do the work, then fail."
        self.faults.append({"method": method, "pattern": pattern, "status": status,
                            "left": times, "headers": headers or {}, "before": before})

    def fault(self, method, path, before):
        for fault in self.faults:
            if fault["left"] and fault["method"] == method and fault["before"] == before and re.search(fault["pattern"], path):
                fault["left"] -= 1
                return fault
        return None

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def paths(self, method):
        return [path for asked, path in self.asked if asked == method]

    def handler(hub):
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def reply(self, status, value=b"", headers=None):
                data = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for name, text in (headers or {}).items():
                    self.send_header(name, text)
                if "Content-Length" not in (headers or {}):
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def refuse(self, status, code="", message=""):
                self.reply(status, {"error": message}, {"X-Error-Code": code,
                                                        "X-Error-Message": message or code})

            def cut(self):
                self.close_connection = True
                self.connection.close()

            def answer(self):
                split = urlsplit(self.path)
                path, query = unquote(split.path), parse_qs(split.query)
                hub.asked.append((self.command, path))
                fault = hub.fault(self.command, path, True)
                length = int(self.headers.get("Content-Length") or 0)
                if fault and fault["status"] == "cut" and self.command == "PUT":
                    self.rfile.read(length // 2)
                    return self.cut()
                body = self.rfile.read(length)
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = self.chunks()
                if fault and fault["status"] != "cut":
                    return self.reply(fault["status"], {"error": "made to fail"}, fault["headers"])
                self.half = bool(fault)
                self.after = hub.fault(self.command, path, False)
                return self.route(path, query, body)

            do_GET = do_POST = do_PUT = do_HEAD = answer

            def chunks(self):
                body = b""
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def route(self, path, query, body):
                if found := re.fullmatch(r"/storage/(\w+)", path):
                    return self.store(found[1], body)
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    return self.refuse(401, "", "Invalid credentials in Authorization header")
                if path == "/api/whoami-v2":
                    return self.reply(200, {"type": "user", "name": "ada"})
                if path == "/api/validate-yaml":
                    return self.reply(200, {"errors": [], "warnings": []})
                if path == "/api/repos/create":
                    return self.create(json.loads(body))
                if found := re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)\.git/info/lfs/objects/(batch|verify)", path):
                    return self.lfs(("dataset" if found[1] else "model", found[2]), found[3],
                                    json.loads(body))
                if found := re.fullmatch(r"/api/(model|dataset)s/([\w.-]+/[\w.-]+)(?:/(\w[\w-]*))?(?:/(.+))?", path):
                    return self.api((found[1], found[2]), found[3] or "revision",
                                    found[4] or "main", body)
                if found := re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/(.+)", path):
                    return self.resolve(("dataset" if found[1] else "model", found[2]),
                                        found[3], found[4])
                return self.refuse(404, "", f"no such route: {path}")

            def create(self, asked):
                owner = asked.get("organization") or "ada"
                name = (asked.get("type") or "model", f"{owner}/{asked['name']}")
                if owner not in hub.writers:
                    return self.refuse(403, "", f"You don't have the rights to create a model under the namespace {owner}")
                if name in hub.repos:
                    return self.refuse(409, "", "You already created this model repo")
                repo = hub.repos[name] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
                repo.commit({".gitattributes": (b"*.safetensors filter=lfs\n",
                                                False)}, "initial commit")
                return self.late() or self.reply(200, {"url": f"{hub.url}/{name[1]}",
                                                       "name": name[1]})

            def lfs(self, name, step, asked):
                if step == "verify":
                    stored = asked["oid"] in hub.blobs and len(hub.blobs[asked["oid"]]) == asked["size"]
                    return self.reply(200 if stored else 404, {})
                objects = []
                for one in asked["objects"]:
                    known = one["oid"] in hub.blobs
                    verify = f"{hub.url}/{'datasets/' if name[0] == 'dataset' else ''}{name[1]}.git/info/lfs/objects/verify"
                    actions = {"upload": {"href": f"{hub.url}/storage/{one['oid']}"},
                               "verify": {"href": verify}}
                    objects.append(one if known else one | {"actions": actions})
                return self.reply(200, {"transfer": "basic", "objects": objects})

            def store(self, oid, body):
                if hashlib.sha256(body).hexdigest() != oid:
                    return self.reply(400, b"not what was announced")
                hub.blobs[oid] = body
                return self.reply(200)

            def api(self, name, action, rest, body):
                repo = hub.repos.get(name)
                if repo is None:
                    return self.refuse(404, "RepoNotFound", "Repository not found")
                if action in ("preupload", "commit", "tag") and name[1].split("/")[0] not in hub.writers:
                    return self.refuse(403, "", "You have read access but not the required permissions for this operation")
                if action == "commits":
                    return self.reply(200, [{"id": oid, "authors": [], "date": "2026-01-01T00:00:00.000Z", "title": title, "message": ""}
                                            for oid, _, title in reversed(repo.commits)])
                if action == "refs":
                    tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": oid}
                            for tag, (oid, _) in repo.tags.items()]
                    return self.reply(200, {"branches": [], "converts": [], "tags": tags})
                if action == "tag":
                    return self.tag(repo, rest, json.loads(body))
                if action == "commit":
                    return self.commit(repo, [json.loads(line) for line in body.splitlines()], name)
                commit = repo.at(rest.split("/")[0])
                if commit is None:
                    return self.refuse(404, "RevisionNotFound", "no such revision")
                if action == "preupload":
                    return self.preupload(commit, json.loads(body))
                if action == "tree":
                    return self.reply(200, [self.item(path, *found)
                                            for path, found in sorted(commit[1].items())])
                siblings = [{"rfilename": path} for path in commit[1]]
                return self.reply(200, {"id": name[1], "sha": commit[0],
                                        "private": repo.private, "siblings": siblings, "tags": []})

            def item(self, path, content, is_lfs):
                item = {"type": "file", "path": path, "size": len(content),
                        "oid": git_hash(content)}
                if is_lfs:
                    item["lfs"] = {"oid": hashlib.sha256(content).hexdigest(),
                                   "size": len(content), "pointerSize": 130}
                return item

            def preupload(self, commit, asked):
                files = []
                for one in asked["files"]:
                    found = commit[1].get(one["path"])
                    mode = "lfs" if one["path"].endswith((".safetensors", ".gguf")) else "regular"
                    oid = None if found is None else hashlib.sha256(found[0]).hexdigest() if found[1] else git_hash(found[0])
                    files.append({"path": one["path"], "uploadMode": mode,
                                  "shouldIgnore": False, "oid": oid})
                return self.reply(200, {"files": files})

            def commit(self, repo, lines, name):
                header, tree = lines[0]["value"], dict(repo.commits[-1][1])
                if header.get("parentCommit") not in (None, repo.commits[-1][0]):
                    return self.refuse(412, "", "A commit has happened since. Please refresh and try again.")
                for line in lines[1:]:
                    value = line["value"]
                    if line["key"] == "file":
                        tree[value["path"]] = (base64.b64decode(value["content"]), False)
                    elif value["oid"] not in hub.blobs:
                        return self.refuse(400, "", "an LFS file that was not uploaded")
                    else:
                        tree[value["path"]] = (hub.blobs[value["oid"]], True)
                oid = repo.commit(tree, header["summary"])
                return self.late() or self.reply(200, {"commitUrl": f"{hub.url}/{name[1]}/commit/{oid}", "commitOid": oid, "success": True})

            def late(self):
                "The fault that comes after the work is done; whether there is one."
                if self.after is None:
                    return False
                if self.after["status"] == "hang":
                    time.sleep(2)
                self.cut() if self.after["status"] in ("cut", "hang") else self.reply(self.after["status"], {"error": "late"})
                return True

            def tag(self, repo, revision, asked):
                if asked["tag"] in repo.tags:
                    return self.refuse(409, "", "Tag already exists")
                repo.tags[asked["tag"]] = (repo.at(revision)[0], asked.get("message", ""))
                return self.late() or self.reply(200)

            def resolve(self, name, revision, path):
                repo = hub.repos.get(name)
                commit = repo and repo.at(revision)
                if commit is None or path not in commit[1]:
                    return self.refuse(404, "RepoNotFound" if repo is None else "EntryNotFound", "not there")
                content, is_lfs = commit[1][path]
                etag = hashlib.sha256(content).hexdigest() if is_lfs else git_hash(content)
                headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit[0],
                           "Content-Length": str(len(content))}
                start = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
                if start:
                    content = content[int(start[1]):]
                    headers |= {"Content-Length": str(len(content)),
                                "Content-Range": f"bytes {start[1]}-"}
                if self.half and self.command == "GET":
                    self.send_response(200)
                    for key, text in headers.items():
                        self.send_header(key, text)
                    self.end_headers()
                    self.wfile.write(content[:len(content) // 2])
                    return self.cut()
                return self.reply(206 if start else 200, content, headers)

        return Handler
