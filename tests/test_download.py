"""download.py: where data is looked for, and downloads from a server of the test's own."""

import dataclasses
import errno
import hashlib
import http.server
import io
import os
import signal
import stat
import subprocess
import sys
import threading
import time
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

import data
import download
from commands import BadInput, cli
from conftest import ROOT
from download import find
from envs import TASKS
from formats import save_npz
from task import Task
from test_data import arrays
from test_formats import refused, write_minari, write_zarr

PUSHT = TASKS["pusht"]
HOPPER = TASKS["hopper"]
NAME = PUSHT.data[0]


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No data of this machine, no proxy."""
    monkeypatch.delenv("DRIFT_DATA", raising=False)
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "nothing"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "nothing"))
    monkeypatch.setenv("no_proxy", "*")


# ---- finding -------------------------------------------------------------------------------------


def test_find_order(tmp_path, monkeypatch):
    given = tmp_path / "given"
    cached = tmp_path / "cached"
    explicit = tmp_path / "explicit"
    for folder in (given, cached):
        write_zarr(folder / NAME, arrays())
        save_npz(folder / "pusht.npz", action=np.zeros(1))
    save_npz(explicit / "pusht.npz", action=np.zeros(1))
    monkeypatch.setattr(download, "__file__", str(tmp_path / "download.py"))
    refused(lambda: find(PUSHT), "python data.py download pusht")
    save_npz(tmp_path / "demos" / "pusht.npz", action=np.zeros(1))
    assert find(PUSHT) == tmp_path / "demos" / "pusht.npz"
    monkeypatch.setenv("DRIFT_CACHE", str(cached))
    assert find(PUSHT) == cached / NAME
    monkeypatch.setenv("DRIFT_DATA", str(given))
    assert find(PUSHT) == given / NAME  # the first name of task.data wins
    for path in (explicit, explicit / "pusht.npz"):
        assert find(PUSHT, path) == explicit / "pusht.npz"
    assert find(PUSHT, cached / NAME) == cached / NAME
    (tmp_path / "empty").mkdir()
    refused(lambda: find(PUSHT, tmp_path / "empty"), "empty", NAME)  # nothing behind a given path
    refused(lambda: find(PUSHT, tmp_path / "none"), "none: no such file")
    monkeypatch.setenv("DRIFT_DATA", str(tmp_path / "none"))
    refused(lambda: find(PUSHT), "DRIFT_DATA=")
    assert find(PUSHT, explicit).parent == explicit


def test_find_minari(tmp_path, monkeypatch):
    """The library's folder comes after the cache and before demos/, for tasks of Minari only."""
    monkeypatch.setattr(download, "__file__", str(tmp_path / "download.py"))
    words = ("mujoco/hopper/medium-v0 or hopper-medium", "python data.py download hopper")
    refused(lambda: find(HOPPER), *words)
    demos = write_minari(tmp_path / "demos" / "hopper-medium")
    assert find(HOPPER) == demos
    library = write_minari(tmp_path / "library" / HOPPER.minari)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "library"))
    assert find(HOPPER) == library
    save_npz(tmp_path / "library" / "pusht.npz", action=np.zeros(1))
    refused(lambda: find(PUSHT), "no pusht data")
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert find(HOPPER) == demos
    at_home = write_minari(tmp_path / "home" / ".minari" / "datasets" / HOPPER.minari)
    assert find(HOPPER) == at_home
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "cache"))
    cached = write_minari(tmp_path / "cache" / "hopper-medium")
    assert find(HOPPER) == cached
    file = demos / "data" / "main_data.hdf5"
    for path, wanted in (
        (demos, demos),
        (demos / "data", demos / "data"),
        (tmp_path / "library", library),
        (file, file),
    ):
        assert find(HOPPER, path) == wanted and len(data.load(HOPPER, path)) == 3
    windows = data.Windows(data.load(HOPPER), HOPPER.T_o, HOPPER.T_p, HOPPER.T_a)
    assert len(windows) == 4 + 1 + 7


def test_a_home_folder_that_is_not_known(monkeypatch):
    """One line each, for ~nosuchuser and for a system that does not know the user."""
    refused(lambda: find(PUSHT, "~nosuchuser/x"), "~nosuchuser/x: this home folder is not known")
    monkeypatch.setenv("DRIFT_DATA", "~nosuchuser")
    refused(lambda: find(PUSHT), "~nosuchuser: this home folder is not known")
    monkeypatch.delenv("DRIFT_DATA")
    monkeypatch.delenv("DRIFT_CACHE", raising=False)
    monkeypatch.delenv("MINARI_DATASETS_PATH", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does for such a user
    for task in (PUSHT, HOPPER):
        refused(lambda task=task: find(task), "set HOME")


def test_find_tells_what_to_do(tmp_path):
    """A script where there is one, a download where there is one, else only --data is left."""
    own = Task(name="own", obs={"state": (3,)}, D_a=1, T_o=1, T_p=4, T_a=4)
    scripted = dataclasses.replace(own, expert=print)
    official = dataclasses.replace(own, url="https://example.org/own.zip")
    refused(lambda: find(own), "no own data", "give --data PATH")
    refused(lambda: find(scripted), "run `python experts.py --task own`")
    refused(lambda: find(official), "run `python data.py download own`")
    (tmp_path / "x.npz").write_bytes(b"")
    assert find(own, tmp_path / "x.npz") == tmp_path / "x.npz"  # a file needs no name


# ---- a server, and an archive on it --------------------------------------------------------------


class Server(http.server.BaseHTTPRequestHandler):
    """Serves server.content; honours Range if server.ranges; server.cut ends the answer early.

    server.length: the Content-Length if it is not "", none if it is None. server.leads_to: where
    the answer leads, if anywhere.
    """

    def do_GET(self):
        server = self.server
        asked = self.headers.get("Range")
        total = len(server.content)
        server.seen.append(asked)
        start = 0
        if server.leads_to:
            self.send_response(302)
            self.send_header("Location", server.leads_to)
            return self.end_headers()
        if asked and server.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
        if self.path.endswith("missing"):
            return self.send_error(404)
        if start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            first = start + server.shift
            self.send_header("Content-Range", f"bytes {first}-{total - 1}/{total}")
        if server.length is not None:
            self.send_header("Content-Length", server.length or str(total - start))
        self.end_headers()
        server.sent.append(self.wfile.write(server.content[start : server.cut]))
        self.wfile.flush()
        return server.wait and server.wait.wait(60)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    s.seen = []  # the Range of each request
    s.sent = []  # the bytes of each answer
    s.ranges = True
    s.shift = 0
    s.cut = None
    s.length = ""
    s.leads_to = None
    s.wait = None  # an Event that the answer ends after
    s.content = b""
    s.url = f"http://127.0.0.1:{s.server_port}/pusht.zip"
    options = {"poll_interval": 0.02}
    threading.Thread(target=s.serve_forever, kwargs=options, daemon=True).start()
    yield s
    s.shutdown()
    s.server_close()


@pytest.fixture
def folder(tmp_path):
    """The data that the archive holds."""
    return write_zarr(tmp_path / "made" / "pusht" / NAME, arrays())


@pytest.fixture
def task(tmp_path, server, folder):
    """Push-T whose archive is on the server, laid out like the official one, with its sha256."""
    with zipfile.ZipFile(tmp_path / "made.zip", "w") as z:
        for p in sorted(folder.rglob("*")):
            z.write(p, p.relative_to(tmp_path / "made"))
        z.writestr("pusht/readme.txt", "not part of the data")
    server.content = (tmp_path / "made.zip").read_bytes()
    sha256 = {name: hashlib.sha256(a.tobytes()).hexdigest() for name, a in arrays().items()}
    sha256["data/img"] = "0" * 64  # optional, and not in the archive
    return dataclasses.replace(PUSHT, sha256=sha256, url=server.url)


def part(to):
    """The file that an unfinished download is kept in."""
    return to / f"{NAME}.zip.part"


# ---- archives ------------------------------------------------------------------------------------


def test_download(tmp_path, server, task, folder, monkeypatch):
    monkeypatch.setenv("DRIFT_CACHE", str(tmp_path / "cache"))
    path = download.download(task)
    assert path == tmp_path / "cache" / NAME == find(PUSHT)
    assert sorted(p.name for p in (tmp_path / "cache").iterdir()) == [".lock", NAME]  # no part
    loaded = data.load(PUSHT, path)
    wanted = data.load(PUSHT, folder)
    np.testing.assert_array_equal(loaded.obs["state"], wanted.obs["state"])
    assert download.download(task) == path and len(server.seen) == 1  # once is enough
    (path / "data/action/0.0").unlink()
    refused(lambda: download.download(task), "lacks chunk", "move it away")
    assert path.exists() and len(server.seen) == 1


def test_the_url_of_a_flag(tmp_path, server, task):
    other = dataclasses.replace(task, url="http://127.0.0.1:9/x.zip")
    assert download.download(other, tmp_path / "to", server.url) == tmp_path / "to" / NAME


def test_download_resumes(tmp_path, server, task):
    to = tmp_path / "to"
    server.cut = 1000
    refused(lambda: download.download(task, to), "again to resume")
    assert part(to).read_bytes() == server.content[:1000] and not (to / NAME).exists()
    server.cut = None
    download.download(task, to)
    assert server.seen == [None, "bytes=1000-"]
    assert server.sent == [1000, len(server.content) - 1000]
    assert len(data.load(PUSHT, to)) == 3


def test_download_without_range(tmp_path, server, task):
    to = tmp_path / "to"
    to.mkdir()
    server.ranges = False
    part(to).write_bytes(b"x" * 1000)  # sent anew, so not kept
    download.download(task, to)
    assert server.seen == ["bytes=1000-"] and server.sent == [len(server.content)]
    assert len(data.load(PUSHT, to)) == 3


def test_download_resumed_at_a_wrong_place(tmp_path, server, task):
    to = tmp_path / "to"
    to.mkdir()
    server.shift = 1
    part(to).write_bytes(server.content[:1000])
    refused(lambda: download.download(task, to), "wrong place", "delete")
    assert part(to).read_bytes() == server.content[:1000]


@pytest.mark.parametrize("extra, seen", [(b"", 1), (b"xyz", 2)])
def test_download_416(tmp_path, server, task, extra, seen):
    """A part as long as the archive is the archive; a longer one is started over."""
    to = tmp_path / "to"
    to.mkdir()
    part(to).write_bytes(server.content + extra)
    download.download(task, to)
    assert len(server.seen) == seen and len(data.load(PUSHT, to)) == 3


def test_download_sha(tmp_path, task):
    """Other numbers are not installed; the archive is kept, and the next try is fresh."""
    to = tmp_path / "to"
    task = dataclasses.replace(task, sha256={**task.sha256, "data/state": "0" * 64})
    refused(lambda: download.download(task, to), "not installed", "data/state differs")
    assert sorted(p.name for p in to.iterdir()) == [".lock", f"{NAME}.zip.bad"]


def test_an_array_that_is_not_optional_must_be_there(tmp_path, task):
    task = dataclasses.replace(task, optional=())
    refused(lambda: download.download(task, tmp_path / "to"), "not installed", "data/img")


def repacked(content, add):
    """The zip with more entries: {name or ZipInfo: text}."""
    f = io.BytesIO(content)
    with zipfile.ZipFile(f, "a") as z:
        for name, text in add.items():
            z.writestr(name, text)
    return f.getvalue()


def link(name):
    """A zip's entry that is a symbolic link."""
    entry = zipfile.ZipInfo(name)
    entry.external_attr = (stat.S_IFLNK | 0o777) << 16
    return entry


@pytest.mark.parametrize(
    "entry",
    [
        "../evil",
        f"pusht/{NAME}/../../../../evil",
        "/evil",
        "..\\evil",
        "C:evil",
        link(f"pusht/{NAME}/evil"),
    ],
    ids=str,
)
def test_evil_zip(tmp_path, server, task, entry):
    to = tmp_path / "deep" / "er" / "to"
    server.content = repacked(server.content, {entry: "/etc"})
    refused(lambda: download.download(task, to), "not installed", "link or leads outside")
    left = sorted(p.name for p in (tmp_path / "deep").rglob("*"))
    assert left == [".lock", "er", f"{NAME}.zip.bad", "to"]
    assert not Path("/evil").exists()


def test_absurd_and_foreign_zips(tmp_path, server, task, monkeypatch):
    whole = server.content
    for i, content in enumerate((b"PK not a zip", whole[:-30], repacked(b"", {"a.txt": "b"}))):
        server.content = content
        refused(lambda i=i: download.download(task, tmp_path / str(i)), "not installed")
    monkeypatch.setattr(download, "MAX_BYTES", len(whole) + 10)
    server.content = repacked(whole, {f"{i}": "x" for i in range(2)})
    refused(lambda: download.download(task, tmp_path / "long"), "not the archive")
    monkeypatch.setattr(download, "MAX_BYTES", len(server.content))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("zeros", bytes(len(server.content) + 1))
    server.content = (tmp_path / "bomb.zip").read_bytes()
    refused(lambda: download.download(task, tmp_path / "bomb"), "would unpack")


def test_too_many_files(tmp_path, task, monkeypatch):
    monkeypatch.setattr(download, "MAX_FILES", 5)
    refused(lambda: download.download(task, tmp_path / "to"), "would unpack", "5 files")


# ---- servers and disks that fail -----------------------------------------------------------------


@pytest.mark.parametrize(
    "length, cut, words",
    [
        ("-5", None, None),
        (None, None, None),  # then the end of the connection is the end of the archive
        (str(2**40), None, ["more than 1073741824 bytes", "check the address"]),
        ("many", None, ["download failed", "ValueError"]),
        ("100", None, ["not installed", "kept as"]),
        ("99999", None, ["again to resume", "of 99999 bytes"]),
        (None, 1000, ["not installed", "kept as"]),
        ("", 0, ["again to resume", "ended after 0 of"]),
    ],
)
def test_servers_that_are_wrong_about_the_length(tmp_path, server, task, length, cut, words):
    """One line, and no data that is not whole; the next try may be a good one."""
    server.length = length
    server.cut = cut
    if words:
        refused(lambda: download.download(task, tmp_path / "to"), *words)
        assert not (tmp_path / "to" / NAME).exists()
        part(tmp_path / "to").unlink(missing_ok=True)
        server.length = ""
        server.cut = None
    assert len(data.load(PUSHT, download.download(task, tmp_path / "to"))) == 3


def test_a_server_without_an_end(tmp_path, server, task, monkeypatch):
    """What has come of it is deleted; the next try begins afresh."""
    monkeypatch.setattr(download, "MAX_BYTES", 500)
    server.length = None
    refused(lambda: download.download(task, tmp_path / "to"), "more than 500 bytes")
    assert part(tmp_path / "to").stat().st_size == 0


@pytest.mark.parametrize("place", ["file:///etc/passwd", "ftp://127.0.0.1:9/x", "data:,x", "//["])
def test_redirections_that_are_not_followed(tmp_path, server, task, place):
    server.leads_to = place
    refused(lambda: download.download(task, tmp_path / "to"), server.url)
    assert not part(tmp_path / "to").exists()


def test_a_redirection_without_end(tmp_path, server, task):
    server.leads_to = server.url
    refused(lambda: download.download(task, tmp_path / "to"), "download failed", "HTTPError")


@pytest.mark.parametrize(
    "url",
    [
        "http://[bad",
        "http://",
        "http://127.0.0.1:99999/",
        "http://a b/",
        "https://\x1b[2J/",
        "ftp://x",
    ],
)
def test_addresses_that_are_none(tmp_path, task, url):
    refused(lambda: download.download(task, tmp_path / "to", url), url)


def test_an_endless_address_is_shown_short(tmp_path, task):
    with pytest.raises(BadInput) as e:
        download.download(task, tmp_path / "to", "http://" + "x" * 10**6)
    assert len(str(e.value)) < 1000


def test_a_full_disk_is_not_the_archives_fault(tmp_path, task, monkeypatch):
    """While unpacking or downloading: the part is kept, and the next try goes on with it."""

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    to = tmp_path / "to"
    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extractall", full)
        refused(lambda: download.download(task, to), "No space left")
    assert sorted(p.name for p in to.iterdir()) == [".lock", part(to).name]
    with monkeypatch.context() as patch:
        patch.setattr(download, "save_answer", full)
        part(to).unlink()
        refused(lambda: download.download(task, to), "No space left", "again to resume")
    assert len(data.load(PUSHT, download.download(task, to))) == 3


def test_what_a_killed_download_left_is_deleted(tmp_path, task):
    to = tmp_path / "to"
    (to / ".drift-unpack-xyz" / "pusht").mkdir(parents=True)
    (to / ".unpacked-mine").mkdir()
    download.download(task, to)
    assert sorted(p.name for p in to.iterdir()) == [".lock", ".unpacked-mine", NAME]


def test_two_downloads_at_once(tmp_path, task):
    """The second says who writes the folder, and changes nothing."""
    to = tmp_path / "to"
    to.mkdir()
    code = (
        f"import files, sys; lock = files.Lock({str(to / '.lock')!r}); print('held', flush=True); "
    )
    command = [sys.executable, "-c", code + "sys.stdin.read()"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as other:
        assert other.stdout.readline() == b"held\n"
        refused(lambda: download.download(task, to), "is being written by process")
        assert [p.name for p in to.iterdir()] == [".lock"]
        other.stdin.close()
    download.download(task, to)


def test_places_that_cannot_be_written(tmp_path, task):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "pipe")
    for to in ("x" * 5000, tmp_path / "file", tmp_path / "file" / "x", tmp_path / "pipe"):
        refused(lambda to=to: download.download(task, to), "cannot write to", str(to))
    (tmp_path / "to").mkdir()
    os.mkfifo(part(tmp_path / "to"))
    refused(lambda: download.download(task, tmp_path / "to"), "is not a file: move it away")
    part(tmp_path / "to").unlink()
    part(tmp_path / "to").mkdir()
    refused(lambda: download.download(task, tmp_path / "to"), "is not a file: move it away")
    (tmp_path / "to" / NAME).write_text("")
    refused(lambda: download.download(task, tmp_path / "to"), "move it away")


def test_an_interrupted_download_goes_on(tmp_path, server, task):
    """Ctrl-C while the server makes it wait: one line, exit code 130, what has come is kept."""
    to = tmp_path / "to"
    server.length = str(2 * len(server.content))
    server.wait = threading.Event()
    command = [sys.executable, ROOT / "data.py", "download", "pusht", "--to", to]
    environment = {**os.environ, "no_proxy": "*"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*command, "--url", server.url], env=environment, **pipes)
    deadline = time.monotonic() + 120
    while not (part(to).exists() and part(to).stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    server.wait.set()
    assert (process.returncode, out, err) == (130, "", "interrupted\n")
    assert server.content.startswith(part(to).read_bytes())
    server.wait = None
    server.length = ""
    download.download(task, to)
    assert len(data.load(PUSHT, to)) == 3 and server.seen[-1].startswith("bytes=")


@pytest.mark.parametrize("kind", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_archives_that_are_not_bounded(tmp_path, server, task, kind):
    """Python unpacks these two a whole block at a time, however large it becomes."""
    with zipfile.ZipFile(tmp_path / "x.zip", "w", kind) as z:
        z.writestr("zeros", bytes(10**6))
    server.content = (tmp_path / "x.zip").read_bytes()
    refused(lambda: download.download(task, tmp_path / "to"), "not installed", "not bounded")


# ---- Minari --------------------------------------------------------------------------------------


def fake_minari(monkeypatch, fetch):
    """A minari library whose download_dataset(name) is fetch(folder of the data set)."""
    library = types.ModuleType("minari")

    def download_dataset(name):
        fetch(Path(os.environ["MINARI_DATASETS_PATH"], name))

    library.download_dataset = download_dataset
    monkeypatch.setitem(sys.modules, "minari", library)


def test_download_minari(tmp_path, monkeypatch, capsys):
    """The command has the library fetch, checks what is there at every call, prints its path."""
    fake_minari(monkeypatch, lambda folder: folder.exists() or write_minari(folder))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "library"))
    for to, args in (
        (tmp_path / "library", []),
        (tmp_path / "to", ["--to", str(tmp_path / "to")]),
    ):
        monkeypatch.setattr(sys, "argv", ["data.py", "download", "hopper", *args])
        for _ in range(2):
            cli(data.main)
            assert capsys.readouterr().out.strip() == str(to / HOPPER.minari)
        assert len(data.load(HOPPER, to)) == 3
    assert find(HOPPER) == to / HOPPER.minari
    (to / HOPPER.minari / "data" / "main_data.hdf5").write_bytes(b"half")
    refused(lambda: data.obtain(HOPPER), "damaged", "delete", "to download it again")
    url = "http://127.0.0.1:9/x.zip"
    refused(lambda: data.obtain(HOPPER, url=url), "--url", "leave it out")


def test_download_minari_fails(tmp_path, monkeypatch):
    to = tmp_path / "to"

    def offline(folder):
        raise ConnectionError("no network\nat all")

    fake_minari(monkeypatch, offline)
    words = (f"{HOPPER.minari}: download failed", "no network")
    refused(lambda: download.download(HOPPER, to), *words)
    fake_minari(monkeypatch, lambda folder: None)
    refused(lambda: data.obtain(HOPPER, to), "no such file or folder")
    monkeypatch.setitem(sys.modules, "minari", None)  # as if not installed
    words = ('pip install "minari[hf]==0.5.4"', "requirements-extra.txt")
    refused(lambda: download.download(HOPPER, to), *words)


# ---- python data.py download ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "args, word",
    [
        ("info . --task chess", "unknown task"),
        ("info . --tas pusht", "unrecognized"),
        ("info", "no pusht data"),
        ("download pusht --url file:///etc/passwd", "not an http"),
        ("download chess", "invalid choice"),
        ("download pusht --to made.zip --url URL", "cannot write"),
        ("download pusht --url URL?missing", "404"),
    ],
)
def test_cli_arguments(tmp_path, monkeypatch, capsys, server, task, args, word):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(download, "__file__", str(tmp_path / "download.py"))
    monkeypatch.setattr(sys, "argv", ["data.py", *args.replace("URL", server.url).split()])
    with pytest.raises(SystemExit) as e:
        cli(data.main)
    assert e.value.code == 2 and word in capsys.readouterr().err


def test_cli_download(tmp_path, monkeypatch, capsys, server, task):
    monkeypatch.setitem(data.TASKS, "pusht", task)
    to = str(tmp_path / "to")
    monkeypatch.setattr(sys, "argv", ["data.py", "download", "pusht", "--to", to])
    cli(data.main)
    assert capsys.readouterr().out.strip() == str(tmp_path / "to" / NAME)


def test_cli_bad_input(tmp_path):
    """One line on stderr and exit code 2, as a user sees it."""
    args = ["download", "pusht", "--to", tmp_path, "--url", "http://127.0.0.1:9/x.zip"]
    line = [sys.executable, ROOT / "data.py", *args]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("error: ") and "download failed" in done.stderr


# ---- files of robomimic --------------------------------------------------------------------------


def test_a_file_of_robomimic(tmp_path, server):
    """An HDF5 file is opened, and then moved to its place in a folder; what fails is set aside."""
    from test_pictures import write_robomimic

    lift = dataclasses.replace(TASKS["lift"], url=server.url)
    to = tmp_path / "to"
    server.content = b"not a file of demonstrations"
    refused(lambda: download.download(lift, to), "not installed", "damaged")
    assert sorted(p.name for p in to.iterdir()) == [".lock", "lift_ph_low_dim_v15.hdf5.bad"]
    write_robomimic(tmp_path / "x.hdf5", (5, 7))
    server.content = (tmp_path / "x.hdf5").read_bytes()
    path = download.download(lift, to)
    assert path == to / "lift/ph/low_dim_v15.hdf5" == find(lift, to)
    assert path.read_bytes() == server.content and not path.is_symlink()
    assert not list(to.glob("*.part")) and not list(to.glob(".unpack*"))
    assert download.download(lift, to) == path and len(server.seen) == 2
    path.write_bytes(b"x")
    refused(lambda: download.download(lift, to), "damaged", "move it away")
