"""The plan in force where a stage cannot be placed under it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edged.backend import Variant
from edged.catalogue import Catalogue
from edged.config import Config, Stage
from edged.models import ModelStore
from edged.placement.applied import AppliedPlan
from edged.placement.table import Form

from .test_fallback import MODEL, planned


def test_a_plan_that_is_not_usable_is_told_by_who_goes_by_it_and_once(
    variant: Callable[[str, str], Variant], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    store = ModelStore(variant(MODEL, "q4_0").path.parents[2], Catalogue.discover())
    form = Form(stage="generator", model=MODEL, variant="q4_0", backend="openvino", device="cpu", threads=1)
    plan = planned(form)
    choice = plan.choices["generator"]
    gone = msgspec.structs.replace(choice, form=msgspec.structs.replace(choice.form, variant="gone"))
    applied = AppliedPlan(tmp_path, store)
    applied.take(msgspec.structs.replace(plan, choices={"generator": gone}))
    stage = Stage(kind="generator", model=MODEL, backend="openvino")
    config = Config(stages={"generator": stage})

    def told() -> int:
        return sum(record.message == "plan not usable" for record in caplog.records)

    for _ in range(3):
        step, why = applied.step("generator", stage, config)
    assert (step.spec.variant.model, told()) == (MODEL, 0)
    for _ in range(3):
        applied.note({"generator": why})
    assert ("gone" in why, told()) == (True, 1)
    applied.note({"generator": ""})
    applied.note({"generator": why})
    assert told() == 2
