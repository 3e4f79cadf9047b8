"""Servers on this machine that stand in for a file server and for the Hugging Face hub."""

import hashlib
import json
import threading
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class FileHandler(SimpleHTTPRequestHandler):
    """Serves the files of a folder, without a log."""

    def log_message(self, *_):
        pass


class HubHandler(BaseHTTPRequestHandler):
    """Answers what a download of a model repository asks: its tags, its files at a tag, and each file."""

    def __init__(self, repo, folder, tags, asked, *arguments):
        self.repo, self.folder, self.tags, self.asked = repo, folder, tags, asked
        super().__init__(*arguments)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        api = f"/api/models/{self.repo}/"
        if path == f"{api}refs":
            refs = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": commit_of(tag)} for tag in self.tags]
            self.answer(json.dumps({"tags": refs, "branches": [], "converts": []}).encode())
        elif path.startswith(f"{api}revision/") and (tag := path.rpartition("/")[2]) in self.tags:
            self.asked.append(tag)
            self.answer(json.dumps({"id": self.repo, "sha": commit_of(tag)}).encode())
        elif path.startswith(f"{api}tree/"):
            files = [file for file in sorted(self.folder.rglob("*")) if file.is_file()]
            self.answer(json.dumps([self.entry(file) for file in files]).encode())
        elif path.startswith(f"/{self.repo}/resolve/"):
            commit, _, name = path.removeprefix(f"/{self.repo}/resolve/").partition("/")
            content = (self.folder / name).read_bytes()
            self.answer(content, {"ETag": f'"{blob_id(content)}"', "X-Repo-Commit": commit})
        else:
            self.send_error(404)

    def do_HEAD(self):
        self.do_GET()

    def entry(self, file):
        content = file.read_bytes()
        name = file.relative_to(self.folder).as_posix()
        return {"type": "file", "path": name, "size": len(content), "oid": blob_id(content)}

    def answer(self, content, headers=()):
        self.send_response(200)
        for name, value in {"Content-Length": len(content), **dict(headers)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_):
        pass


def commit_of(tag):
    return hashlib.sha1(tag.encode()).hexdigest()


def blob_id(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serve(handler):
    """Run a server on a free port; yield its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def serve_files(folder):
    return serve(partial(FileHandler, directory=str(folder)))


def serve_hub(repo, folder, tags, asked):
    return serve(partial(HubHandler, repo, folder, tags, asked))
