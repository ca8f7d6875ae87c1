"""The bugs planted in the specification: each fits the text, and gives a specification that still loads."""
import subprocess
import sys
from pathlib import Path

import pytest

from proofs.planted import BY_HAND, all_plants, dropped_conjuncts, planted_source, source_of, write_planted

ROOT = Path(__file__).parents[2]


def test_there_are_at_least_forty_with_different_names():
    names = [plant.name for plant in all_plants()]
    assert len(names) >= 40
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("plant", all_plants(), ids=lambda plant: plant.name)
def test_each_changes_its_module_and_nothing_that_python_would_refuse(plant):
    text = planted_source(plant)
    assert text != source_of(plant.module)
    compile(text, plant.module, "exec")


@pytest.mark.parametrize("plant", [BY_HAND[0], dropped_conjuncts()[0]], ids=lambda plant: plant.name)
def test_a_planted_specification_is_what_a_process_with_its_folder_first_imports(plant, tmp_path):
    write_planted(plant, tmp_path)
    code = "import spec.rules, sys; print(spec.__file__); print(len(spec.kernel.RULES))"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": f"{tmp_path}:{ROOT}"}, capture_output=True, text=True,
                          check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[0].startswith(str(tmp_path))
