"""What strangers made, through the real commands: shards, settings, artifacts, tables and folders that mean harm.

Nothing of it runs, nothing outside the output is touched, and whoever reads a terminal, a log or a report sees text.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import shoal
from histories import Told
from PIL import Image
from typer.testing import Result

from pipeline.tables.artifacts import read_artifact
from pipeline.tables.collection import Collection

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
STEER = "\x1b[2J\x1b]0;owned\x07\u202e"  # clears a terminal, names its window, turns text around
TAGS = "<script>document['title']='run'</script><img src=x onerror=\"document['title']='run'\">"
KEY = f"{TAGS}{STEER}\n{{}}"
UNSEEN = {"\x1b", "\x07", "\u202e"}
LABEL = f"{TAGS}</title>'\"{STEER}\nnext: line"
TO_PIXELS = ("backbone.name=pixels", "backbone.size=4", "extract.actors=1")
KMEANS = ("cluster.reduce.kind=none", "cluster.algorithm.kind=kmeans", "cluster.algorithm.clusters=2")


def sets(*settings: str) -> list[str]:
    return [part for setting in settings for part in ("--set", setting)]


class Explodes:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[object, ...]:
        return open, (self.path, "w")


def files_in(folder: Path) -> dict[str, bytes | str]:
    """All that is in a folder: the bytes of files, where links lead to."""
    return {
        str(path.relative_to(folder)): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def refused(result: Result) -> str:
    """The one sentence of a command that did nothing."""
    assert result.exit_code == 2, (result.output, result.exception)
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stdout == ""
    return result.stderr


# ---- shards, and what is shown of them


def png(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (grey, grey, 255 - grey)).save(buffer, "PNG")
    return buffer.getvalue()


def hostile_members(marker: Path) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Images that are as they should be, and what a reader of other tools decodes, follows or unpacks."""
    bomb = pickle.dumps(Explodes(marker))
    array = io.BytesIO()
    np.save(array, np.array([Explodes(marker)], dtype=object), allow_pickle=True)
    for number, grey in enumerate((0, 5, 250, 255)):
        key = f"{number}{KEY}"
        parts = {"png": png(grey), "cls": LABEL.encode(), "pkl": bomb, "pickle": bomb, "pyd": bomb, "pth": bomb}
        yield from ((tarfile.TarInfo(f"{key}.{kind}"), content) for kind, content in parts.items())
        yield tarfile.TarInfo(f"{key}.npy"), array.getvalue()
    for name in ("../outside.png", "/tmp/absolute.png", f"a/../../{STEER}.png"):
        yield tarfile.TarInfo(name), png(9)
    kinds = {"s": tarfile.SYMTYPE, "l": tarfile.LNKTYPE, "c": tarfile.CHRTYPE, "b": tarfile.BLKTYPE, "f": b"6"}
    for name, kind in kinds.items():
        info = tarfile.TarInfo(f"{name}.png")
        info.type, info.linkname = kind, "../../../etc/passwd"
        yield info, b""


def hostile_shard(path: Path, marker: Path) -> None:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for info, content in hostile_members(marker):
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.mark.slow  # it starts workers
def test_of_a_hostile_shard_images_are_read_and_nothing_is_run_followed_or_unpacked(
    tmp_path: Path, ray_session: None
) -> None:
    home = tmp_path / "home" / "below"
    home.mkdir(parents=True)
    hostile_shard(home / "shard.tar", tmp_path / "ran")
    before = files_in(tmp_path)
    result = shoal("extract", home / "shard.tar", "--output", home / "out", *sets(*TO_PIXELS))
    assert result.exit_code == 1  # more rejects than are allowed
    now = files_in(tmp_path)
    assert {name: now[name] for name in before} == before
    assert {name.partition("/out/")[0] for name in now.keys() - before.keys()} == {"home/below"}
    samples = Collection.open(home / "out").samples
    rows = [row for file in samples.files() for row in samples.read(file, ["key", "label"]).to_pylist()]
    assert [(row["key"], row["label"]) for row in rows] == [(f"{number}{KEY}", LABEL.strip()) for number in range(4)]
    assert [(row["key"], row["reason"]) for row in samples.rejects().to_pylist()] == [
        ("../outside", "unsafe_member"),
        ("/tmp/absolute", "unsafe_member"),
        (f"a/../../{STEER}", "unsafe_member"),
    ]
    assert r"a/../../\x1b[2J\x1b]0;owned\x07\u202e" in result.stdout
    assert not UNSEEN & set(result.output)


# ---- keys and labels, wherever they are shown


@pytest.fixture(scope="module", params=["imported", pytest.param("extracted", marks=pytest.mark.slow)])
def named(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clustered table whose keys and labels mean harm; one that was extracted has their images, too."""
    home = tmp_path_factory.mktemp("named")
    if request.param == "extracted":
        request.getfixturevalue("ray_session")
        hostile_shard(home / "shard.tar", home / "ran")
        shoal("extract", home / "shard.tar", "--output", home / "own", *sets(*TO_PIXELS))
    else:
        x_ND = np.repeat(np.eye(2, dtype=np.float32), 2, axis=0) + np.arange(4, dtype=np.float32)[:, None] / 9
        keys = np.array([f"{number}{KEY}" for number in range(4)])
        np.savez(home / "x.npz", embedding=x_ND, key=keys, label=np.array([LABEL] * 4))
        shoal("import", home / "x.npz", "--output", home / "own")
    result = shoal("cluster", home / "own", *sets(*KMEANS))
    assert result.exit_code == 0, result.output
    return home / "own"


@pytest.mark.parametrize("command", ["show", "evaluate", "history"])
def test_keys_and_labels_cannot_steer_the_terminal(named: Path, command: str) -> None:
    result = shoal(command, named)
    assert result.exit_code == 0, result.output
    assert not UNSEEN & set(result.output)


@pytest.mark.slow  # what data can do to the report is tried in tests/jobs/report, too
@pytest.mark.skipif(CHROMIUM is None, reason="NO BROWSER: install chromium (apt-get install chromium)")
def test_tags_in_keys_and_labels_are_text_in_the_report(named: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="NO PLAYWRIGHT: pip install playwright")
    result = shoal("report", named, *sets(*KMEANS))
    assert result.exit_code == 0, result.output
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        asked: list[str] = []
        complaints: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.goto((named / "report.html").as_uri())
        assert page.title() != "run"
        assert page.locator("script").count() == page.locator("[onerror]").count() == 0
        shown = page.locator("html").evaluate("each => each.textContent")
        alternatives = page.locator("img").evaluate_all("all => all.map(each => each.alt + each.title).join()")
        assert TAGS in shown + alternatives
        assert not [url for url in asked if not url.startswith(("file:", "data:"))]
        assert complaints == []
        browser.close()


# ---- words of strangers in sentences and in logs


def test_a_file_name_cannot_steer_the_terminal_or_forge_a_line_of_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f'{STEER}\n{{"level": "info", "event": "finished"}}.jpg'
    (tmp_path / name).touch()
    sentence = refused(shoal("evaluate", tmp_path))
    assert r"\x1b[2J\x1b]0;owned\x07" in sentence
    assert not UNSEEN & set(sentence)
    monkeypatch.setenv("SHOAL_LOG", "json")
    told = [json.loads(line) for line in shoal("evaluate", tmp_path).stderr.splitlines()]
    assert [line["event"] for line in told] == ["started", "failed"]
    assert "owned" in told[-1]["message"]


def test_unknown_keys_are_told_as_text(tmp_path: Path) -> None:
    told = Told(tmp_path / "table")
    told.shard(["a1", "a2"])
    (tmp_path / "keys.txt").write_text(f"a1\n{STEER}\n")
    result = shoal("remove", tmp_path / "table", "--keys", tmp_path / "keys.txt", "--dry-run")
    assert result.exit_code == 0, result.output
    assert not UNSEEN & set(result.output)


# ---- settings


@pytest.mark.parametrize(
    "text",
    [
        "backbone: !!python/object/apply:os.system ['touch {marker}']",
        "backbone: !!python/object/new:pathlib.PosixPath ['{marker}']",
        "report: {{title: &a [x, x], b: &b [*a, *a], c: [*b, *b]}}",
        "report: &a {{title: *a}}",
        f"report: {'[' * 5_000}",
    ],
    ids=["call", "object", "bomb", "cycle", "depth"],
)
def test_settings_of_a_stranger_are_a_sentence_and_nothing_runs(tmp_path: Path, text: str) -> None:
    (tmp_path / "evil.yaml").write_text(text.format(marker=tmp_path / "ran"))
    before = files_in(tmp_path)
    sentence = refused(shoal("run", tmp_path, "--output", tmp_path / "run", "-c", tmp_path / "evil.yaml"))
    assert "is not a plain YAML file" in sentence
    value = text.partition(": ")[2].format(marker=tmp_path / "ran")
    assert "is not a YAML value" in refused(shoal("config", "show", "--set", f"report.title={value}"))
    assert files_in(tmp_path) == before


# ---- artifacts and tables


@pytest.fixture(scope="module")
def two_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table with two models of the same kind."""
    tmp_path = tmp_path_factory.mktemp("models")
    x_ND = np.repeat(np.eye(2, 3, dtype=np.float32) * 9, 20, axis=0)
    np.save(tmp_path / "x.npy", x_ND + np.arange(40, dtype=np.float32)[:, None] / 40)
    steps = [
        ["import", tmp_path / "x.npy", "--output", tmp_path / "table"],
        ["cluster", tmp_path / "table", "--name", "one", *sets(*KMEANS)],
        ["cluster", tmp_path / "table", "--name", "two", *sets(*KMEANS, "cluster.algorithm.clusters=3")],
    ]
    for step in steps:
        result = shoal(*step)
        assert result.exit_code == 0, result.output
    return tmp_path / "table"


@pytest.fixture
def clustered(two_models: Path, tmp_path: Path) -> Path:
    return shutil.copytree(two_models, tmp_path / "table")


@pytest.mark.parametrize("what", ["a byte", "the digest", "the other model", "the other tensors"])
def test_an_artifact_that_is_not_the_one_that_was_published_is_refused(clustered: Path, what: str) -> None:
    table = Collection.open(clustered)
    one, two = (
        table.artifacts.path("kmeans", table.clustering(name).generations()[-1].artifact) for name in ("one", "two")
    )
    assert isinstance(one, Path) and isinstance(two, Path)
    if what == "a byte":
        content = bytearray((one / "tensors.safetensors").read_bytes())
        content[-1] ^= 1
        (one / "tensors.safetensors").write_bytes(content)
    elif what == "the digest":
        digest = read_artifact(one).digest
        (one / "artifact.json").write_text((one / "artifact.json").read_text().replace(digest, "f" * 64))
    else:
        names = ["tensors.safetensors", *(["artifact.json"] if what == "the other model" else [])]
        for name in names:  # both: its own digest fits, but it is not the one that the generation names
            shutil.copy(two / name, one / name)
    for command in ("assign", "recluster", *(["report"] if what == "the other model" else [])):
        sentence = refused(shoal(command, clustered, "--name", "one", *sets(*KMEANS)))
        assert "digest" in sentence
    assert shoal("assign", clustered, "--name", "two", *sets(*KMEANS)).exit_code == 0


def test_a_removal_deletes_nothing_that_a_link_in_a_table_leads_to(clustered: Path, tmp_path: Path) -> None:
    """Not even where the log of the table says that it is a data file of its own which is no longer needed."""
    (tmp_path / "mine").mkdir()
    pq.write_table(pa.table({"key": ["a"], "shard": ["b"]}), tmp_path / "mine" / "thesis.parquet")
    (tmp_path / "mine" / "other.parquet.partial").touch()
    before = files_in(tmp_path / "mine")
    samples = clustered / "samples"
    (samples / "x").symlink_to(tmp_path / "mine")
    logs = sorted((samples / "_delta_log").glob("*.json"))
    added = next(json.loads(line) for line in logs[-1].read_text().splitlines() if '"add"' in line)
    added["add"]["path"] = "x/thesis.parquet"
    logs[-1].write_text(f"{logs[-1].read_text().rstrip()}\n{json.dumps(added)}\n")
    removed = {"path": "x/thesis.parquet", "dataChange": True, "deletionTimestamp": 1, "size": 1}
    partition = {"extendedFileMetadata": True, "partitionValues": {"status": "ok"}}
    last = json.dumps({"remove": removed | partition})
    (samples / "_delta_log" / f"{len(logs):020d}.json").write_text(f"{last}\n")
    result = shoal("remove", clustered, f"{3:012d}")
    assert result.exit_code == 0, result.output
    assert files_in(tmp_path / "mine") == before


# ---- folders


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / "photos" / f"{number}.png").write_bytes(png(number))
    np.save(tmp_path / "x.npy", np.eye(3, dtype=np.float32))
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "photos" / "0.png", "0.png")
    return tmp_path / "photos"


def given_to(command: str, photos: Path) -> Path:
    return {"import": photos.parent / "x.npy", "extract": photos.parent / "x.tar"}.get(command, photos)


@pytest.mark.parametrize("command", ["run", "train", "shards", "extract", "import"])
@pytest.mark.parametrize("leads", ["to an empty folder", "to somebody's folder", "nowhere"])
def test_an_output_that_is_a_link_is_left_alone(photos: Path, tmp_path: Path, command: str, leads: str) -> None:
    target = tmp_path / "target"
    if leads != "nowhere":
        target.mkdir()
    if leads == "to somebody's folder":
        (target / ("shard-000000.tar" if command == "shards" else "thesis.tex")).write_text("mine")
    (tmp_path / "link").symlink_to(target)
    before = files_in(tmp_path)
    sentence = refused(shoal(command, given_to(command, photos), "--output", tmp_path / "link"))
    assert str(tmp_path / "link") in sentence
    assert files_in(tmp_path) == before
    assert target.exists() == (leads != "nowhere")


@pytest.mark.parametrize("command", ["run", "extract", "import"])  # train and shards: in their own tests
def test_an_output_of_somebody_elses_is_left_alone(photos: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").write_text("mine")
    before = files_in(tmp_path)
    assert "thesis.tex" in refused(shoal(command, given_to(command, photos), "--output", tmp_path / "theirs"))
    assert files_in(tmp_path) == before


def test_a_journal_of_shards_names_nothing_outside_its_folder(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tar").write_text("mine")
    output = tmp_path / "shards"
    output.mkdir()
    names = ("../thesis.tar", str(tmp_path / "thesis.tar"), "../photos/0.png")
    lines = [json.dumps({"shard": name, "size": 4, "fingerprint": ""}) for name in names]
    (output / "shards.jsonl").write_text("\n".join([*lines, "[" * 10_000]))
    (output / ".shard-000000.tar.part").symlink_to(tmp_path / "thesis.tar")
    before = files_in(tmp_path)
    result = shoal("shards", photos, "--output", output)
    assert result.exit_code == 0, result.output
    now = files_in(tmp_path)
    assert {name: now[name] for name in before if not name.startswith("shards/")} == {
        name: content for name, content in before.items() if not name.startswith("shards/")
    }
    assert not (output / "shard-000000.tar").is_symlink()


def test_a_journal_of_shards_that_is_a_link_is_refused(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "shards.jsonl").symlink_to(tmp_path / "thesis.tex")
    before = files_in(tmp_path)
    assert "symbolic link" in refused(shoal("shards", photos, "--output", tmp_path / "shards"))
    assert files_in(tmp_path) == before
