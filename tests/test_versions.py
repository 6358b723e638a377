"""The versions that a result names."""

import subprocess

import nemo_moslim
from nemo_moslim import versions


def test_a_checkout_that_is_not_installed_has_a_version(monkeypatch):
    def version(name):
        if name in ("nemo_moslim", "transformer_engine"):
            raise versions.PackageNotFoundError(name)
        return f"{name} 1"

    monkeypatch.setattr(versions, "version", version)
    monkeypatch.setattr(versions, "checkout_commit", lambda: None)
    found = versions.package_versions()
    assert found["nemo_moslim"] == nemo_moslim.__version__ and found["torch"] == "torch 1"
    assert "transformer_engine" not in found and "commit" not in found


def test_a_checkout_names_its_commit(monkeypatch, tmp_path):
    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "package").mkdir()
    monkeypatch.setattr(versions, "__file__", str(tmp_path / "package" / "versions.py"))
    commit = versions.checkout_commit.__wrapped__
    assert commit() is None
    git("init", "-q")
    (tmp_path / "file").write_text("x")
    git("add", "file")
    git("commit", "-qm", "first")
    head = git("rev-parse", "HEAD")
    assert head.startswith(commit()) and len(commit()) >= 7
    (tmp_path / "file").write_text("y")
    assert commit() == f"{head[: len(commit()) - 6]}-dirty"
    monkeypatch.setenv("PATH", "")
    assert commit() is None
