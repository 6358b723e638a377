"""The versions that a result names."""

import nemo_moslim
from nemo_moslim import versions


def test_a_checkout_that_is_not_installed_has_a_version(monkeypatch):
    def version(name):
        if name in ("nemo_moslim", "transformer_engine"):
            raise versions.PackageNotFoundError(name)
        return f"{name} 1"

    monkeypatch.setattr(versions, "version", version)
    found = versions.package_versions()
    assert found["nemo_moslim"] == nemo_moslim.__version__ and found["torch"] == "torch 1"
    assert "transformer_engine" not in found
