"""Storages on loopback, each with a server that speaks its protocol."""

import uuid

import pytest

from tests.servers.webhdfs import serve


@pytest.fixture(scope="session")
def s3_endpoint() -> str:
    """Address of a real S3 API server (moto's), of this test session."""
    server_module = pytest.importorskip("moto.server")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket(s3_endpoint, monkeypatch) -> str:
    """A new bucket as `s3://name`; this process and its children reach it through the usual environment variables."""
    import s3fs

    for name, value in {
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = f"bucket-{uuid.uuid4().hex[:8]}"
    s3fs.S3FileSystem().mkdir(name)
    yield f"s3://{name}"
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def webhdfs(tmp_path) -> str:
    """A folder on a server that speaks WebHDFS, as a URL."""
    root = tmp_path / "hdfs"
    root.mkdir()
    server = serve(root)
    host, port = server.server_address
    yield f"webhdfs://{host}:{port}/data"
    server.shutdown()
