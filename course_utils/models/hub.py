"""Models from the hub: listed, downloaded, verified and kept, so that the second time needs no network.

Requests go through ``huggingface_hub`` (its session, addresses, token, proxy and offline switch). The files themselves
are fetched here, because the library of today begins a file anew after an interruption and may try for minutes: here
a download goes on where it broke off, a server that sends nothing is given up after ``COURSE_HUB_TIMEOUT`` seconds,
every file is compared with the digest that the hub states, and only files that hold no code are taken.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from course_utils.environment import cache_folder
from course_utils.models import registry
from course_utils.models.registry import hub_models, write_text

TIMEOUT_S = 15.0
"""Seconds without an answer or a byte after which the hub is given up; ``COURSE_HUB_TIMEOUT`` changes it."""
TRIES = 3
MANIFEST = "course-files.json"
WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
TEXTS = (
    "config.json", "generation_config.json", "tokenizer*.json", "tokenizer.model", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
    "chat_template*", "README.md",
)  # fmt: skip
"""What is taken of a repository beside its weights; none of it holds code that is run."""
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".ot")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")

Result = TypeVar("Result")


class HubError(OSError):
    """A hub model cannot be had; its text is one line: the model, what happened, what to do.

    Attributes:
        repository: its hub id.
        what: what happened.
        cure: what to do.
    """

    def __init__(self, repository: str, what: str, cure: str) -> None:
        super().__init__(f"{repository}: {what}. {cure}")
        self.repository, self.what, self.cure = repository, what, cure


@dataclass(frozen=True)
class Snapshot:
    """A hub model on this machine, whole.

    Attributes:
        repository: its hub id.
        revision: the commit.
        folder: where its files are.
        files: name to size (bytes) and digest, SHA-256 (64 digits) or git's SHA-1 (40 digits).
    """

    repository: str
    revision: str
    folder: Path
    files: dict[str, tuple[int, str]]

    def damaged(self) -> list[str]:
        """Return the files that are missing or do not have their digest."""
        return [name for name, (size, digest) in self.files.items() if not _is(self.folder / name, size, digest)]


@dataclass(frozen=True)
class _Listing:
    """What the hub says of a repository at a revision."""

    commit: str
    files: dict[str, tuple[int, str]]
    parameters: int | None


class _Watch:
    """What a download tells to whoever waits for it, and the other way round."""

    def __init__(self) -> None:
        self.stopped = False
        self.bytes = 0
        self.beat()

    def beat(self, received: int = 0) -> None:
        self.bytes += received
        self.last = time.monotonic()


class _Stopped(Exception):
    """Whoever waited has gone."""


class _BrokeOff(ConnectionError):
    """The server said that all was sent, and it was not."""


def cached(repository: str, revision: str | None = None) -> Snapshot | None:
    """Return a hub model that was fetched completely, without any request; its digests are not checked here.

    Args:
        repository: its hub id.
        revision: a commit, branch or tag; by default the pinned commit, where there is none the newest fetched.
    """
    home = _home(repository)
    wanted = revision or _pinned(repository) or "main"
    reference = home / f"{_flat(wanted)}.ref"
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else wanted
    folder = home / commit
    try:
        files = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        return Snapshot(repository, commit, folder, {name: (size, digest) for name, (size, digest) in files.items()})
    except (OSError, ValueError, AttributeError):  # Not there, or not whole.
        return None


def fetch(repository: str, revision: str | None = None, progress: bool = True) -> Snapshot:
    """Return a hub model, from this machine where it is there whole, else from the hub.

    What is there already makes no request. Files are kept under :func:`course_utils.environment.cache_folder`. A file
    whose digest is wrong is removed and fetched again, once. A download that was broken off is gone on with.

    Args:
        repository: its hub id, such as ``"openai-community/gpt2"``.
        revision: a commit, branch or tag; by default the pinned commit, where there is none the newest.
        progress: show a progress bar while files arrive.

    Raises:
        ValueError: the id is malformed.
        HubError: it cannot be had, in one line.
    """
    if not ID.fullmatch(repository) or "--" in repository or ".." in repository:
        raise ValueError(f"{repository!r} is no hub id; expected owner/name, for example 'openai-community/gpt2'")
    snapshot = cached(repository, revision)
    if snapshot is not None and not snapshot.damaged():
        return snapshot
    wanted = revision or _pinned(repository) or "main"
    if _offline():
        what = "is damaged in the cache" if snapshot else "is not on this machine"
        raise HubError(
            repository, f"{what}, and HF_HUB_OFFLINE forbids to ask the hub", "Unset it and run `course models fetch`"
        )
    if snapshot is not None:
        listing = _Listing(snapshot.revision, snapshot.files, None)
    else:
        listing = _listing(repository, wanted)
    return _download(repository, wanted, listing, progress)


def pin() -> dict[str, HubError | str]:
    """Ask the hub for the newest commit of every hub model of the registry and write it into the lock file.

    A model that cannot be had, or holds no safetensors, keeps the entry it had.

    Returns:
        Hub id to the commit, or to the error.
    """
    locked = json.loads(registry.LOCK.read_text(encoding="utf-8")) if registry.LOCK.is_file() else {}
    results: dict[str, HubError | str] = {}
    for repository in hub_models():
        try:
            listing = _listing(repository, "main")
        except HubError as error:
            results[repository] = error
            continue
        results[repository] = listing.commit
        entry: dict[str, Any] = {"revision": listing.commit}
        entry["megabytes"] = round(sum(size for size, _ in listing.files.values()) / 1e6, 1)
        if listing.parameters:
            entry["parameters"] = listing.parameters
        locked[repository] = entry
    write_text(registry.LOCK, json.dumps(locked, indent=1, sort_keys=True) + "\n")
    return results


def _listing(repository: str, revision: str) -> _Listing:
    """Ask the hub for commit, files and digests; refuse a repository without safetensors."""
    from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url

    endpoint, patience = _endpoint(), _patience() / 2

    def ask(watch: _Watch) -> Any:
        api = HfApi(endpoint=endpoint)
        return _again(
            lambda: api.model_info(repository, revision=revision, files_metadata=True, timeout=patience), watch
        )

    try:
        info = _watched(repository, ask)
    except (ValueError, KeyError, TypeError):
        what = f"{_host()} gives an answer that is not the hub's"
        raise HubError(repository, what, "Look whether the network wants you to log in on a page of its own") from None
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha or ""):
        raise HubError(repository, f"{_host()} states no commit", "Use the hub itself, or another mirror")
    siblings = {file.rfilename: file for file in info.siblings or []}
    names = [name for name in siblings if re.fullmatch(r"[\w.-]+", name)]  # At the top; and none leads elsewhere.
    weights = [name for name in names if WEIGHTS.fullmatch(name)]
    if "model.safetensors" in weights:
        weights = ["model.safetensors"]
    if not any(name.endswith(".safetensors") for name in weights):
        pickles = sorted(name for name in siblings if name.endswith(PICKLES))
        has = (
            f"only {', '.join(pickles[:3])}, which can run code when loaded" if pickles else "and nothing else to load"
        )
        raise HubError(repository, f"it holds no safetensors, {has}", "Choose a repository with model.safetensors")
    texts = [name for name in names if any(fnmatch(name, pattern) for pattern in TEXTS)]
    files = {}
    for name in [*texts, *weights]:  # The weights last: whoever looks finds the small files first.
        file = siblings[name]
        size, digest = file.size, file.lfs.sha256 if file.lfs else file.blob_id
        if size is None or digest is None:

            def head(watch: _Watch, name: str = name) -> Any:
                url = hf_hub_url(repository, name, revision=info.sha, endpoint=endpoint)
                return _again(lambda: get_hf_file_metadata(url, timeout=patience, endpoint=endpoint), watch)

            metadata = _watched(repository, head)
            size, digest = metadata.size, metadata.etag
        if size is None or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", digest or ""):
            raise HubError(repository, f"{_host()} states no digest of {name}", "Use the hub itself, or another mirror")
        files[name] = (size, digest)
    return _Listing(info.sha, files, getattr(info.safetensors, "total", None))


def _download(repository: str, wanted: str, listing: _Listing, progress: bool) -> Snapshot:
    """Fetch what is missing or damaged, and write the manifest when all is there."""
    from filelock import FileLock, Timeout

    home = _home(repository)
    folder = home / listing.commit
    snapshot = Snapshot(repository, listing.commit, folder, listing.files)

    def work(watch: _Watch) -> None:
        lock = FileLock(home / ".lock")
        while True:  # While another program fetches it: that one gives up in time, so this one may wait.
            try:
                lock.acquire(timeout=0.2)
                break
            except Timeout:
                watch.beat()
        try:
            for name, (size, digest) in snapshot.files.items():
                if not _is(folder / name, size, digest, watch):
                    (folder / name).unlink(missing_ok=True)
                    _file(snapshot, name, watch)
            write_text(folder / MANIFEST, json.dumps(snapshot.files, indent=1) + "\n")
            if wanted != listing.commit:
                write_text(home / f"{_flat(wanted)}.ref", listing.commit + "\n")
        finally:
            lock.release()

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _explained(repository, error) from None
    missing = sum(size for name, (size, _) in snapshot.files.items() if not (folder / name).is_file())
    arrived = sum(part.stat().st_size for part in folder.glob("*.part"))
    free = shutil.disk_usage(folder).free
    if missing - arrived > free:
        raise _full(repository, missing - arrived, free)
    _watched(repository, work, total=missing, progress=progress)
    return snapshot


def _file(snapshot: Snapshot, name: str, watch: _Watch) -> None:
    """Fetch one file beside its place, go on where it broke off, verify it, move it there."""
    size, digest = snapshot.files[name]
    part = snapshot.folder / f"{name}.part"
    for _ in range(2):
        watch.beat(part.stat().st_size if part.is_file() else 0)
        try:
            _again(lambda: _receive(snapshot, name, part, size, watch), watch)
        except OSError as error:
            if error.errno in FULL:
                part.unlink(missing_ok=True)
                raise _full(snapshot.repository, size, shutil.disk_usage(snapshot.folder).free) from None
            raise
        if _is(part, size, digest, watch):
            os.replace(part, snapshot.folder / name)
            return
        watch.bytes -= part.stat().st_size
        part.unlink()
    what = f"{name} arrived damaged twice (its digest is not the one that {_host()} states)"
    raise HubError(snapshot.repository, what, "Try again later, or over another network")


def _receive(snapshot: Snapshot, name: str, part: Path, size: int, watch: _Watch) -> None:
    """One request for what is missing of a file, appended to what is there."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

    have = part.stat().st_size if part.is_file() else 0
    if have < size or not have:
        url = hf_hub_url(snapshot.repository, name, revision=snapshot.revision, endpoint=_endpoint())
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        session = get_session()
        with session.stream("GET", url, headers=headers, timeout=_patience() / 2, follow_redirects=True) as answer:
            hf_raise_for_status(answer)
            if have and answer.status_code != 206:  # The server sends the file from its beginning.
                watch.bytes, have = watch.bytes - have, 0
            with part.open("ab" if have else "wb") as file:
                for block in answer.iter_bytes():
                    if watch.stopped:
                        raise _Stopped
                    file.write(block)
                    watch.beat(len(block))
    if part.stat().st_size < size:
        raise _BrokeOff(f"{name} broke off after {part.stat().st_size / 1e6:.1f} of {size / 1e6:.1f} MB")


def _again(action: Callable[[], Result], watch: _Watch) -> Result:
    """Do something once more where the line broke or the server has trouble of its own, a few times."""
    left = TRIES
    while True:
        left -= 1
        try:
            return action()
        except Exception as error:
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if not left or watch.stopped or not (_is_transport(error) or isinstance(error, _BrokeOff) or status >= 500):
                raise
        time.sleep(min(0.5, _patience() / 10))


def _watched(repository: str, work: Callable[[_Watch], Result], total: int = 0, progress: bool = False) -> Result:
    """Run something that uses the network beside this thread, and give it up when nothing moves.

    Timeouts of the request do not suffice: looking up a name has none, and several may follow one another.
    """
    from tqdm.auto import tqdm

    watch = _Watch()
    outcome: dict[str, Any] = {}

    def run() -> None:
        try:
            outcome["value"] = work(watch)
        except BaseException as error:
            outcome["error"] = error

    patience = _patience()
    thread = threading.Thread(target=run, daemon=True, name=f"fetch {repository}")
    thread.start()
    try:
        with tqdm(total=total, unit="B", unit_scale=True, desc=repository, disable=not (progress and total)) as bar:
            while thread.is_alive():
                thread.join(0.05)
                bar.update(watch.bytes - bar.n)
                if thread.is_alive() and time.monotonic() - watch.last > patience:
                    what = f"{_host()} sent nothing for {patience:g} s"
                    raise HubError(repository, what, "Try again: what arrived is kept, and gone on with")
            bar.update(watch.bytes - bar.n)
    finally:
        watch.stopped = True
    if "error" in outcome:
        raise _explained(repository, outcome["error"]) from None
    return outcome["value"]


def _explained(repository: str, error: BaseException) -> BaseException:
    """What a library's error means, in one line; an error that is none of the network's or the disk's stays itself."""
    from huggingface_hub import errors

    if isinstance(error, HubError):
        return error
    status = getattr(getattr(error, "response", None), "status_code", None)
    page = f"https://huggingface.co/{repository}"
    if isinstance(error, errors.GatedRepoError) or status == 403:
        what = f"its owner gives access only to those who ask ({status})"
        return HubError(repository, what, f"Ask for it at {page}, then set HF_TOKEN")
    if isinstance(error, errors.RevisionNotFoundError):
        return HubError(repository, "it has no such revision", "Leave the revision out, or run `course models pin`")
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
        what = f"there is no such repository, or it is private ({status})"
        return HubError(repository, what, f"Check the name at {page}; for a private one set a valid HF_TOKEN")
    if status is not None:
        return HubError(repository, f"{_host()} answers {status}", "Try again later")
    if isinstance(error, _BrokeOff):
        return HubError(repository, str(error), "Try again: what arrived is kept, and gone on with")
    if _is_transport(error) or isinstance(error, ConnectionError):
        kind, reason = type(error).__name__, str(error).partition("\n")[0] or type(error).__name__
        if kind.startswith("Read") or kind == "RemoteProtocolError":
            what = f"the connection to {_host()} broke off ({reason})"
            return HubError(repository, what, "Try again: what arrived is kept, and gone on with")
        what = f"no connection to {_host()} ({reason})"
        return HubError(repository, what, "Check the network, or set COURSE_PROFILE=laptop to do without")
    if isinstance(error, OSError) and error.errno is not None:
        what = f"its files cannot be written into {_home(repository)} ({error.strerror})"
        return HubError(repository, what, "Set COURSE_CACHE to a folder that can be written")
    return error


def _full(repository: str, needed: int, free: int) -> HubError:
    what = f"no room for {needed / 1e6:.1f} MB in {cache_folder()} ({free / 1e6:.1f} MB are free)"
    return HubError(repository, what, "Make room, or set COURSE_CACHE to a folder on another disk")


def _is_transport(error: BaseException) -> bool:
    """Whether it is a transport error of the HTTP library, which is httpx or httpx2, as huggingface_hub has it."""
    modules = (sys.modules.get(name) for name in ("httpx", "httpx2"))
    return any(isinstance(error, module.TransportError) for module in modules if module)


def _is(path: Path, size: int, digest: str, watch: _Watch | None = None) -> bool:
    """Whether a file has this size and digest: SHA-256, or the SHA-1 that git gives a file that is not in LFS."""
    if not path.is_file() or path.stat().st_size != size:
        return False
    found = hashlib.sha256() if len(digest) == 64 else hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            found.update(block)
            if watch:
                watch.beat()
    return found.hexdigest() == digest


def _patience() -> float:
    value = os.environ.get("COURSE_HUB_TIMEOUT") or TIMEOUT_S
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 3600:
        raise ValueError(f"COURSE_HUB_TIMEOUT is {value!r}; expected a number of seconds, for example {TIMEOUT_S:g}")
    return seconds


def _offline() -> bool:
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def _endpoint() -> str:
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def _host() -> str:
    return urlsplit(_endpoint()).netloc


def _home(repository: str) -> Path:
    return cache_folder() / "models" / _flat(repository)


def _flat(name: str) -> str:
    return name.replace("/", "--")


def _pinned(repository: str) -> str | None:
    model = hub_models().get(repository)
    return model.revision if model else None
