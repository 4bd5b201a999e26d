"""The runtime itself, without its telemetry: the only importer of openvino.

`import openvino` reports to an analytics service, unless the package `openvino_telemetry` cannot be
imported: then a stub of its own takes over. A gateway tells nobody outside what it runs.
"""

import sys

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # None: "not importable"

import openvino as ov  # noqa: E402
import openvino_genai as genai  # noqa: E402

__all__ = ["genai", "ov"]
