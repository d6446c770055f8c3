"""A server on this machine that speaks the hub's HTTP interface, with faults to choose from.

What huggingface_hub asks for is answered as the hub does: ``/api/models/ID/revision/REV`` (with ``blobs``), its
``/tree/``, and ``/ID/resolve/REV/FILE`` with the commit, the digests as ETags, redirects of large files to another
host (``localhost`` stands for the content network), and Range requests.
"""

import hashlib
import http.server
import json
import socket
import threading
import time
import urllib.parse


class Repository:
    """Files of one repository: name to bytes. Weights and tokenizer models are in LFS, the rest in git."""

    def __init__(self, files):
        self.files = dict(files)
        self.large = {name for name in files if name.endswith((".safetensors", ".bin", ".model"))}

    @property
    def commit(self):
        return hashlib.sha1("".join(f"{name}{self.digest(name)}" for name in sorted(self.files)).encode()).hexdigest()

    def digest(self, name):
        data = self.files[name]
        if name in self.large:
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def sibling(self, name):
        size = len(self.files[name])
        entry = {"rfilename": name, "size": size, "blobId": self.digest(name)[:40]}
        if name in self.large:
            entry["lfs"] = {"sha256": self.digest(name), "size": size, "pointerSize": 134}
        return entry

    def leaf(self, name):
        size = len(self.files[name])
        entry = {"type": "file", "path": name, "size": size, "oid": self.digest(name)[:40]}
        if name in self.large:
            entry["lfs"] = {"oid": self.digest(name), "size": size, "pointerSize": 134}
        return entry


class HubServer:
    """The server. ``fault`` is what goes wrong; ``once`` takes the fault away when it has struck.

    Faults: ``500``, ``500 files``, ``stall``, ``stall files``, ``401``, ``403``, ``404``, ``gated``, ``truncated``
    (the line breaks in the middle of the weights), ``short`` (the server says that half the weights is all),
    ``flipped`` (one bit of the weights is wrong), ``flipped text`` (one of config.json), ``no blobs`` (digests only in
    the ETags, as a mirror has it), ``portal`` (a page to log in on answers everything).
    """

    def __init__(self, repositories):
        self.repositories = repositories
        self.fault, self.once = None, False
        self.requests = []
        self.release = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                outer.answer(self, body=True)

            def do_HEAD(self):
                outer.answer(self, body=False)

            def log_message(self, *args):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request, address):  # A client that went away is no news.
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.content = f"http://localhost:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.release.set()
        self.server.shutdown()
        self.server.server_close()

    def break_with(self, fault, once=False):
        self.fault, self.once = fault, once
        self.requests.clear()

    def struck(self):
        """Note that the fault has struck."""
        if self.once:
            self.fault = None

    def answer(self, handler, body):
        path, _, query = handler.path.partition("?")
        parts = [urllib.parse.unquote(part) for part in path.strip("/").split("/")]
        self.requests.append((handler.command, path, dict(handler.headers)))
        api = parts[:2] == ["api", "models"]
        fault = self.fault
        if fault in ("401", "403", "404", "500") or (fault == "500 files" and not api):
            self.struck()
            self.error(handler, int(fault.split()[0]), {"404": "RepoNotFound"}.get(fault))
        elif fault == "gated":
            self.struck()
            self.error(handler, 403, "GatedRepo")
        elif fault == "stall":
            self.stall()
        elif fault == "portal":
            page = b"<html>Please log in</html>"
            self.begin(handler, 200, {"Content-Type": "text/html", "Content-Length": str(len(page))})
            handler.wfile.write(page)
        elif api:
            self.about(handler, parts[2:], query)
        elif parts[0] == "content":
            self.file(handler, "/".join(parts[1:3]), parts[3], parts[4:], body, redirect=False)
        else:
            self.file(handler, "/".join(parts[:2]), parts[3], parts[4:], body, redirect=True)

    def stall(self):
        self.struck()
        self.release.wait(60)

    def error(self, handler, status, code=None):
        handler.send_response(status)
        if code:
            handler.send_header("X-Error-Code", code)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    def known(self, handler, name, revision):
        repository = self.repositories.get(name)
        if repository is None:  # The hub says 401 to those without a token, lest they learn what is private.
            self.error(handler, 401, "RepoNotFound")
        elif revision not in ("main", repository.commit):
            self.error(handler, 404, "RevisionNotFound")
        else:
            return repository
        return None

    def about(self, handler, parts, query):
        name, kind, revision = "/".join(parts[:2]), parts[2], parts[3]
        repository = self.known(handler, name, revision)
        if repository is None:
            return
        if kind == "tree":
            answer = [repository.leaf(file) for file in repository.files]
        else:
            siblings = [repository.sibling(file) for file in repository.files]
            if "blobs" not in query or self.fault == "no blobs":
                siblings = [{"rfilename": entry["rfilename"]} for entry in siblings]
            answer = {"id": name, "modelId": name, "sha": repository.commit, "siblings": siblings, "tags": []}
            answer |= {"private": False, "gated": False, "disabled": False, "downloads": 1, "likes": 1}
        data = json.dumps(answer).encode()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)

    def file(self, handler, name, revision, parts, body, redirect):
        repository = self.known(handler, name, revision)
        if repository is None:
            return
        file = "/".join(parts)
        if file not in repository.files:
            self.error(handler, 404, "EntryNotFound")
            return
        data, digest, large = repository.files[file], repository.digest(file), file in repository.large
        headers = {"X-Repo-Commit": repository.commit, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
        if large and redirect:
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data)), "ETag": '"of-the-redirect"'}
            headers |= {"Location": f"{self.content}/content/{name}/{revision}/{file}", "Content-Length": "0"}
            self.begin(handler, 302, headers)
            return
        start, status = 0, 200
        asked = handler.headers.get("Range")
        if asked and body:
            start, status = int(asked.removeprefix("bytes=").split("-")[0]), 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            if start >= len(data):
                self.error(handler, 416)
                return
        self.send(handler, status, headers, data, start, large, file, body)

    def begin(self, handler, status, headers):
        handler.send_response(status)
        for key, value in headers.items():
            handler.send_header(key, value)
        handler.end_headers()

    def send(self, handler, status, headers, data, start, large, file, body):
        fault = self.fault
        if (fault == "flipped" and large) or (fault == "flipped text" and file == "config.json"):
            self.struck()
            place = len(data) // 2
            data = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        end = len(data)
        if fault == "short" and large:
            self.struck()
            end = max(start, len(data) // 2)
        self.begin(handler, status, headers | {"Content-Length": str(end - start)})
        if not body:
            return
        if fault in ("truncated", "stall files", "slow") and large:
            middle = start if fault == "stall files" and start else (start + end) // 2
            handler.wfile.write(data[start:middle])
            handler.wfile.flush()
            if fault == "slow":  # Time to be killed in.
                time.sleep(30)
            if fault == "stall files":
                self.stall()
            self.struck()
            handler.close_connection = True
            handler.connection.shutdown(socket.SHUT_RDWR)
            return
        handler.wfile.write(data[start:end])
