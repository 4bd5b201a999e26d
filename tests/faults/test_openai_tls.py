"""The openai adapter checks who the server is."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path

import pytest
from edged_backends import openai as adapter

from edged.backend import Sampling, Variant

from .openai_stand import stand

openssl = shutil.which("openssl") or pytest.skip(
    "the program openssl, which makes the certificate, is missing", allow_module_level=True
)
VARIANT = Variant(model="smol", name="none", task="generate", format="none", path=Path("/dev/null"))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[Path, Path]:
    """A certificate of nobody known, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    chain, key = folder / "chain.pem", folder / "key.pem"
    wanted = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-keyout", key, "-out", chain, "-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([openssl, "req", *wanted, *names], check=True, capture_output=True)
    return chain, key


@pytest.mark.parametrize("trusted", [True, False])
def test_only_a_certificate_of_a_known_authority_is_accepted(certificate, trusted: bool):
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    with stand(context) as server:
        server.scripts = [lambda caller: caller.answer("safe")]
        backend = adapter.OpenaiBackend()
        options = {"base_url": server.url} | ({"ca_file": str(certificate[0])} if trusted else {})
        session = backend.open(VARIANT, backend.devices()[0], options)
        if trusted:
            prompt = session.vocabulary.encode("Say it", special=False)
            session.admit(1, prompt, Sampling(), 4)
            events = []
            while session.free_sequences < session.max_sequences:
                events += session.step()
            said = session.vocabulary.decode([token for event in events for token in event.tokens])
            assert (said, events[-1].finish) == ("safe", "stop")
        else:
            assert "ca_file" in session.trouble
            assert not server.calls
        session.close()
