"""Damage to files, drawn at random: what fuzz.py does to npz, zarr, HDF5, torch, JSON and CSV.

Each function takes a numpy.random.Generator and damages one file in place. It returns a few words
about what it did. A generator of the same seed does the same damage to the same file.
"""

import json
import os
import re
import struct
import zipfile
import zlib

import numpy as np

from files import save_torch

HUGE = 3 * 2**30  # bytes of a file that is one hole, and of what a bomb unpacks to
NUMBERS = (-1, 0, 1, 2, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32, 10**9, 2**62, 2**63, 2**64, 10**30)
TEXTS = (
    "",
    "a",
    "\x1b[2J\x07",
    "x" * 3000,
    "../../x",
    "/etc/passwd",
    "é\u202e\ud800",
    "nan",
    "1e999",
)


def choice(rng, values):
    """One of some values, which may be of different types."""
    return values[rng.integers(len(values))]


def odd_value(rng):
    """A value that is seldom what a reader expects."""
    kind = rng.integers(8)
    if kind == 0:
        return choice(rng, NUMBERS)
    if kind == 1:
        return -choice(rng, NUMBERS)
    if kind == 2:
        return float(choice(rng, (0.5, -0.0, 1e-320, 1e38, 1e308, np.nan, np.inf, -np.inf)))
    if kind == 3:
        return choice(rng, TEXTS)
    if kind == 4:
        return choice(rng, (None, True, False))
    if kind == 5:
        return [choice(rng, NUMBERS) for _ in range(rng.integers(4))]
    if kind == 6:
        return {choice(rng, TEXTS): choice(rng, NUMBERS) for _ in range(rng.integers(3))}
    deep = []
    for _ in range(choice(rng, (3, 100, 900))):
        deep = [deep]
    return deep


# ---- bytes --------------------------------------------------------------------------------------


def damaged_bytes(content, rng):
    """Bytes with one to three changes, and their names."""
    content = bytearray(content)
    done = []
    for _ in range(rng.integers(1, 4)):
        how = choice(rng, BYTE_CHANGES)
        how(content, rng, int(rng.integers(len(content) + 1)), int(2 ** rng.uniform(0, 10)))
        done.append(how.__name__.strip("_"))
    return bytes(content), "+".join(done)


def _flip(content, rng, at, n):
    for at in rng.integers(max(len(content), 1), size=min(n, 8)):
        if content:
            content[at] ^= 1 << rng.integers(8)


def _cut(content, rng, at, n):
    del content[at:]


def _drop(content, rng, at, n):
    del content[at : at + n]


def _insert(content, rng, at, n):
    content[at:at] = rng.bytes(n)


def _overwrite(content, rng, at, n):
    content[at : at + n] = rng.bytes(min(n, len(content) - at))


def _run(content, rng, at, n):
    n = min(n, len(content) - at)
    content[at : at + n] = bytes([choice(rng, (0, 255, 127, 128, 10))]) * n


def _splice(content, rng, at, n):
    start = int(rng.integers(len(content) + 1))
    content[at : at + n] = content[start : start + n]


def _repeat(content, rng, at, n):
    content[at:at] = content[at : at + n]


def _integer(content, rng, at, n):
    size = choice(rng, (1, 2, 4, 8))
    number = choice(rng, NUMBERS) % 2 ** (8 * size)
    content[at : at + size] = number.to_bytes(size, choice(rng, ("little", "big")))


BYTE_CHANGES = (_flip, _cut, _drop, _insert, _overwrite, _run, _splice, _repeat, _integer)
BYTE_CHANGES += (_flip, _integer)  # these two leave most of a file as it was


def damage_bytes(path, rng):
    """Change the bytes of a file."""
    content, done = damaged_bytes(path.read_bytes(), rng)
    path.write_bytes(content)
    return f"{path.name}: {done}"


def damage_place(path, rng):
    """Put something else in the place of a file."""
    kind = choice(rng, ("nothing", "empty", "folder", "pipe", "device", "loop", "hole", "long"))
    size = path.stat().st_size
    path.unlink()
    if kind == "empty":
        path.write_bytes(b"")
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind in ("hole", "long"):
        with open(path, "wb") as file:
            file.truncate(HUGE if kind == "hole" else 10 * size + 1000)
    return f"{path.name}: {kind} in its place"


# ---- text ---------------------------------------------------------------------------------------


def places(value):
    """All (container, key) in nested dicts and lists."""
    found = []
    if isinstance(value, dict):
        found = [(value, key) for key in value]
    elif isinstance(value, list):
        found = [(value, i) for i in range(len(value))]
    return found + [deeper for holder, key in found for deeper in places(holder[key])]


def change_place(value, rng, odd=odd_value):
    """Change one entry of nested dicts and lists. Returns the value and what was done.

    odd: gives a new value for an entry, from the generator.
    """
    found = places(value)
    if not found or rng.random() < 0.02:
        return odd_value(rng), "all of it"
    holder, key = found[rng.integers(len(found))]
    how = rng.random()
    if how < 0.2:
        del holder[key]
        return value, f"{str(key)[:40]} deleted"
    if how < 0.25 and isinstance(holder, dict):
        holder[choice(rng, TEXTS)] = holder.pop(key)
        return value, f"{str(key)[:40]} renamed"
    holder[key] = odd(rng)
    return value, f"{str(key)[:40]} = {str(holder[key])[:60]!r}"


def damage_json(path, rng):
    """Change one entry of a JSON file, or numbers in its text."""
    if rng.random() < 0.2:
        return damage_numbers(path, rng)
    value, done = change_place(json.loads(path.read_text()), rng)
    path.write_text(json.dumps(value))
    return f"{path.name}: {done}"


def damage_numbers(path, rng):
    """Put odd text in the place of one to three numbers in a text."""
    text = path.read_text()
    for _ in range(rng.integers(1, 4)):
        found = list(re.finditer(r"-?\d+(\.\d+)?", text))
        if found:
            at = found[rng.integers(len(found))]
            new = choice(rng, (*map(str, NUMBERS), "1e999", "NaN", "-", "", "0x10", "1,2", "٣"))
            text = text[: at.start()] + new + text[at.end() :]
    path.write_text(text)
    return f"{path.name}: numbers"


def damage_lines(path, rng):
    """Change the lines of a text: log.jsonl or a table."""
    lines = path.read_text().splitlines()
    at = int(rng.integers(len(lines)))
    kind = choice(rng, ("drop", "twice", "cut", "odd", "binary", "nested", "swap", "long", "field"))
    cells = lines[at].split(",")
    if kind == "drop":
        del lines[at]
    elif kind == "twice":
        lines.insert(at, lines[at])
    elif kind == "cut":
        lines[at] = lines[at][: rng.integers(len(lines[at]) + 1)]
    elif kind == "odd":
        lines[at] = json.dumps(odd_value(rng))
    elif kind == "binary":
        lines[at] = rng.bytes(40).decode("latin1")
    elif kind == "nested":
        lines[at] = "[" * 10_000
    elif kind == "swap":
        other = int(rng.integers(len(lines)))
        lines[at], lines[other] = lines[other], lines[at]
    elif kind == "long":
        lines[at] = lines[at] * 1000
    else:
        cells[rng.integers(len(cells))] = choice(rng, TEXTS)
        lines[at] = ",".join(cells)
    path.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    return f"{path.name}: line {at} {kind}"


def damage_rows(path, rng):
    """Change one entry of one row of a log.jsonl."""
    lines = path.read_text().splitlines()
    at = int(rng.integers(len(lines)))
    row, done = change_place(json.loads(lines[at]), rng)
    lines[at] = json.dumps(row)
    path.write_text("\n".join(lines) + "\n")
    return f"{path.name}: line {at} {done}"


# ---- zip: npz, checkpoints and archives ---------------------------------------------------------


def damage_zip(path, rng):
    """Change a member of a zip archive and write it anew, so that its checksums are right."""
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
        kind = archive.infolist()[0].compress_type
    at = int(rng.integers(len(members)))
    name, content = members[at]
    how = choice(rng, ("content",) * 6 + ("text", "drop", "name", "twice", "bomb", "packing"))
    if how == "content":
        content, done = damaged_bytes(content, rng)
        members[at] = (name, content)
    elif how == "text":
        members[at] = (name, odd_header(content, rng))
        done = "header"
    elif how == "drop":
        del members[at]
        done = "dropped"
    elif how == "name":
        new = choice(rng, (*TEXTS, "x.npy", "C:x", "a\\b", "/x", name.upper()))
        members[at] = (new.encode("utf-8", "replace").decode(), content)
        done = f"named {new[:40]!r}"
    elif how == "twice":
        members.append((name, damaged_bytes(content, rng)[0]))
        done = "twice"
    elif how == "bomb":
        members[at] = (name, content + bytes(2**26))
        kind = zipfile.ZIP_DEFLATED
        done = "64 MB more"
    else:
        kind = choice(rng, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
        done = f"packing {kind}"
    with zipfile.ZipFile(path, "w", kind) as archive:
        for member, held in members:
            archive.writestr(member, held)
    return f"{path.name}: {name[-40:]}: {done}"


def odd_header(content, rng):
    """The bytes of an npy member with another header of the same content."""
    if not content.startswith(b"\x93NUMPY"):
        return content
    length = int.from_bytes(content[8:10], "little")
    shape = [int(choice(rng, NUMBERS)) for _ in range(rng.integers(4))]
    dtypes = ("'<f4'", "'|O'", "'<U9'", "'<M8[s]'", "[('a', '<f4')]", "'<f8'", "'V9'", "'>i2'", "9")
    header = f"{{'descr': {choice(rng, dtypes)}, 'fortran_order': {choice(rng, (True, 0))}, "
    header += f"'shape': {tuple(shape)}, }}\n"
    return content[:8] + struct.pack("<H", len(header)) + header.encode() + content[10 + length :]


def damage_directory(path, rng):
    """Make the directory of a zip archive lie about the sizes of a member."""
    content = bytearray(path.read_bytes())
    entries = [at.start() for at in re.finditer(b"PK\x01\x02", bytes(content))]
    at = choice(rng, entries) + choice(rng, (10, 16, 20, 24, 28, 30, 38, 42))
    content[at : at + 4] = (choice(rng, NUMBERS) % 2**32).to_bytes(4, "little")
    path.write_bytes(content)
    return f"{path.name}: directory"


# ---- checkpoints and states ---------------------------------------------------------------------


def odd_tensor(rng):
    """A tensor, or an odd value, in the place of something in a checkpoint."""
    import torch  # slow to import

    kinds = (torch.float32, torch.float64, torch.int64, torch.bool, torch.uint8, torch.bfloat16)
    shape = [int(n) for n in rng.integers(0, 5, rng.integers(4))]
    kind = rng.integers(6)
    if kind == 0:
        return torch.full(shape, np.nan)
    if kind == 1:
        return torch.zeros(1).expand(2**30)  # 4 bytes that say they are 4 GB
    if kind == 2:
        return torch.zeros(shape).to_sparse()
    if kind == 3:
        return torch.zeros(shape, dtype=choice(rng, kinds))
    return odd_value(rng)


def damage_objects(path, rng):
    """Change one entry of what a checkpoint or a state holds, and save it as the project does."""
    import torch

    value = torch.load(path, weights_only=True)
    value, done = change_place(value, rng, odd_tensor)
    save_torch(path, value)
    return f"{path.name}: {done}"


# ---- zarr and HDF5 ------------------------------------------------------------------------------


def damage_chunk(path, rng):
    """A zarr chunk that unpacks to 64 MB."""
    path.write_bytes(zlib.compress(bytes(2**26)))
    return f"{path.name}: a bomb"


def damage_hdf5(path, rng):
    """Change one array, group or link of an HDF5 file."""
    import h5py

    with h5py.File(path, "r+") as file:
        names = []
        file.visit(names.append)
        name = choice(rng, sorted(names))
        how = choice(rng, ("delete", "move", "link", "shape", "type", "unwritten", "many", "data"))
        if how == "move":
            file.move(name, choice(rng, ("episode_99", "episode_0x", "é", "x" * 3000)))
            return f"{path.name}: {name} moved"
        if how == "many":
            for i in range(2000):
                file[f"episode_{i + 1000}"] = file["episode_0"]
            return f"{path.name}: 2000 groups more"
        old = file[name]
        shape = getattr(old, "shape", (3, 2))
        del file[name]
        if how == "link":
            links = (
                h5py.SoftLink("/"),
                h5py.SoftLink("/no"),
                h5py.ExternalLink("/etc/passwd", "x"),
            )
            file[name] = choice(rng, links)
        elif how == "shape":
            file[name] = np.ones([int(n) for n in rng.integers(0, 9, rng.integers(4))], "f4")
        elif how == "type":
            types = ("f8", "f2", "i8", "c8", "S3", h5py.string_dtype(), [("a", "f4")], ">f4", "?")
            file.create_dataset(name, shape, choice(rng, types))
        elif how == "unwritten":
            shape = (choice(rng, (5, 2**20, 2**40)), 11)
            chunks = (choice(rng, (1, 5)), 11)
            file.create_dataset(name, shape, "f4", chunks=chunks, compression="gzip")
        elif how == "data":
            value = choice(rng, (np.nan, np.inf, 1e38, -1))
            file[name] = np.full(shape, value, "f4")
    return f"{path.name}: {name} {how}"
