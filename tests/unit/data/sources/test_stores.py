"""The same epoch from other stores: S3 (moto's server on loopback), and what fsspec opens; connections that drop."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import fsspec
import pyarrow.fs as pafs
import pytest
import torch
import yaml

from mtlrec.batch import Batch
from mtlrec.config.base import without_secrets
from mtlrec.data.sources import files
from mtlrec.data.sources.files import persistently, store_of
from mtlrec.errors import DataError
from tests.support.ranks import run_cli
from tests.support.toy import loader_of, toy_job, toy_tree, write_toy

server = pytest.importorskip("moto.server", reason="moto[server] is not installed")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def s3(toy: Path) -> Iterator[int]:
    """A server's port, with the toy data in bucket `toys`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        running = server.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
        running.start()
        port = running.get_host_and_port()[1]
        there = pafs.S3FileSystem(endpoint_override=f"127.0.0.1:{port}", scheme="http", allow_bucket_creation=True)
        there.create_dir("toys")
        pafs.copy_files(str(toy), "toys/data", destination_filesystem=there)
        yield port
        running.stop()


def uri(port: int) -> str:
    return f"s3://toys/data?endpoint_override=127.0.0.1:{port}&scheme=http"


def epoch(root: str | Path, **data: object) -> list[Batch]:
    return list(loader_of(toy_job(root, data=data), shuffle="rows", seed=3).epoch())


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.dense, b.dense) and torch.equal(a.sparse["bags"].values(), b.sparse["bags"].values())
        for a, b in zip(one, other, strict=True)
    )


def test_s3_serves_the_same_epoch(toy: Path, s3: int) -> None:
    assert same(epoch(uri(s3)), epoch(toy))


def test_fsspec_serves_the_same_epoch(toy: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in (toy / "train").iterdir():
        memory.pipe(f"/toys/train/{path.name}", path.read_bytes())
    assert same(epoch("memory://toys"), epoch(toy))


class Proxy:
    """Between client and server; cuts the next `cuts` answers that are longer than a header, in their middle."""

    def __init__(self, port: int) -> None:
        self.server_port, self.cuts, self.cut = port, 0, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                upstream = socket.create_connection(("127.0.0.1", self.server_port))
                threading.Thread(target=self._forward, args=(client, upstream), daemon=True).start()
                threading.Thread(target=self._answer, args=(upstream, client), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)

    def _answer(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if self.cuts and b"PAR1" not in data[:1500] and len(data) > 1500:
                    self.cuts -= 1
                    self.cut += 1
                    sink.sendall(data[: len(data) // 2])
                    sink.shutdown(socket.SHUT_RDWR)
                    source.close()
                    return
                sink.sendall(data)


def test_a_dropped_connection_is_tried_again_and_then_reported(
    toy: Path, s3: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "FIRST_PAUSE_S", 0.01)
    proxy = Proxy(s3)
    loader = loader_of(toy_job(uri(proxy.port), data={"retries": 3}), shuffle="rows", seed=3)
    impatient = loader_of(toy_job(uri(proxy.port), data={"retries": 0, "read_ahead": 1}))
    proxy.cuts = 2
    assert same(list(loader.epoch()), epoch(toy))
    assert proxy.cut == 2
    proxy.cuts = 10**6
    with pytest.raises(DataError, match=r"s3://toys/data/train/part-\d\.parquet: row group \d cannot be read"):
        list(impatient.epoch())


def test_a_read_is_tried_as_often_as_told(s3: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(files.time, "sleep", pauses.append)
    tried = []

    def fail() -> None:
        tried.append(1)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        persistently(fail, store_of(uri(s3)), 3)
    assert len(tried) == 4
    assert pauses == [0.2, 0.4, 0.8]
    with pytest.raises(OSError, match="gone"):
        persistently(fail, store_of("."), 3)
    assert len(tried) == 5, "a local disk does not get better by waiting"


def test_stores_that_cannot_be_opened_are_one_line(s3: int) -> None:
    with pytest.raises(DataError, match=r"data\.root nonsense://x: cannot be opened") as caught:
        loader_of(toy_job("nonsense://x", data={"retries": 0}))
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="starts with a slash; patterns are relative"):
        loader_of(toy_job(uri(s3), data={"train": ["/x/*.parquet"]}))
    with pytest.raises(DataError, match=r"a URI belongs into data\.root"):
        loader_of(toy_job(".", data={"train": ["s3://x/*.parquet"]}))


def test_secrets_are_neither_kept_nor_shown(s3: int, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    root = f"s3://key:Tr0ub4dor/3@toys/data?endpoint_override=127.0.0.1:{s3}&scheme=http"
    tree = toy_tree(root)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(tree))
    assert run_cli("train", tmp_path / "job.yaml", "-o", tmp_path / "run") == 2
    said = capsys.readouterr().err
    assert "data.root = 's3://toys/data?" in said
    assert "has a password in it, and a run keeps its job; give credentials by the environment" in said
    for folder, status in (("data/train", 0), ("data/none", 2)):
        assert run_cli("inspect", root.replace("dor/3", "dor").replace("data", folder)) == status
    out, err = capsys.readouterr()
    assert "root: 's3://toys/data?" in out
    assert "no file matches s3://toys/data/none" in err
    assert "Tr0ub4dor" not in said + err + out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@bucket/logs", "s3://bucket/logs"),
        ("s3://key:sec@ret@bucket/logs", "s3://bucket/logs"),
        ("no route to s3://key:se:c@ret@bucket", "no route to s3://bucket"),
        ("s3://bucket/a@b?region=x", "s3://bucket/a@b?region=x"),
    ],
)
def test_a_password_is_hidden_whatever_is_in_it(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
